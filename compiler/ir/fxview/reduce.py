"""Converters of reductions, of arg-max and arg-min, and of running sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site
from aigcc.ir.fxview.unsigned import WIDER

_REDUCE: dict[str, Any] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": lambda x, axes, keep: product(x, axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}
_ORDERED = ("ReduceMax", "ReduceMin")
_EXACT = ("ReduceL1", "ReduceProd", "ReduceSum", "ReduceSumSquare")
_ATTRIBUTES = ("axes", "keepdims", "noop_with_empty_axes")
# Of whole numbers torch takes neither of these.
_IN_FLOATS = frozenset({"ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"})


@converts(*_ORDERED, sizes=(1,), attributes=_ATTRIBUTES, wide="order")
@converts(*_EXACT, sizes=(1,), attributes=_ATTRIBUTES, wide="bits")
@converts(*_IN_FLOATS, sizes=(1,), attributes=_ATTRIBUTES)
def reduce(node: Site, x: Expr, axes: Any = None) -> Expr:
    """One of the reductions over some axes, or over all."""
    op, in_floats = node.node.op_type, node.node.op_type in _IN_FLOATS
    if op == "ReduceL1" and node.dtype() in WIDER:
        op = "ReduceSum"  # the bits may look like those of a negative number
    axes = node.attribute("axes") if axes is None else axes
    keep, is_noop = node.flag("keepdims", 1), node.flag("noop_with_empty_axes")
    source = x.to(torch.float64) if in_floats and not node.is_float() else x
    if axes is None and not is_noop and node.rank():
        axes = range(node.need_rank())
    if _is_plain(node, axes):
        made = _REDUCE[op](source, tuple(axes), keep)
    else:
        made = reduced(source, op, axes, keep, is_noop)
    if node.is_float() or (node.dtype() in WIDER and not in_floats):
        return made
    return made.to(node.torch_dtype())  # torch sums whole numbers in 64 bits


def _is_plain(node: Site, axes: Any) -> bool:
    """Whether axes are known, and torch can reduce them: of nothing it finds no maximum."""
    if not isinstance(axes, Sequence) or not axes or not all(isinstance(n, int) for n in axes):
        return False
    dims = node.dims(0)
    is_safe = node.node.op_type not in _ORDERED
    return is_safe or (dims is not None and all(dims[axis] for axis in axes))


@recorded
def reduced(
    x: torch.Tensor, op: str, axes: Sequence[int] | None, keep: bool, is_noop: bool
) -> torch.Tensor:
    """A reduction, at axes that may be computed, and none; over a set that may be empty.

    Args:
        x: What is reduced.
        op: The ONNX operator.
        axes: None and an empty list mean all axes, or, for `is_noop`, none.
        keep: Whether an axis that is reduced stays, with one element.
        is_noop: See `axes`.
    """
    if not axes:
        axes = () if is_noop else range(x.dim())
    places = tuple(axis % x.dim() for axis in axes)
    if not places:
        return cast(torch.Tensor, _alone(op, x))
    if op in _ORDERED and any(x.size(axis) == 0 for axis in places):
        kept = enumerate(x.shape)
        shape = [1 if at in places else size for at, size in kept if keep or at not in places]
        return torch.full(shape, _of_nothing(op == "ReduceMax", x.dtype), device=x.device).to(x)
    return cast(torch.Tensor, _REDUCE[op](x, places, keep))


def _of_nothing(is_largest: bool, dtype: torch.dtype) -> float | int | bool:
    """The maximum or the minimum of no numbers."""
    if dtype == torch.bool:
        return not is_largest
    if dtype.is_floating_point:
        return -math.inf if is_largest else math.inf
    bounds = torch.iinfo(dtype)
    return bounds.min if is_largest else bounds.max


def _alone(op: str, x: Expr) -> Expr:
    """What is left of a reduction over no axis."""
    if op in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if op == "ReduceSumSquare":
        return x.square()
    return x.log() if op == "ReduceLogSum" else x


@recorded
def all_axes(x: torch.Tensor) -> tuple[int, ...]:
    """Every axis of a tensor."""
    return tuple(range(x.dim()))


@recorded
def product(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    """The product over several axes, which torch takes over one."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@converts("ArgMax", "ArgMin", attributes=("axis", "keepdims", "select_last_index"), wide="order")
def arg_extreme(node: Site, x: Expr) -> Expr:
    """Where along an axis the largest or the smallest element is: the first, or the last."""
    axis, keep = node.attribute("axis", 0), node.flag("keepdims", 1)
    is_last = node.flag("select_last_index")
    source = x.flip(axis) if is_last else x
    function = torch.argmax if node.node.op_type == "ArgMax" else torch.argmin
    found = function(source, axis, keep)
    return x.size(axis) - 1 - found if is_last else found


@converts("CumSum", "CumProd", sizes=(1,), attributes=("exclusive", "reverse"), wide="bits")
def running(node: Site, x: Expr, axis: Any) -> Expr:
    """The sum or product of all elements up to each, or of those before it (exclusive)."""
    (axis,) = axis if isinstance(axis, list) else (axis[0],)
    is_sum = node.node.op_type == "CumSum"
    reverse, exclusive = node.flag("reverse"), node.flag("exclusive")
    source = x.flip(axis) if reverse else x
    if exclusive:
        source = shifted(source, axis, 0 if is_sum else 1)
    made = source.cumsum(axis) if is_sum else source.cumprod(axis)
    if not node.is_float():
        made = made.to(node.torch_dtype())
    return made.flip(axis) if reverse else made


@recorded
def shifted(x: torch.Tensor, axis: int, first: float) -> torch.Tensor:
    """All elements one place further along an axis; the last is lost, `first` comes in."""
    if not x.size(axis):
        return x
    start = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat([start, x.narrow(axis, 0, x.size(axis) - 1)], axis)
