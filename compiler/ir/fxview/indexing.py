"""Converters that take and put elements by their place."""

from __future__ import annotations

import math
from typing import Any

import torch

from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@converts("Gather", attributes=("axis",))
def gather(node: Site, x: Expr, indices: Expr) -> Expr:
    """Slices of `x` along an axis; a negative index counts from the end."""
    axis, found = node.axis(node.attribute("axis", 0)), node.constant(1)
    if found is not None and found.ndim == 0:
        return x.select(axis, int(found))
    if axis < 0:
        node.need_rank()
    return x[(*[slice(None)] * axis, indices)] if axis else x[indices]


@converts("GatherElements", attributes=("axis",), wide="bits")
def gather_elements(node: Site, x: Expr, indices: Expr) -> Expr:
    """For each place of `indices`, the element of `x` that it names along an axis."""
    axis = node.attribute("axis", 0)
    return torch.gather(x, axis, _from_front(node, x, indices, axis))


def _from_front(node: Site, x: Expr, indices: Expr, axis: int) -> Expr:
    """Indices along an axis as torch wants them: int64, and none negative."""
    found = node.constant(1)
    wide = indices.to(torch.int64)
    if found is not None and (found >= 0).all():
        return wide
    return torch.where(wide < 0, wide + x.size(axis), wide)


@converts("GatherND", attributes=("batch_dims",))
def gather_nd(node: Site, x: Expr, indices: Expr) -> Expr:
    """For each vector of `indices`, the element or slice of `x` that it names."""
    return take_nd(x, indices, node.attribute("batch_dims", 0))


@recorded
def take_nd(x: torch.Tensor, indices: torch.Tensor, batch: int) -> torch.Tensor:
    """The elements of `x` at vectors of places, after `batch` leading axes that are shared."""
    rows = x.flatten(0, batch - 1) if batch else x.unsqueeze(0)
    at = indices.flatten(0, batch - 1) if batch else indices.unsqueeze(0)
    first = torch.arange(rows.size(0), device=x.device)
    first = first.reshape(-1, *[1] * (at.dim() - 2)).expand(at.shape[:-1])
    found = rows[(first, *at.unbind(-1))]
    return found.reshape(*x.shape[:batch], *found.shape[1:]) if batch else found.squeeze(0)


@converts("ScatterElements", "Scatter", attributes=("axis", "reduction"), wide="bits")
def scatter(node: Site, x: Expr, indices: Expr, updates: Expr) -> Expr:
    """`x` with some elements replaced, or combined with new ones."""
    axis, how = node.attribute("axis", 0), node.text("reduction", "none")
    places = _from_front(node, x, indices, axis)
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTER[how])


@converts("ScatterND", attributes=("reduction",), wide="bits")
def scatter_nd(node: Site, x: Expr, indices: Expr, updates: Expr) -> Expr:
    """`x` with some elements or slices replaced, or combined with new ones."""
    return put_nd(x, indices, updates, node.text("reduction", "none"))


@recorded
def put_nd(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, how: str) -> torch.Tensor:
    """`x` with `updates` at vectors of places."""
    places = indices.unbind(-1)
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    depth = indices.size(-1)
    sizes, width = x.shape[:depth], math.prod(x.shape[depth:])
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + torch.where(place < 0, place + size, place)
    index = flat.reshape(-1, 1).expand(-1, width)
    rows = x.reshape(math.prod(sizes), width)
    made = rows.scatter_reduce(0, index, updates.reshape(-1, width), _SCATTER[how])
    return made.reshape(x.shape)


@converts("NonZero", wide="bits")
def non_zero(node: Site, x: Expr) -> Expr:
    """The places of all elements that are not zero, a column for each."""
    return torch.nonzero(x).transpose(0, 1)


@converts("OneHot", sizes=(1,), attributes=("axis",))
def one_hot(node: Site, indices: Expr, depth: Any, values: Expr) -> Expr:
    """A new axis that is `values[1]` at the index and `values[0]` elsewhere."""
    return spread(indices, depth[0], values, node.attribute("axis", -1))


@recorded
def spread(indices: torch.Tensor, depth: int, values: torch.Tensor, axis: int) -> torch.Tensor:
    """A new axis that is `values[1]` at the index and `values[0]` elsewhere."""
    wide = indices.to(torch.int64)
    wide = torch.where(wide < 0, wide + depth, wide).unsqueeze(-1)
    hit = wide == torch.arange(depth, device=indices.device)
    return torch.where(hit, values[1], values[0]).movedim(-1, axis)


@converts("Compress", attributes=("axis",), wide="bits")
def compress(node: Site, x: Expr, condition: Expr) -> Expr:
    """The slices along an axis, or the elements, for which the condition holds."""
    return keep(x, condition, node.attribute("axis"))


@recorded
def keep(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """What a vector of truth values selects; it may be shorter than the axis."""
    return torch.index_select(
        x.reshape(-1) if axis is None else x, axis or 0, condition.nonzero().reshape(-1)
    )


@converts("TopK", sizes=(1,), attributes=("axis", "k", "largest", "sorted"), wide="order")
def top_k(node: Site, x: Expr, count: Any = None) -> Expr:
    """The first along an axis when sorted, and their places; equals keep their order."""
    k = node.attribute("k") if count is None else count[0]
    axis = node.attribute("axis", -1)
    values, indices = top(x, k, axis, node.flag("largest", 1))
    return values, indices


@recorded
def top(x: torch.Tensor, k: int, axis: int, largest: bool) -> list[torch.Tensor]:
    """The first `k` along an axis, sorted, and their places."""
    ordered = torch.sort(x, dim=axis, descending=largest, stable=True)
    return [part.narrow(axis, 0, k) for part in ordered]


@converts("ReverseSequence", attributes=("batch_axis", "time_axis"))
def reverse_sequence(node: Site, x: Expr, lengths: Expr) -> Expr:
    """Each sequence of a batch backwards, up to its length."""
    return reverse(x, lengths, node.attribute("time_axis", 0), node.attribute("batch_axis", 1))


@recorded
def reverse(x: torch.Tensor, lengths: torch.Tensor, time: int, batch: int) -> torch.Tensor:
    """Each sequence of a batch backwards, up to its length."""
    y = x.movedim((batch, time), (0, 1))
    steps = torch.arange(y.size(1), device=x.device)
    at = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    rows = torch.arange(y.size(0), device=x.device)[:, None]
    return y[rows, at].movedim((0, 1), (batch, time))
