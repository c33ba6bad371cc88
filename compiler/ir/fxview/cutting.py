"""Converters that cut tensors and pad them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_WHOLE = slice(None)
_FAR = 1 << 31  # bounds of slices beyond it mean "to the end"


@converts("Split", sizes=(1,), attributes=("axis", "num_outputs", "split"))
def split(node: Site, x: Expr, sizes: Any = None) -> Expr:
    """Parts along an axis, of given sizes or of one size, of which the last may fall short."""
    axis, count = node.attribute("axis", 0), len(node.node.outputs)
    sizes = node.attribute("split") if sizes is None else sizes
    if sizes is None:
        dims, parts = node.dims(0), node.attribute("num_outputs", count)
        total = dims[axis] if dims is not None else None
        sizes = -(-(x.size(axis) if total is None else total) // parts)
    made = torch.split(x, list(sizes) if isinstance(sizes, tuple) else sizes, axis)
    return tuple(made[index] for index in range(count))


@converts("Slice", sizes=(1, 2, 3, 4), attributes=("axes", "ends", "starts"), wide="bits")
def cut(
    node: Site, x: Expr, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Expr:
    """A range of each of some axes."""
    if starts is None:
        starts, ends = list(node.attribute("starts")), list(node.attribute("ends"))
        axes = node.attribute("axes")
    if not isinstance(starts, list) or not isinstance(ends, list):
        return slice_axes(x, starts, ends, axes, steps)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    rank = node.rank()
    numbers = [*axes, *steps] if isinstance(axes, list) and isinstance(steps, list) else [None]
    if rank is None or any(not isinstance(n, int) for n in numbers) or min(steps) < 0:
        return slice_axes(x, starts, ends, axes, steps)
    places = [_WHOLE] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(
            None if isinstance(start, int) and (start == 0 or start <= -_FAR) else start,
            None if isinstance(end, int) and end >= _FAR - 1 else end,
            None if step == 1 else step,
        )
    while places and places[-1] is _WHOLE:
        places.pop()
    return x[tuple(places)] if places else x


@recorded
def slice_axes(
    x: torch.Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> torch.Tensor:
    """A range of each axis, which may run backwards."""
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        first, last, step = slice(start, end, step).indices(x.size(axis))
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(first, last, step),)]
        else:
            x = x.index_select(axis, torch.arange(first, min(first, last), step, device=x.device))
    return x


@converts(
    "Pad", sizes=(1, 3), numbers=(2,), attributes=("mode", "paddings", "pads", "value"), wide="bits"
)
def pad(node: Site, x: Expr, pads: Any = None, value: Expr = None, axes: Any = None) -> Expr:
    """More elements at the ends of axes, or fewer: a value, the edge, or the inside mirrored."""
    pads = node.attribute("pads", node.attribute("paddings")) if pads is None else pads
    value = node.attribute("value", 0) if value is None else value
    mode = node.text("mode", "constant")
    is_list = isinstance(pads, Sequence)
    if mode != "constant" or not is_list or axes is not None or node.gives_tensor(2):
        return pad_axes(x, list(pads) if is_list else pads, mode, value, axes)
    rank = len(pads) // 2
    order = [pads[side * rank + axis] for axis in reversed(range(rank)) for side in (0, 1)]
    while len(order) > 2 and all(isinstance(n, int) and n == 0 for n in order[-2:]):
        del order[-2:]
    return F.pad(x, order, value=value)


@recorded
def pad_axes(
    x: torch.Tensor, pads: Sequence[int], mode: str, value: Any, axes: Sequence[int] | None
) -> torch.Tensor:
    """Pad each axis, in any mode."""
    axes = range(x.dim()) if axes is None else axes
    for index, axis in enumerate(axes):
        before, after = pads[index], pads[index + len(axes)]
        if before == after == 0:
            continue
        count = x.size(axis)
        if mode == "constant":
            axis %= x.dim()
            order = [0, 0] * (x.dim() - 1 - axis) + [before, after]
            x = F.pad(x, order, value=float(value) if x.is_floating_point() else int(value))
            continue
        at = torch.arange(-before, count + after, device=x.device)
        if mode == "reflect":
            period = max(2 * (count - 1), 1)
            at = at.remainder(period)
            at = torch.minimum(at, period - at) if count > 1 else at * 0
        else:
            at = at.clamp(0, count - 1) if mode == "edge" else at.remainder(count)
        x = x.index_select(axis, at)
    return x
