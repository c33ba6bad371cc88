"""Converters of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.dtypes import bounds
from aigcc.ir.fxview.linear import pad_same
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.reduce import all_axes
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

_WINDOW = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


@converts("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", attributes=("p",))
def global_pool(node: Site, x: Expr) -> Expr:
    """The mean, the maximum or the p-norm over all but the first two axes."""
    rank = node.rank()
    axes = all_axes(x)[2:] if rank is None else tuple(range(2, rank))
    if node.node.op_type == "GlobalLpPool":
        return torch.linalg.vector_norm(x, node.attribute("p", 2), axes, True)
    return x.mean(axes, True) if node.node.op_type == "GlobalAveragePool" else x.amax(axes, True)


class _Window:
    """The attributes that all kinds of pooling share."""

    def __init__(self, node: Site) -> None:
        self.kernel = tuple(node.attribute("kernel_shape"))
        self.rank = len(self.kernel)
        ones = (1,) * self.rank
        self.stride = tuple(node.attribute("strides", ones))
        self.dilation = tuple(node.attribute("dilations", ones))
        self.auto = node.text("auto_pad", "NOTSET")
        pads = tuple(node.attribute("pads", (0,) * (2 * self.rank)))
        self.pads = (0,) * (2 * self.rank) if self.auto == "VALID" else pads
        self.ceil = node.flag("ceil_mode")
        if self.rank not in _MAX:
            node.refuse(f"torch pools over one to three axes, not over {self.rank}")

    def is_plain(self) -> bool:
        """Whether torch can pad by itself."""
        begin, end = self.pads[: self.rank], self.pads[self.rank :]
        fits = all(2 * pad <= size for pad, size in zip(begin, self.kernel, strict=True))
        return begin == end and fits and not self.auto.startswith("SAME")

    def pad(self, x: Expr, value: float) -> Expr:
        """`x` with its borders, and with what rounding up the number of steps needs."""
        if self.auto.startswith("SAME"):
            is_upper = self.auto == "SAME_UPPER"
            return pad_same(x, self.kernel, self.stride, self.dilation, is_upper, value)
        steps = (self.kernel, self.stride, self.dilation)
        return pad_window(x, self.pads, *steps, self.ceil, value)


@recorded
def pad_window(
    x: torch.Tensor,
    pads: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
    value: float,
) -> torch.Tensor:
    """`x` with its borders; with `ceil`, the end is filled for a last window that starts inside."""
    rank, order = len(kernel), list[int]()
    for axis in range(rank):
        begin, end = pads[axis], pads[axis + rank]
        size, reach = x.size(2 + axis), (kernel[axis] - 1) * dilation[axis] + 1
        free = size + begin + end - reach
        steps = -(-free // stride[axis]) if ceil else free // stride[axis]
        if ceil and steps * stride[axis] >= size + begin:
            steps -= 1
        order = [begin, steps * stride[axis] + reach - size - begin, *order]
    return F.pad(x, order, value=value)


@converts("MaxPool", attributes=_WINDOW)
def max_pool(node: Site, x: Expr) -> Expr:
    """The largest element of each window."""
    window = _Window(node)
    places = node.node.outputs[1:]
    if any(value.uses() or value.is_graph_output() for value in places):
        node.refuse("its indices are used")
    lowest = -torch.inf if node.is_float() else bounds(node.dtype())[0]
    source = x if window.is_plain() else window.pad(x, lowest)
    padding = window.pads[: window.rank] if window.is_plain() else 0
    ceil = window.ceil and window.is_plain()
    function = _MAX[window.rank]
    if node.is_float():
        return function(source, window.kernel, window.stride, padding, window.dilation, ceil)
    wide = source.to(torch.float32)
    y = function(wide, window.kernel, window.stride, padding, window.dilation, ceil)
    return y.to(node.torch_dtype())


@converts("AveragePool", attributes=(*_WINDOW, "count_include_pad"))
def average_pool(node: Site, x: Expr) -> Expr:
    """The mean of each window, with or without what was padded."""
    window = _Window(node)
    is_counted = node.flag("count_include_pad")
    is_dense = all(step == 1 for step in window.dilation)
    if window.is_plain() and is_dense:
        padding = window.pads[: window.rank]
        pool = _AVERAGE[window.rank]
        return pool(x, window.kernel, window.stride, padding, window.ceil, is_counted)
    weight = torch.ones_like(x)
    if is_counted and not window.auto.startswith("SAME"):
        weight = F.pad(weight, _order(window), value=1.0)
        weight = _fill(window, weight)
    else:
        weight = window.pad(weight, 0.0)
    sums = [
        sum_windows(y, window.kernel, window.stride, window.dilation)
        for y in (window.pad(x, 0.0), weight)
    ]
    return sums[0] / sums[1]


def _order(window: _Window) -> list[int]:
    begin, end = window.pads[: window.rank], window.pads[window.rank :]
    return [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]


def _fill(window: _Window, weight: Expr) -> Expr:
    """Zeros beyond the borders, for windows that reach over the end."""
    steps = (window.kernel, window.stride, window.dilation)
    return pad_window(weight, (0,) * (2 * window.rank), *steps, window.ceil, 0.0)


@converts("LpPool", attributes=(*_WINDOW, "p"))
def lp_pool(node: Site, x: Expr) -> Expr:
    """The p-norm of each window."""
    window, p = _Window(node), node.attribute("p", 2)
    powers = window.pad(x, 0.0).abs().pow(p)
    return sum_windows(powers, window.kernel, window.stride, window.dilation).pow(1 / p)


@recorded
def sum_windows(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """The sum of each window."""
    channels, rank = x.size(1), len(kernel)
    weight = torch.ones(channels, 1, *kernel, dtype=x.dtype, device=x.device)
    zeros = (0,) * rank
    return torch.convolution(x, weight, None, stride, zeros, dilation, False, zeros, channels)
