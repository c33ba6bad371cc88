"""Floating-point operations of nodes, from their shapes: two for each multiply-add."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from aigcc.ir.weights import scalar
from aigcc.ranges import resolve

Sizes = Mapping[str, int]
Dims = tuple[int, ...]

# Operators that only place, rename or choose numbers.
_MOVES = frozenset(
    [
        "Cast",
        "CastLike",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Expand",
        "EyeLike",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "NonZero",
        "OneHot",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "Pad",
        "Reshape",
        "ReverseSequence",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "Shape",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "TensorScatter",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    ]
)

# Operations per output element, where it is not 1: the cost of the usual formula, with each of
# exp, tanh, erf, sqrt and a division counted as one.
_PER_ELEMENT = {
    "BatchNormalization": 2,
    "DequantizeLinear": 2,
    "Elu": 3,
    "Gelu": 5,
    "GroupNormalization": 8,
    "HardSigmoid": 4,
    "HardSwish": 5,
    "InstanceNormalization": 8,
    "LayerNormalization": 8,
    "LogSoftmax": 5,
    "MeanVarianceNormalization": 6,
    "Mish": 4,
    "PRelu": 2,
    "QuantizeLinear": 3,
    "RMSNormalization": 5,
    "RotaryEmbedding": 3,
    "Sigmoid": 3,
    "Softmax": 5,
    "Softplus": 3,
    "Swish": 4,
    "com.microsoft::BiasGelu": 6,
    "com.microsoft::FastGelu": 8,
    "com.microsoft::Gelu": 5,
    "com.microsoft::QuickGelu": 5,
    "com.microsoft::RotaryEmbedding": 3,
    "com.microsoft::SkipLayerNormalization": 9,
    "com.microsoft::SkipSimplifiedLayerNormalization": 6,
}


_FOREVER = 1 << 31  # a Loop with such a limit ends by its condition


def flops(node: ir.Node, sizes: Sizes) -> int | None:
    """Operations of one run of a node, sub-graphs not counted.

    Products (convolutions, matrix products, attention, recurrences) are counted exactly, as two
    operations for each multiply-add; everything else is an estimate of a few operations per
    element, and moving data is free.

    Args:
        node: Whose inputs and outputs have shapes.
        sizes: Sizes of symbolic dims.

    Returns:
        The count; None where a shape is unknown or the operator is.
    """
    key = _key(node)
    if key in _MOVES:
        return 0
    rule = _PRODUCTS.get(key)
    if rule is not None:
        return rule(node, sizes)
    if key.startswith(("Arg", "Global", "Reduce")):
        return _elements(_dims(node, 0, sizes))
    if node.domain not in ("", "ai.onnx") and key not in _PER_ELEMENT:
        return None
    counts = [_elements(dims_of(output, sizes)) for output in node.outputs[:1]]
    if any(count is None for count in counts):
        return None
    return sum(count or 0 for count in counts) * _PER_ELEMENT.get(key, 1)


def dims_of(value: ir.Value | None, sizes: Sizes) -> Dims | None:
    """The dims of a value, with symbols replaced; None where one is unknown."""
    if value is None or value.shape is None:
        return None
    dims = [resolve(dim, sizes) for dim in value.shape]
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _dims(node: ir.Node, index: int, sizes: Sizes) -> Dims | None:
    return dims_of(node.inputs[index], sizes) if index < len(node.inputs) else None


def _elements(dims: Dims | None) -> int | None:
    return None if dims is None else math.prod(dims)


def _conv(weight: int) -> Callable[[ir.Node, Sizes], int | None]:
    def rule(node: ir.Node, sizes: Sizes) -> int | None:
        out, kernel = dims_of(node.outputs[0], sizes), _dims(node, weight, sizes)
        if out is None or kernel is None:
            return None
        return 2 * math.prod(out) * math.prod(kernel[1:])

    return rule


def _conv_transpose(node: ir.Node, sizes: Sizes) -> int | None:
    data, kernel = _dims(node, 0, sizes), _dims(node, 1, sizes)
    if data is None or kernel is None:
        return None
    return 2 * math.prod(data) * math.prod(kernel[1:])


def _matmul(node: ir.Node, sizes: Sizes) -> int | None:
    a, out = _dims(node, 0, sizes), dims_of(node.outputs[0], sizes)
    if not a or out is None:
        return None
    is_transposed = node.attributes.get_int("transA", 0) and len(a) > 1
    return 2 * math.prod(out) * (a[-2] if is_transposed else a[-1])


def _attention(query: int, key: int, past: int) -> Callable[[ir.Node, Sizes], int | None]:
    """Q K^T and P V, with the inputs at these places; no key means one as long as the query."""

    def rule(node: ir.Node, sizes: Sizes) -> int | None:
        q, k, before = (_dims(node, index, sizes) for index in (query, key, past))
        out = dims_of(node.outputs[0], sizes)
        if q is None or out is None or len(q) > 4:
            return None
        length = k[-2] if k is not None else q[-2]
        length += before[-2] if before is not None else 0
        return 2 * length * (math.prod(q) + math.prod(out))

    return rule


def _einsum(node: ir.Node, sizes: Sizes) -> int | None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    known: dict[str, int] = {}
    for index, term in enumerate(terms):
        dims = _dims(node, index, sizes)
        if dims is None or "." in term or len(dims) != len(term):
            return None
        known.update(zip(term, dims, strict=True))
    return math.prod(known.values()) * (2 if len(terms) > 1 else 1)


def _recurrent(node: ir.Node, sizes: Sizes) -> int | None:
    data, weight, recurrence = (_dims(node, index, sizes) for index in range(3))
    if data is None or weight is None or recurrence is None:
        return None
    return 2 * data[0] * data[1] * (math.prod(weight) + math.prod(recurrence))


def _pool(node: ir.Node, sizes: Sizes) -> int | None:
    out = dims_of(node.outputs[0], sizes)
    kernel = node.attributes.get_ints("kernel_shape", ())
    return None if out is None else math.prod(out) * math.prod(kernel)


def _resize(node: ir.Node, sizes: Sizes) -> int | None:
    out = dims_of(node.outputs[0], sizes)
    if out is None or node.attributes.get_string("mode", "nearest") == "nearest":
        return None if out is None else 0
    return math.prod(out) * 8


_PRODUCTS: dict[str, Callable[[ir.Node, Sizes], int | None]] = {
    "Attention": _attention(0, 1, 4),
    "AveragePool": _pool,
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _matmul,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MaxPool": _pool,
    "QLinearConv": _conv(3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "Resize": _resize,
    "com.microsoft::FusedConv": _conv(1),
    "com.microsoft::FusedMatMul": _matmul,
    "com.microsoft::GroupQueryAttention": _attention(0, 1, 3),
    "com.microsoft::MatMulNBits": _matmul,
    "com.microsoft::MultiHeadAttention": _attention(0, 1, 6),
}


def trip_count(node: ir.Node, sizes: Sizes) -> int | None:
    """How often a Loop (at most) or a Scan runs its body; None where that depends on data."""
    if node.op_type == "Loop":
        limit = scalar(node.inputs[0])
        return None if limit is None or limit >= _FOREVER else int(limit)
    count = node.attributes.get_int("num_scan_inputs", 1)
    axis = (node.attributes.get_ints("scan_input_axes", ()) or (0,))[0]
    dims = _dims(node, len(node.inputs) - count, sizes)
    return None if dims is None else dims[axis]
