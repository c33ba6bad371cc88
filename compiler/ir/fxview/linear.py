"""Converters of matrix products, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.recording import Expr, call, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_UNCONV: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""The attributes that all convolutions share."""

_ACTIVATION = ("activation", "activation_alpha", "activation_beta", "activation_params")


@converts("MatMul", wide="bits")
def matmul(node: Site, a: Expr, b: Expr) -> Expr:
    """The product of matrices, or of stacks of them."""
    return torch.matmul(a, b)


@converts("Gemm", attributes=("alpha", "beta", "broadcast", "transA", "transB"), wide="bits")
def gemm(node: Site, a: Expr, b: Expr, c: Expr = None) -> Expr:
    """`alpha * A @ B + beta * C`, where A and B may be transposed."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    a = a.transpose(0, 1) if node.flag("transA") else a
    if alpha == 1 and beta == 1 and (c is None or node.rank(2) == 1) and _same_dim(node):
        return F.linear(a, b if node.flag("transB") else b.transpose(0, 1), c)
    y = torch.matmul(a, b.transpose(0, 1) if node.flag("transB") else b)
    y = y if alpha == 1 else alpha * y
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else beta * c)


def _same_dim(node: Site) -> bool:
    """Whether the bias has an element for each column: F.linear repeats none."""
    bias, weight = node.dims(2), node.dims(1)
    width = weight[0 if node.flag("transB") else 1] if weight else None
    return bias is None or (width is not None and bias[0] == width)


@converts("Einsum", attributes=("equation",), wide="bits")
def einsum(node: Site, *operands: Expr) -> Expr:
    """Sums of products in Einstein's notation."""
    return call(torch.einsum, node.text("equation", "").replace(" ", ""), *operands)


@converts(
    "FusedMatMul",
    domains=("com.microsoft",),
    attributes=("alpha", "transA", "transB", "transBatchA", "transBatchB"),
)
def fused_matmul(node: Site, a: Expr, b: Expr) -> Expr:
    """`alpha * A @ B`, where the last two axes, or the batch's, may be turned before."""
    a, b = (
        _turned(x, node.flag(f"trans{side}"), node.flag(f"transBatch{side}"), node.need_rank(index))
        for index, (x, side) in enumerate(((a, "A"), (b, "B")))
    )
    y, alpha = torch.matmul(a, b), node.attribute("alpha", 1.0)
    return y if alpha == 1 else alpha * y


def _turned(x: Expr, is_turned: bool, is_batch_turned: bool, rank: int) -> Expr:
    if is_batch_turned:
        x = x.permute((*range(1, rank - 1), 0, rank - 1))
    return x.transpose(-2, -1) if is_turned and rank > 1 else x


@converts(
    "FusedGemm",
    domains=("com.microsoft",),
    attributes=("alpha", "beta", "transA", "transB", *_ACTIVATION),
    neutral={"activation_gamma": 0.0},
)
def fused_gemm(node: Site, a: Expr, b: Expr, c: Expr = None) -> Expr:
    """Gemm, then an activation."""
    return activate(node, gemm(node, a, b, c))


def activate(node: Site, y: Expr) -> Expr:
    """The activation that a fused operator carries."""
    name = node.text("activation", "")
    alpha, beta = node.attribute("activation_alpha", 0.01), node.attribute("activation_beta", 0.0)
    params = node.attribute("activation_params")
    if params:
        alpha, beta = params[0], params[-1]
    known: dict[str, Any] = {
        "": lambda: y,
        "Relu": lambda: F.relu(y),
        "Sigmoid": lambda: torch.sigmoid(y),
        "Tanh": lambda: torch.tanh(y),
        "LeakyRelu": lambda: F.leaky_relu(y, alpha),
        "Clip": lambda: y.clamp(alpha, beta),
        "HardSigmoid": lambda: (alpha * y + beta).clamp(0, 1),
    }
    if name not in known:
        node.refuse(f"its activation {name!r} is not known")
    return known[name]()


@converts("Conv", attributes=CONV)
def conv(node: Site, x: Expr, weight: Expr, bias: Expr = None) -> Expr:
    """Convolution over any number of axes."""
    return convolve(node, x, weight, bias, _spatial(node))


def convolve(node: Site, x: Expr, weight: Expr, bias: Expr, rank: int) -> Expr:
    """Convolution over `rank` axes, by the attributes of a node."""
    stride, dilation = _each(node, "strides", rank), _each(node, "dilations", rank)
    groups = node.attribute("group", 1)
    x, padding = padded(node, x, weight.shape[2:], stride, dilation, 0.0)
    if rank in _CONV:
        return _CONV[rank](x, weight, bias, stride, padding, dilation, groups)
    zeros = (0,) * rank
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)


@converts("FusedConv", domains=("com.microsoft",), attributes=(*CONV, *_ACTIVATION))
def fused_conv(node: Site, x: Expr, weight: Expr, bias: Expr = None, add: Expr = None) -> Expr:
    """Conv, plus a tensor, then an activation."""
    y = conv(node, x, weight, bias)
    return activate(node, y if add is None else y + add)


def _spatial(node: Site) -> int:
    """The number of axes that a window moves along."""
    kernel = node.attribute("kernel_shape")
    if kernel is not None:
        return len(kernel)
    rank = node.rank(1) if len(node.node.inputs) > 1 else node.rank(0)
    if rank is None:
        node.refuse("the rank of its weight is not known")
    return rank - 2


def _each(node: Site, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    return tuple(node.attribute(name) or (default,) * rank)


def padded(
    node: Site, x: Expr, kernel: Any, stride: Any, dilation: Any, value: float
) -> tuple[Expr, tuple[int, ...]]:
    """`x`, padded by itself where torch cannot, and the padding that is left to torch."""
    rank = len(stride)
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return pad_same(x, kernel, stride, dilation, auto == "SAME_UPPER", value), (0,) * rank
    pads = (0,) * (2 * rank) if auto == "VALID" else _each(node, "pads", 2 * rank, 0)
    begin, end = pads[:rank], pads[rank:]
    if begin == end:
        return x, begin
    order = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return F.pad(x, order, value=value), (0,) * rank


@recorded
def pad_same(
    x: torch.Tensor, kernel: Any, stride: Any, dilation: Any, is_upper: bool, value: float
) -> torch.Tensor:
    """`x` padded so that a window takes ceil(size / stride) steps along each axis."""
    order: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        order = [*((small, large) if is_upper else (large, small)), *order]
    return F.pad(x, order, value=value)


@converts("ConvTranspose", attributes=(*CONV, "output_padding", "output_shape"))
def conv_transpose(node: Site, x: Expr, weight: Expr, bias: Expr = None) -> Expr:
    """The transpose of a convolution."""
    rank = _spatial(node)
    stride, dilation = _each(node, "strides", rank), _each(node, "dilations", rank)
    extra, pads = _each(node, "output_padding", rank, 0), _each(node, "pads", 2 * rank, 0)
    groups, goal = node.attribute("group", 1), node.attribute("output_shape")
    auto = node.text("auto_pad", "NOTSET")
    pads = (0,) * (2 * rank) if auto == "VALID" else pads
    begin, end = pads[:rank], pads[rank:]
    is_plain = goal is None and not auto.startswith("SAME") and begin == end
    if is_plain and rank in _UNCONV:
        return _UNCONV[rank](x, weight, bias, stride, begin, extra, groups, dilation)
    whole = torch.convolution(
        x, weight, bias, stride, (0,) * rank, dilation, True, (0,) * rank, groups
    )
    if auto.startswith("SAME") and goal is None:
        goal = [x.size(2 + axis) * stride[axis] for axis in range(rank)]
    if goal is None:
        return crop(whole, begin, [e - o for e, o in zip(end, extra, strict=True)])
    return crop_to(whole, list(goal)[-rank:], extra, auto == "SAME_UPPER")


@recorded
def crop(x: torch.Tensor, begin: Sequence[int], end: Sequence[int]) -> torch.Tensor:
    """`x` without its borders; a negative border is added."""
    order = [-n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return F.pad(x, order)


@recorded
def crop_to(
    x: torch.Tensor, sizes: Sequence[int], extra: Sequence[int], is_upper: bool
) -> torch.Tensor:
    """The middle of `x`; of an odd border, the larger part goes at the end for `is_upper`."""
    totals = [n + e - size for n, e, size in zip(x.shape[2:], extra, sizes, strict=True)]
    small = [total // 2 if is_upper else total - total // 2 for total in totals]
    rest = [t - s - e for t, s, e in zip(totals, small, extra, strict=True)]
    return crop(x, small, rest)
