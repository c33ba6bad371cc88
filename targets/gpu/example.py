"""The program that an artifact for GPUs carries along."""

from __future__ import annotations

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.targets.examples import READ_INPUTS

_PROGRAM = '''\
"""Runs model.engine once: python example.py [NAME=FILE.npy ...]

Needs an NVIDIA GPU, its driver, `pip install tensorrt-rtx torch numpy`. Inputs that are not given
are zeros of the shape that the engine is fastest at. Outputs are printed.
"""

import sys
from pathlib import Path

import numpy as np
import tensorrt_rtx as trt
import torch

TORCH_TYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT8: torch.int8,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.BOOL: torch.bool,
}


DTYPES = {dtypes}


{read_inputs}

def main() -> None:
    given = read_inputs(DTYPES)
    path = Path(__file__).parent / "model.engine"
    if not path.is_file():
        sys.exit("there is no model.engine yet: build_engine.py makes it")
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU is found here, and an engine runs on nothing else")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        sys.exit(f"the engine was not built for {torch.cuda.get_device_name()}; see artifact.json")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    tensors = {}
    for name in inputs:
        smallest, best, largest = map(tuple, engine.get_tensor_profile_shape(name, 0))
        data = torch.from_numpy(given[name]) if name in given else torch.zeros(best)
        tensors[name] = data.to("cuda", TORCH_TYPES[engine.get_tensor_dtype(name)])
        if not context.set_input_shape(name, tuple(data.shape)):
            sys.exit(f"input {name!r} is {tuple(data.shape)}, and may be {smallest} to {largest}")
    for name in names:
        if name not in tensors:
            dtype = TORCH_TYPES[engine.get_tensor_dtype(name)]
            shape = tuple(context.get_tensor_shape(name))
            tensors[name] = torch.empty(shape, dtype=dtype, device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    stream = torch.cuda.current_stream()
    context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            print(name, tuple(tensors[name].shape), tensors[name].float().cpu().numpy().ravel()[:8])


if __name__ == "__main__":
    main()
'''


def example_for(module: Module) -> str:
    """A program that needs a GPU, PyTorch and TensorRT-RTX, and prints what comes out."""
    dtypes = {
        value.name: (value.dtype or ir.DataType.FLOAT).numpy().name for value in module.inputs
    }
    program = _PROGRAM.replace("{read_inputs}", READ_INPUTS)
    return program.replace("{dtypes}", repr(dtypes))
