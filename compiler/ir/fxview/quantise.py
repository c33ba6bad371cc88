"""Converters of quantisation: to whole numbers and back, and products of whole numbers."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from aigcc.ir.fxview.dtypes import FLOAT8, TORCH, TRAINABLE, bounds, cast
from aigcc.ir.fxview.linear import CONV, convolve
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_MICROSOFT = ("com.microsoft",)
_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})
_BOTH = ("", "com.microsoft")
_MOVES = frozenset(
    {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze", "MaxPool", "Expand", "Tile"}
)


def _stays_float(node: Site) -> bool:
    """Whether quantised numbers may be held as floats, so that gradients can pass."""
    if not node.frame.conversion.straight_through or node.is_folding:
        return False
    pending = [node.node.outputs[0]]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return False
        for user, index in value.uses():
            if user.op_type in _MOVES and index == 0:
                pending.extend(user.outputs)
            elif user.op_type in _PRODUCTS and index < 2:
                if not _becomes_float(user):
                    return False
            elif not (user.op_type == "DequantizeLinear" and index == 0):
                return False
    return True


def _becomes_float(product: ir.Node) -> bool:
    """Whether a product of whole numbers goes to Casts to floats alone."""
    (value,) = product.outputs
    casts = [user for user, _ in value.uses() if user.op_type == "Cast"]
    return (
        bool(casts)
        and len(casts) == len(value.uses())
        and not value.is_graph_output()
        and all(ir.DataType(user.attributes.get_int("to")) in TRAINABLE for user in casts)
    )


def _in_32_bits(node: Site, product: Expr) -> Expr:
    """A product as int32, or as it is where gradients are to pass."""
    if node.frame.conversion.straight_through and _becomes_float(node.node):
        return product
    return product.to(torch.int32)


@recorded
def round_straight_through(x: torch.Tensor) -> torch.Tensor:
    """The nearest whole numbers; the gradient is that of `x` (https://arxiv.org/abs/1308.3432)."""
    return x + (x.round() - x).detach()


@recorded
def cast_straight_through(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest numbers of a type; the gradient is that of `x`."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


@recorded
def spread_blocks(scale: torch.Tensor, block: int, axis: int, like: torch.Tensor) -> torch.Tensor:
    """A scale for each block of elements, as one for each element of `like`."""
    return scale.repeat_interleave(block, axis).narrow(axis, 0, like.size(axis))


def _aligned(node: Site, scale: Expr, x: Expr) -> Expr:
    """A scale or zero point in a shape that broadcasts with `x`."""
    block, axis = node.attribute("block_size", 0), node.attribute("axis", 1)
    dims = node.dims(1)
    if dims is None:
        node.refuse("the rank of its scale is not known")
    if block:
        return spread_blocks(scale, block, axis, x)
    if not dims or dims == [1]:
        return scale.reshape(()) if dims else scale
    after = node.need_rank(0) - 1 - node.axis(axis)
    return scale.reshape((-1, *[1] * after)) if after else scale


@converts(
    "QuantizeLinear",
    domains=_BOTH,
    attributes=("axis", "block_size", "output_dtype", "precision", "saturate"),
    folds=False,
)
def quantize(node: Site, x: Expr, scale: Expr, zero: Expr = None) -> Expr:
    """`round(x / scale) + zero`, within the bounds of its type; halves go to the even neighbour."""
    to = _quantised_type(node)
    kind = ir.DataType(node.attribute("precision", 0) or node.dtype(1))
    y = _as(x, node.dtype(0), kind) / _as(_aligned(node, scale, x), node.dtype(1), kind)
    stays_float = _stays_float(node)
    low, high = bounds(to)
    if to in (*FLOAT8, ir.DataType.FLOAT4E2M1):
        if stays_float and to in FLOAT8:
            return cast_straight_through(y.clamp(low, high), TORCH[to])
        return cast(y, kind, to, node.flag("saturate", 1))
    y = round_straight_through(y) if node.frame.conversion.straight_through else y.round()
    y = _as(y, kind, ir.DataType.FLOAT)  # narrow floats do not hold all whole numbers
    if zero is not None and not _is_zero(node, 2):
        y = y + _aligned(node, zero, x).to(torch.float32)
    y = y.clamp(low, high)
    return y if stays_float else to_whole(y, TORCH[to])


def _as(x: Expr, source: ir.DataType, to: ir.DataType) -> Expr:
    return x if source == to else x.to(TORCH[to])


def _quantised_type(node: Site) -> ir.DataType:
    if node.has(2):
        return node.dtype(2)
    return ir.DataType(node.attribute("output_dtype", 0) or ir.DataType.UINT8)


@recorded
def to_whole(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floats that are whole numbers, in an integer type."""
    return x.to(torch.int32).to(dtype)


def _is_zero(node: Site, index: int) -> bool:
    found = node.constant(index)
    return found is not None and not found.astype("float32").any()


@converts(
    "DequantizeLinear",
    domains=_BOTH,
    attributes=("axis", "block_size", "output_dtype"),
    folds=False,
)
def dequantize(node: Site, x: Expr, scale: Expr, zero: Expr = None) -> Expr:
    """`(x - zero) * scale`."""
    y = x.to(torch.float32)
    if zero is not None and not _is_zero(node, 2):
        y = y - _aligned(node, zero, x).to(torch.float32)
    y = y * _as(_aligned(node, scale, x), node.dtype(1), ir.DataType.FLOAT)
    return _as(y, ir.DataType.FLOAT, node.out_dtype())


@converts("DynamicQuantizeLinear", folds=False)
def dynamic_quantize(node: Site, x: Expr) -> Expr:
    """To uint8 by the range that `x` has: the numbers, the scale, the zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(low == high, 1.0, (high - low) / 255)
    zero = (-low / scale).round().clamp(0, 255)
    through = node.frame.conversion.straight_through
    y = x / scale
    y = (round_straight_through(y) if through else y.round()) + zero
    y = y.clamp(0, 255)
    return (y if _stays_float(node) else y.to(torch.uint8)), scale, zero.to(torch.uint8)


@converts("MatMulInteger")
def matmul_integer(node: Site, a: Expr, b: Expr, a_zero: Expr = None, b_zero: Expr = None) -> Expr:
    """The product of whole numbers, less their zero points, in 32 bits."""
    # torch is slow at products of whole numbers; those of 53 bits are exact in doubles.
    left, right = a.to(torch.float64), b.to(torch.float64)
    if a_zero is not None:
        per_row = node.rank(2) == 1 and node.need_rank(0) > 1 and node.dims(2) != [1]
        left = left - (a_zero.unsqueeze(-1) if per_row else a_zero)
    if b_zero is not None:
        right = right - b_zero
    return _in_32_bits(node, torch.matmul(left, right))


@converts("ConvInteger", attributes=CONV)
def conv_integer(node: Site, x: Expr, w: Expr, x_zero: Expr = None, w_zero: Expr = None) -> Expr:
    """The convolution of whole numbers, less their zero points, in 32 bits."""
    source, weight = x.to(torch.float64), w.to(torch.float64)
    if x_zero is not None:
        source = source - x_zero
    if w_zero is not None:
        dims = node.dims(3)
        channels = (-1, *[1] * (node.need_rank(1) - 1))
        weight = weight - (w_zero if not dims or dims == [1] else w_zero.reshape(channels))
    return _in_32_bits(node, convolve(node, source, weight, None, node.need_rank(1) - 2))


@converts("QLinearMatMul", settings=(1, 2, 4, 5, 6, 7), folds=False)
def qlinear_matmul(node: Site, a: Expr, b: Expr) -> Expr:
    """MatMul between DequantizeLinear and QuantizeLinear."""
    left, right = _back(node, a, 1, -2), _back(node, b, 4, -1)
    return _forth(node, torch.matmul(left, right), 6)


@converts("QLinearConv", attributes=CONV, settings=(1, 2, 4, 5, 6, 7), folds=False)
def qlinear_conv(node: Site, x: Expr, w: Expr, bias: Expr = None) -> Expr:
    """Conv between DequantizeLinear and QuantizeLinear; the bias is in units of both scales."""
    y = convolve(node, _back(node, x, 1, 1), _back(node, w, 4, 0), None, node.need_rank(3) - 2)
    if bias is not None:
        scales = node.tensor(1) * node.tensor(4)
        y = y + (bias.to(y.dtype) * scales).reshape(-1, *[1] * (node.need_rank(0) - 2))
    return _forth(node, y, 6)


def _back(node: Site, x: Expr, index: int, axis: int) -> Expr:
    """`(x - zero) * scale`, where the inputs from `index` on are the scale and the zero point."""
    scale, zero = (node.tensor(at).to(torch.float32) for at in (index, index + 1))
    if node.rank(index) == 1 and node.dims(index) != [1]:
        rank = node.need_rank(index - 1)
        after = rank - 1 - axis % rank
        scale, zero = (part.reshape(-1, *[1] * after) if after else part for part in (scale, zero))
    return (x.to(torch.float32) - zero) * scale


def _forth(node: Site, y: Expr, index: int) -> Expr:
    to = node.dtype(index + 1)
    zero = node.tensor(index + 1).to(torch.float32)
    made = (y / node.tensor(index)).round() + zero
    return made.clamp(*bounds(to)).to(TORCH[to])


@converts(
    "MatMulNBits",
    domains=_MICROSOFT,
    # How exact the runtime's kernel is says nothing of what is asked for.
    attributes=("K", "N", "accuracy_level", "bits", "block_size"),
    neutral={"weight_prepacked": 0},
    folds=False,
)
def matmul_nbits(
    node: Site,
    a: Expr,
    packed: Expr,
    scales: Expr,
    zeros: Expr = None,
    order: Expr = None,
    bias: Expr = None,
) -> Expr:
    """`a` times the transpose of a weight that is stored in few bits, in blocks along its rows."""
    if order is not None:
        node.refuse("its columns are in another order (g_idx)")
    rows, columns, bits = node.attribute("N"), node.attribute("K"), node.attribute("bits", 4)
    blocks = -(-columns // node.attribute("block_size"))
    is_packed = zeros is not None and node.dtype(3) == ir.DataType.UINT8
    weight = unpack(packed.reshape(rows, blocks, -1), bits).to(scales.dtype)
    zero: Any = 1 << (bits - 1)
    if zeros is not None:
        zero = unpack(zeros.reshape(rows, -1), bits)[:, :blocks] if is_packed else zeros
        zero = zero.reshape(rows, blocks, 1).to(scales.dtype)
    weight = ((weight - zero) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)
    return F.linear(a, weight[:, :columns].to(a.dtype), bias)


@recorded
def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers of a few bits from bytes along the last axis, the low bits first."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    parts = packed.unsqueeze(-1).bitwise_right_shift(shifts) & ((1 << bits) - 1)
    return parts.flatten(-2)
