"""Arithmetic of sizes: what exporters compute from shapes stays Python ints, element by element."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from aigcc.ir.fxview.recording import call, recorded
from aigcc.ir.fxview.site import Handle, Site, Sizes, Stored, as_sizes

_SIZES = (ir.DataType.INT32, ir.DataType.INT64)

Rule = Callable[..., Sizes | None]


def _shape(site: Site, x: Handle) -> Sizes | None:
    rank = site.rank(0)
    if rank is None:
        return None
    axes = range(rank)[site.attribute("start", 0) : site.attribute("end", rank)]
    if isinstance(x, Stored):
        return Sizes(tuple(x.tensor.shape.numpy()[axis] for axis in axes))
    tensor = site.tensor(0)
    return Sizes(tuple(tensor.size(axis) for axis in axes))


def _size(site: Site, x: Handle) -> Sizes | None:
    return Sizes((site.tensor(0).numel(),), is_vector=False)


def _elementwise(function: Callable[..., Any]) -> Rule:
    def rule(site: Site, *handles: Handle) -> Sizes | None:
        operands = [as_sizes(handle) for handle in handles]
        if not all(operands) or site.out_dtype() not in _SIZES:
            return None
        known = [operand for operand in operands if operand is not None]
        count = max(len(operand.items) for operand in known)
        if any(len(operand.items) not in (1, count) for operand in known):
            return None
        columns = (
            operand.items if len(operand.items) == count else operand.items * count
            for operand in known
        )
        items = (function(*column) for column in zip(*columns, strict=True))
        return site.new(items, any(operand.is_vector for operand in known))

    return rule


@recorded
def quotient(a: int, b: int) -> int:
    """Division of whole numbers that rounds towards zero, as ONNX has it."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _concat(site: Site, *handles: Handle) -> Sizes | None:
    operands = [as_sizes(handle) for handle in handles]
    if not all(operand is not None and operand.is_vector for operand in operands):
        return None
    return site.new(item for operand in operands if operand for item in operand.items)


def _gather(site: Site, x: Handle, indices: Handle) -> Sizes | None:
    source, at = as_sizes(x), as_sizes(indices)
    if source is None or at is None or not at.is_known() or not source.is_vector:
        return None
    return site.new((source.items[index] for index in at.items), at.is_vector)


def _slice(site: Site, x: Handle, *bounds: Handle) -> Sizes | None:
    source = as_sizes(x)
    parts = [as_sizes(bound) for bound in bounds]
    if source is None or not source.is_vector:
        return None
    if site.opset < 10:
        (start,), (end,), step = site.attribute("starts"), site.attribute("ends"), 1
    elif not all(part is not None and part.is_known() for part in parts):
        return None
    else:
        numbers = [part.items[0] for part in parts if part is not None]
        start, end = numbers[:2]
        step = numbers[3] if len(numbers) > 3 else 1
    if step < 0:
        count = len(source.items)
        end = None if end < -count else end
    return site.new(source.items[start:end:step])


def _squeeze(site: Site, x: Handle, *_: Handle) -> Sizes | None:
    source = as_sizes(x)
    if source is None or not source.is_vector or len(source.items) != 1:
        return None
    return site.new(source.items, is_vector=False)


def _unsqueeze(site: Site, x: Handle, *axes: Handle) -> Sizes | None:
    source = as_sizes(x)
    count = site.attribute("axes") or (site.constant(1) if axes else None)
    if source is None or source.is_vector or count is None or len(count) != 1:
        return None
    return site.new(source.items)


def _reshape(site: Site, x: Handle, *target: Handle) -> Sizes | None:
    source = as_sizes(x)
    goal = as_sizes(target[0]) if target else None
    if source is None or goal is None or not goal.is_known() or len(goal.items) > 1:
        return None
    return site.new(source.items, is_vector=len(goal.items) == 1)


def _same(site: Site, x: Handle, *_: Handle) -> Sizes | None:
    source = as_sizes(x)
    if source is None or not site.out_dtype().is_integer() or site.out_dtype().bitwidth < 32:
        return None
    return site.new(source.items, source.is_vector)


def _product(site: Site, x: Handle, *axes: Handle) -> Sizes | None:
    source = as_sizes(x)
    if source is None or not source.is_vector or (axes and site.constant(1) is None):
        return None
    total: Any = 1
    for item in source.items:
        total = item if isinstance(total, int) and total == 1 else total * item
    return site.new([total], is_vector=site.flag("keepdims", 1))


def _where(site: Site, condition: Handle, x: Handle, y: Handle) -> Sizes | None:
    choice, sources = site.constant(0), (as_sizes(x), as_sizes(y))
    if choice is None or choice.ndim > 1:
        return None
    return _elementwise(lambda c, a, b: a if c else b)(
        site,
        Sizes(tuple(bool(c) for c in choice.reshape(-1)), is_vector=choice.ndim == 1),
        *sources,
    )


SIZES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(quotient),
    "Min": _elementwise(lambda *x: call(min, *x) if len(x) > 1 else x[0]),
    "Max": _elementwise(lambda *x: call(max, *x) if len(x) > 1 else x[0]),
    "Neg": _elementwise(operator.neg),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": _same,
    "Identity": _same,
    "ReduceProd": _product,
    "Where": _where,
}
"""Rules by operator: they give None where a tensor has to be computed after all."""
