"""The program that an artifact for ONNX Runtime carries along."""

from __future__ import annotations

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ranges import symbols
from aigcc.synthetic import choose_dims, count_tokens, input_shape, recipe
from aigcc.targets.examples import READ_INPUTS

_PROGRAM = '''\
"""Runs {entry} once: python example.py [NAME=FILE.npy ...]

Needs `pip install numpy onnxruntime`. Inputs that are not given are made up.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


{read_inputs}
{sizes}
random = np.random.default_rng(0)
inputs = {{
{inputs}
}}
{take}

model = Path(__file__).parent / "{entry}"
options = ort.SessionOptions()
# Masked attention is full of denormals, which are slow; the first session of a process decides.
options.add_session_config_entry("session.set_denormal_as_zero", "1")
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
session.{run}(None, inputs)  # the first run is slower than all others
started = time.perf_counter()
outputs = session.{run}(None, inputs)
seconds = time.perf_counter() - started

for value, output in zip(session.get_outputs(), outputs):
    print(value.name, value.type, {shape})
print(f"{{seconds * 1e3:.2f}} ms")
'''

# Types that numpy has; others are handed over as memory.
_NUMPY = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.STRING,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)


def example_for(module: Module, entry: str) -> str:
    """A program that needs nothing but numpy and ONNX Runtime, and prints shapes and a time."""
    sizes = choose_dims(module)
    plain = all(value.dtype in _NUMPY for value in (*module.inputs, *module.outputs))
    total = count_tokens(module, sizes)
    lines = [_input(value, sizes, total, plain=plain) for value in module.inputs]
    take = "inputs |= read_inputs({name: array.dtype for name, array in inputs.items()})"
    if not plain:
        dtypes = {
            value.name: _numpy_name(value.dtype or ir.DataType.FLOAT) for value in module.inputs
        }
        take = (
            f"for name, array in read_inputs({dtypes!r}).items():\n"
            "    inputs[name] = ort.OrtValue.ortvalue_from_numpy(array)"
        )
    return _PROGRAM.format(
        entry=entry,
        sizes="".join(f"\n{_variable(name, sizes)} = {size}" for name, size in sizes.items())
        + ("\n" if sizes else ""),
        inputs="\n".join(lines),
        take=take,
        read_inputs=READ_INPUTS,
        run="run" if plain else "run_with_ort_values",
        shape="np.shape(output)" if plain else "output.shape()",
    )


def _input(value: ir.Value, sizes: dict[str, int], total: int, *, plain: bool) -> str:
    shape = _shape(value, sizes)
    dtype = value.dtype or ir.DataType.FLOAT
    if dtype == ir.DataType.STRING:
        text = f'np.full({shape}, "text")'
    elif dtype not in _NUMPY:
        text = f"ort.OrtValue.ortvalue_from_shape_and_type({shape}, {int(dtype)})"
    else:
        text = f"{recipe(value, total).source(shape)}.astype(np.{_numpy_name(dtype)})"
        if not plain:
            text = f"ort.OrtValue.ortvalue_from_numpy({text})"
    return f"    {value.name!r}: {text},"


def _shape(value: ir.Value, sizes: dict[str, int]) -> str:
    chosen = input_shape(value, sizes)
    dims = []
    for dim, size in zip(value.shape or (), chosen, strict=True):
        names = symbols(dim)
        dims.append(_variable(str(dim), sizes) if names == {str(dim)} else str(size))
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


def _variable(name: str, sizes: dict[str, int]) -> str:
    """A name for a dim that Python takes; numbered where the dim's own name is no identifier."""
    return name if name.isidentifier() and name.islower() else f"dim_{list(sizes).index(name)}"


def _numpy_name(dtype: ir.DataType) -> str:
    return "bool_" if dtype == ir.DataType.BOOL else str(dtype.numpy().name)
