"""Converters of reductions, of arg-max and arg-min, and of running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

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
_IN_FLOATS = frozenset(
    {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceL1", "ReduceSumSquare"}
)


@converts(*_REDUCE, sizes=(1,))
def reduce(node: Site, x: Expr, axes: Any = None) -> Expr:
    """One of the reductions over some axes, or over all."""
    op = node.node.op_type
    axes = node.attribute("axes") if axes is None else axes
    if axes is None or (isinstance(axes, Sequence) and not axes):
        if node.flag("noop_with_empty_axes"):
            return _alone(op, x)
        rank = node.rank()
        axes = all_axes(x) if rank is None else tuple(range(rank))
        if axes == ():
            return _alone(op, x)
    if isinstance(axes, Sequence):
        axes = tuple(axes)
    keep = node.flag("keepdims", 1)
    if node.is_float():
        return _REDUCE[op](x, axes, keep)
    # torch takes no root or mean of whole numbers, and sums them in 64 bits.
    wide = x.to(torch.float64) if op in _IN_FLOATS else x
    return _REDUCE[op](wide, axes, keep).to(node.torch_dtype())


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


@converts("ArgMax", "ArgMin")
def arg_extreme(node: Site, x: Expr) -> Expr:
    """Where along an axis the largest or the smallest element is: the first, or the last."""
    axis, keep = node.attribute("axis", 0), node.flag("keepdims", 1)
    is_last = node.flag("select_last_index")
    source = x.flip(axis) if is_last else x
    function = torch.argmax if node.node.op_type == "ArgMax" else torch.argmin
    found = function(source, axis, keep)
    return x.size(axis) - 1 - found if is_last else found


@converts("CumSum", "CumProd", sizes=(1,))
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
