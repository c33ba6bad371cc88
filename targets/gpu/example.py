"""The program that an artifact for GPUs carries along."""

EXAMPLE = '''\
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


def main() -> None:
    given = {name: np.load(file) for name, file in (text.split("=", 1) for text in sys.argv[1:])}
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine((Path(__file__).parent / "model.engine").read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {}
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            dtype = TORCH_TYPES[engine.get_tensor_dtype(name)]
            best = tuple(engine.get_tensor_profile_shape(name, 0)[1])
            data = torch.from_numpy(given[name]) if name in given else torch.zeros(best)
            tensors[name] = data.to("cuda", dtype).contiguous()
            context.set_input_shape(name, tuple(tensors[name].shape))
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
