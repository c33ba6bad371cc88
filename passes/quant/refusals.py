"""Why a node that holds weights is not quantised: one sentence for each kind."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from aigcc.ir.operators import op_key
from aigcc.ir.weights import constant, is_small
from aigcc.passes.quant.placement import CONVOLUTIONS, table_of, weight_of

_PRODUCTS = frozenset({*CONVOLUTIONS, "Gemm", "MatMul"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_LOOKED_AT = 64  # values between constants and a product

# What has constants of any size, and multiplies no matrices.
_NO_WEIGHTS = frozenset(
    {
        *("Add", "And", "Cast", "CastLike", "Clip", "Concat", "Constant", "ConstantOfShape"),
        *("DequantizeLinear", "Div", "Equal", "Expand", "Greater", "Identity", "If", "Less"),
        *("Loop", "Max", "Mean", "Min", "Mod", "Mul", "Not", "Or", "PRelu", "Pad", "Pow"),
        *("QuantizeLinear", "Range", "Reshape", "Resize", "Scan", "ScatterElements", "ScatterND"),
        *("Shape", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu"),
        *("Unsqueeze", "Where", "Xor"),
    }
)
_OF_INTEGERS = ("Integer", "QLinear", "QGemm", "QAttention", "DynamicQuantize")


def refusal(node: ir.Node) -> str:
    """Why a node has no weight that could be quantised, though it holds or multiplies one.

    Empty for nodes that have one, and for those that have nothing to do with weights.
    """
    if weight_of(node) is not None or table_of(node) is not None:
        return ""
    key = op_key(node)
    if key in _PRODUCTS and len(node.inputs) > 1:
        return _of_product(node)
    held = next((value for value in node.inputs if _is_large(value)), None)
    if held is None or key in _NO_WEIGHTS or any(part in node.op_type for part in _OF_INTEGERS):
        return ""
    if key == "Gather":
        return "Gather has rows of a matrix alone quantised, and takes something else of its table"
    if key in _RECURRENT:
        return f"{key} has no scheme: its kernels multiply floats"
    return f"{key} has no scheme, so {held.name} stays as it is"


def _of_product(node: ir.Node) -> str:
    first, second = node.inputs[:2]
    tensor, op = constant(second), node.op_type
    if tensor is None:
        if is_matrix(constant(first)):
            return "its constant is the first factor, and kernels of integers scale the second one"
        return _of_computed(second)
    if not tensor.dtype.is_floating_point():
        return ""
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name.lower()}, which no scheme is for"
    if op == "ConvTranspose" and node.attributes.get_int("group", 1) > 1:
        return "outputs of several groups would share scales, and no runtime has an integer kernel"
    if op == "Gemm" and len(tensor.shape) == 2:
        return "it reads its activation transposed (transA), and kernels of integers do not"
    if op == "MatMul" and len(tensor.shape) > 2:
        return "it has a weight for each batch, and kernels of integers have one for all"
    return f"its weight has {len(tensor.shape)} dims, and is no matrix"


def _of_computed(value: ir.Value | None) -> str:
    """Of a second factor that is no constant."""
    node = None if value is None else value.producer()
    leaves = list(_leaves(value))
    is_weight = any(_is_large(leaf) for leaf in leaves)
    if node is None:
        return "its second factor is an input, and only constants are quantised"
    if node.op_type == "DequantizeLinear":
        return "it is quantised already"
    if leaves and all(constant(leaf) is not None for leaf in leaves):
        return f"its weight is made of constants by {node.op_type}: see fold-constants"
    if is_weight and node.op_type != "MatMul":
        return f"its weight is computed by {node.op_type} when the model runs"
    return "both of its factors are computed when the model runs"


def _leaves(value: ir.Value | None) -> Iterator[ir.Value | None]:
    """What a value is computed of; None for what lies too deep to be looked at."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        if each is None or each in seen:
            continue
        seen.add(each)
        node = each.producer()
        if constant(each) is not None or node is None:
            yield each
        elif len(seen) > _LOOKED_AT:
            yield None
            return
        else:
            pending += node.inputs


def is_matrix(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a tensor is of floats, in two or more dims."""
    return tensor is not None and tensor.dtype in _FLOATS and len(tensor.shape) > 1


def _is_large(value: ir.Value | None) -> bool:
    """Whether a value is a constant with the rank and the size of a weight."""
    tensor = constant(value)
    return tensor is not None and is_matrix(tensor) and not is_small(tensor)
