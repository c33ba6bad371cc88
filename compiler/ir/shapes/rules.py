"""Output dims of standard operators where ONNX's own inference stops, or is not to be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.shapes.dims import UNKNOWN, Dim, add, ceil_div, maximum, product, quotient
from aigcc.ir.shapes.layout import LAYOUT
from aigcc.ir.shapes.operands import Dims, Rule, broadcast, same
from aigcc.ir.shapes.site import Site
from aigcc.ir.shapes.windows import WINDOWS, keeps_size


def _elementwise(site: Site) -> Sequence[Dims]:
    if site.opset < 7:
        return same(site)  # the other operand was stretched to the first one
    return [broadcast(*(site.dims(index) for index in range(len(site.node.inputs))))]


def _range(site: Site) -> Sequence[Dims]:
    bounds = [site.known(index) for index in range(3)]
    start, limit, step = (UNKNOWN if bound is None else bound.item() for bound in bounds)
    if all(isinstance(bound, float) for bound in (start, limit, step)):
        return [[_count_of_floats(start, limit, step, site.dtype(0))]]
    return [[maximum(0, ceil_div(add(limit, -start), step))]]


def _count_of_floats(start: float, limit: float, step: float, dtype: ir.DataType | None) -> Dim:
    """How many floats there are from `start` to `limit`, unless that is a matter of rounding."""
    if step == 0:
        return UNKNOWN
    kind: Any = np.float32 if dtype != ir.DataType.DOUBLE else np.float64
    way = kind(limit) - kind(start)
    ratios = (limit - start) / step, float(way) / step, float(way / kind(step))
    counts = {math.ceil(ratio) if math.isfinite(ratio) else None for ratio in ratios}
    (count, *others) = counts
    return UNKNOWN if others or count is None else max(0, count)


def _top_k(site: Site) -> Sequence[Dims]:
    data, count = site.dims(0), site.known(1)
    if data is None:
        return [None, None]
    dims = list(data)
    dims[site.attribute("axis", -1)] = UNKNOWN if count is None else count.item()
    return [dims, dims]


def _heads(dims: list[Dim], count: int | None) -> list[Dim]:
    """[batch, heads, length, size] of a tensor that may be [batch, length, heads * size]."""
    if len(dims) == 4 or count is None:
        return dims
    return [dims[0], count, dims[1], quotient(dims[2], count)]


def _attention(site: Site) -> Sequence[Dims]:
    operands = [site.dims(index) for index in range(3)]
    past = site.dims(4)
    if any(dims is None for dims in operands):
        return [None] * len(site.node.outputs)
    kv_heads = site.attribute("kv_num_heads")
    query, key, value = (
        _heads(dims or [], count)
        for dims, count in zip(
            operands, (site.attribute("q_num_heads"), kv_heads, kv_heads), strict=True
        )
    )
    batch, heads, length, _ = query
    total = add(past[2], key[2]) if past else key[2]
    is_split = len(operands[0] or []) == 4
    merged = [batch, length, product((heads, value[3]))]
    return [
        [batch, heads, length, value[3]] if is_split else merged,
        [batch, key[1], total, key[3]],
        [batch, key[1], total, value[3]],
        [batch, heads, length, total],
    ]


def _same_rank(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    return [None if data is None else [UNKNOWN] * len(data)]


def _count_axes(site: Site) -> int | None:
    """How many axes input 1 lists, whichever they are."""
    axes = site.dims(1)
    count = None if axes is None else [*axes, 1][0]  # some write one axis as a scalar
    return count if isinstance(count, int) else None


def _unsqueeze(site: Site) -> Sequence[Dims]:
    data, count = site.dims(0), _count_axes(site)
    return [None if data is None or count is None else [UNKNOWN] * (len(data) + count)]


def _has_empty_axes(site: Site) -> bool:
    return _count_axes(site) == 0


def _squeeze(site: Site) -> Sequence[Dims]:
    # With no axes in the list some runtimes squeeze nothing, and others all there is.
    data, count = site.dims(0), _count_axes(site)
    return [[UNKNOWN] * (len(data) - count) if data is not None and count else None]


def _reduce(site: Site) -> Sequence[Dims]:
    data, count = site.dims(0), _count_axes(site)
    is_listed = site.input(1) is not None or "axes" in site.node.attributes
    if not (is_listed or site.attribute("keepdims", 1) or site.attribute("noop_with_empty_axes")):
        return [[]]
    if data is None:
        return [None]
    if site.attribute("keepdims", 1):
        return [[UNKNOWN] * len(data)]
    if count == 0:
        return [data if site.attribute("noop_with_empty_axes", 0) else []]
    return [None if count is None else [UNKNOWN] * (len(data) - count)]


STANDARD: dict[str, Rule] = {
    **dict.fromkeys(
        ("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
        _elementwise,
    ),
    **dict.fromkeys(
        ("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or"),
        _elementwise,
    ),
    **dict.fromkeys(("Pow", "Sub", "Sum", "Where", "Xor"), _elementwise),
    **dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization", "PRelu"), same),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
        _reduce,
    ),
    **dict.fromkeys(("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"), _reduce),
    **LAYOUT,
    **WINDOWS,
    "Attention": _attention,
    "CenterCropPad": _same_rank,
    "Range": _range,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Unsqueeze": _unsqueeze,
}


def _is_rounded_or_dilated(site: Site) -> bool:
    return bool(site.attribute("ceil_mode", 0)) or (
        keeps_size(site) and any(step != 1 for step in site.attribute("dilations") or ())
    )


def _is_of_any_length(site: Site) -> bool:
    data = site.dims(0)
    return data is None or not all(isinstance(dim, int) for dim in data)


def _always(site: Site) -> bool:
    return True


# Where ONNX's inference answers, and not always what runtimes make, or refuses what they take.
_DOUBTFUL: dict[str, Callable[[Site], bool]] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _is_rounded_or_dilated),
    **dict.fromkeys(("Range", "Resize", "Slice", "STFT", "Upsample"), _always),
    "Attention": lambda site: site.input(4) is not None,
    "ConvTranspose": keeps_size,
    "Squeeze": _has_empty_axes,
    "StringNormalizer": _is_of_any_length,
}


def is_doubtful(site: Site) -> bool:
    """Whether ONNX's own inference is not to be believed about the dims of a node."""
    doubts = _DOUBTFUL.get(site.node.op_type)
    return doubts is not None and doubts(site)
