"""Converters that rearrange elements: reshape, transpose, join, repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from aigcc.ir.fxview.recording import Expr, call, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site, Sizes, tensor_of


@converts("Shape", attributes=("end", "start"))
def shape(node: Site, x: Expr) -> Expr:
    """The shape as a tensor, where the rank is not known: else see `sizes`."""
    dims = x.shape[node.attribute("start", 0) : node.attribute("end")]
    return tensor_of(dims, torch.int64, node.device)


@converts("Size")
def size(node: Site, x: Expr) -> Expr:
    """The number of elements."""
    return tensor_of(x.numel(), torch.int64, node.device)


@converts("Reshape", sizes=(1,), attributes=("allowzero", "shape"))
def reshape(node: Site, x: Expr, sizes: Any = None) -> Expr:
    """The same elements in another shape; a 0 keeps the dim, unless `allowzero`."""
    sizes = list(node.attribute("shape")) if sizes is None else sizes
    if node.flag("allowzero"):
        return x.reshape(sizes)
    # Sizes that are computed from shapes are no sign that a dim is kept; others may be 0.
    is_sized = not node.has(1) or isinstance(node.handle(1), Sizes)
    if isinstance(sizes, list) and (is_sized or all(isinstance(size, int) for size in sizes)):
        return x.reshape(
            [
                x.size(axis) if isinstance(size, int) and size == 0 else size
                for axis, size in enumerate(sizes)
            ]
        )
    return reshape_keeping(x, sizes)


@recorded
def reshape_keeping(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Reshape where a 0 keeps the dim."""
    return x.reshape([n or x.size(axis) for axis, n in enumerate(sizes)])


@converts("Flatten", attributes=("axis",))
def flatten(node: Site, x: Expr) -> Expr:
    """A matrix: the axes before `axis`, and the others."""
    axis = node.attribute("axis", 1)
    if axis == 0:
        return x.reshape(1, -1)
    rank = node.rank()
    if axis < 0 or rank is None:
        return flatten_at(x, axis)
    if axis == rank:
        return x.reshape(-1, 1)
    made = x.flatten(axis) if rank - axis > 1 else x
    return made.flatten(0, axis - 1) if axis > 1 else made


@recorded
def flatten_at(x: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix: the axes before `axis`, and the others."""
    axis %= x.dim() + (axis == x.dim())
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


@converts("Squeeze", sizes=(1,), attributes=("axes",))
def squeeze(node: Site, x: Expr, axes: Any = None) -> Expr:
    """Without some axes of size one, or without all of them."""
    axes = node.attribute("axes") if axes is None else axes
    if axes is None:
        return x.squeeze()
    if not isinstance(axes, Sequence) or any(isinstance(axis, fx.Proxy) for axis in axes):
        return without_axes(x, axes)
    return x.squeeze(axes[0] if len(axes) == 1 else tuple(axes))


@recorded
def without_axes(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """`x` without axes of size one."""
    return x.squeeze(tuple(axes))


@converts("Unsqueeze", sizes=(1,), attributes=("axes",))
def unsqueeze(node: Site, x: Expr, axes: Any = None) -> Expr:
    """With new axes of size one, at these places of the result."""
    axes = node.attribute("axes") if axes is None else axes
    if not isinstance(axes, Sequence) or any(isinstance(axis, fx.Proxy) for axis in axes):
        return with_axes(x, axes)
    if any(axis < 0 for axis in axes) and any(axis >= 0 for axis in axes):
        rank = node.need_rank() + len(axes)
        axes = [axis % rank for axis in axes]
    # Seen from the front, or from the back, an axis keeps its place when one comes beyond it.
    for axis in sorted(axes, reverse=axes[0] < 0 if axes else False):
        x = x.unsqueeze(axis)
    return x


@recorded
def with_axes(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """`x` with new axes of size one, at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@converts("Transpose", attributes=("perm",))
def transpose(node: Site, x: Expr) -> Expr:
    """The axes in another order; reversed, if none is given."""
    order = node.attribute("perm")
    if order is None:
        order = range(node.need_rank())[::-1]
    moved = [axis for axis, source in enumerate(order) if axis != source]
    if not moved:
        return x
    return x.transpose(*moved) if len(moved) == 2 else x.permute(tuple(order))


@converts("Concat", attributes=("axis",))
def concat(node: Site, *parts: Expr) -> Expr:
    """Tensors, one after the other along an axis."""
    return call(torch.cat, list(parts), node.attribute("axis", 1))


@converts("Expand", sizes=(1,))
def expand(node: Site, x: Expr, sizes: Any) -> Expr:
    """`x`, repeated where it has a dim of one; a size of one keeps the dim of `x`."""
    return broadcast_with(x, sizes)


@recorded
def broadcast_with(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """`x` in the shape that it and `sizes` broadcast to."""
    return x.expand(np.broadcast_shapes(x.shape, tuple(sizes)))


@converts("Tile", sizes=(1,))
def tile(node: Site, x: Expr, repeats: Any) -> Expr:
    """Copies of `x` side by side."""
    return x.repeat(repeats)


@converts("DepthToSpace", attributes=("blocksize", "mode"), wide="bits")
def depth_to_space(node: Site, x: Expr) -> Expr:
    """Blocks of channels as squares of pixels."""
    block = node.attribute("blocksize")
    is_crd = node.text("mode", "DCR") == "CRD"
    if is_crd and node.is_float():
        return F.pixel_shuffle(x, block)
    n, c, h, w = (x.size(axis) for axis in range(4))
    if is_crd:
        y = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(n, c // block**2, h * block, w * block)
    y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


@converts("SpaceToDepth", attributes=("blocksize", "mode"))
def space_to_depth(node: Site, x: Expr) -> Expr:
    """Squares of pixels as blocks of channels; or, for CRD, the channels of each place together."""
    block = node.attribute("blocksize")
    order = (0, 1, 3, 5, 2, 4) if node.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    n, c, h, w = (x.size(axis) for axis in range(4))
    y = x.reshape(n, c, h // block, block, w // block, block).permute(order)
    return y.reshape(n, c * block**2, h // block, w // block)
