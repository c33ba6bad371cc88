"""Rounds every weight to the nearest number of a symmetric grid: BITS BLOCK MODEL OUT.

A scale for each BLOCK of neighbours of an output channel, or for the whole channel if BLOCK is 0.
Numbers are stored as float32 again: this shows quality alone.
"""

import sys

import numpy as np
import onnx
from onnx import numpy_helper

OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def rounded(weight: np.ndarray, axis: int, bits: int, block: int) -> np.ndarray:
    moved = np.moveaxis(weight, axis, 0)
    lines = moved.reshape(moved.shape[0], -1)
    width = block or lines.shape[1]
    padded = np.pad(lines, ((0, 0), (0, -lines.shape[1] % width)))
    blocks = padded.reshape(lines.shape[0], -1, width)
    highest = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True) / highest, 1e-30)
    back = np.clip(np.rint(blocks / scale), -highest - 1, highest) * scale
    flat = back.reshape(padded.shape)[:, : lines.shape[1]]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(moved.shape), 0, axis))


bits, block, source, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
model = onnx.load(source)
tensors = {tensor.name: tensor for tensor in model.graph.initializer}
turned = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
for node in model.graph.node:
    if node.op_type not in OUTPUT_AXIS:
        continue
    weight = node.input[1]
    tensor = tensors.get(turned.get(weight, weight))
    if tensor is None or len(tensor.dims) < 2 or tensor.data_type != onnx.TensorProto.FLOAT:
        continue
    axis = OUTPUT_AXIS[node.op_type]
    is_turned = any(a.name == "transB" and a.i for a in node.attribute) or weight in turned
    if node.op_type in ("Gemm", "MatMul") and is_turned:
        axis = 0
    array = rounded(numpy_helper.to_array(tensor), axis, bits, block).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
onnx.save(model, out)
