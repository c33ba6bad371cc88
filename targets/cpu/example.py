"""The program that an artifact for OpenVINO carries along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.synthetic import choose_dims, count_tokens, input_shape, recipe
from aigcc.targets.examples import READ_INPUTS

_PROGRAM = '''\
"""Runs {entry} once: python example.py [NAME=FILE.npy ...]

Needs `pip install numpy{more} openvino`. Inputs that are not given are made up.
"""

import sys
import time
from pathlib import Path

{imports}

PROPERTIES = {{
{properties}
}}


{read_inputs}

def to_tensor(port, array):
    tensor = ov.Tensor(port.get_element_type(), ov.Shape(array.shape))
    tensor.data[...] = array.view(tensor.data.dtype)
    return tensor


random = np.random.default_rng(0)
inputs = {{
{inputs}
}}
inputs |= read_inputs({{name: array.dtype for name, array in inputs.items()}})

core = ov.Core()
network = core.read_model(Path(__file__).parent / "{entry}")
# A program for these shapes alone is faster; leave the line out where shapes change.
network.reshape({{name: list(array.shape) for name, array in inputs.items()}})
model = core.compile_model(network, "CPU", PROPERTIES)
request = model.create_infer_request()
tensors = {{name: to_tensor(model.input(name), array) for name, array in inputs.items()}}
request.infer(tensors)  # the first run is slower than all others
started = time.perf_counter()
request.infer(tensors)
seconds = time.perf_counter() - started

for index, port in enumerate(model.outputs):
    tensor = request.get_output_tensor(index)
    print(port.get_any_name(), tensor.get_element_type().get_type_name(), tuple(tensor.shape))
print(f"{{seconds * 1e3:.2f}} ms")
'''


def example_for(module: Module, entry: str, properties: Mapping[str, Any]) -> str:
    """A program that needs nothing but numpy and OpenVINO, and prints shapes and a time."""
    sizes = choose_dims(module)
    total = count_tokens(module, sizes)
    lines, imports = [], {"import numpy as np", "import openvino as ov"}
    for value in module.inputs:
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        owner = "np" if dtype.isbuiltin == 1 else "ml_dtypes"
        if owner == "ml_dtypes":
            imports.add("import ml_dtypes")
        name = "bool_" if dtype.name == "bool" else dtype.name
        source = recipe(value, total).source(str(input_shape(value, sizes)))
        lines.append(f"    {value.name!r}: {source}.astype({owner}.{name}),")
    return _PROGRAM.format(
        entry=entry,
        read_inputs=READ_INPUTS,
        more=" ml_dtypes" if len(imports) > 2 else "",
        imports="\n".join(sorted(imports)),
        properties="\n".join(f'    "{key}": {value!r},' for key, value in properties.items()),
        inputs="\n".join(lines),
    )
