"""Output dims of operators that move elements: Reshape, Slice, Concat, Split, Pad and the like."""

from __future__ import annotations

from collections.abc import Sequence

from aigcc.ir.shapes.dims import (
    UNKNOWN,
    Dim,
    add,
    ceil_div,
    is_known,
    maximum,
    minimum,
    product,
    quotient,
    tidy,
)
from aigcc.ir.shapes.movement import FAR, sliced
from aigcc.ir.shapes.operands import Dims, Rule, agreed, broadcast, from_sizes, or_none
from aigcc.ir.shapes.site import Site, Untraceable


def _reshape(site: Site) -> Sequence[Dims]:
    known, data = site.known(1), site.dims(0)
    if known is None:
        return [from_sizes(site, 1)]
    dims: list[Dim] = known.ravel().tolist()
    if not site.attribute("allowzero", 0):
        dims = [
            (data[axis] if data is not None else UNKNOWN) if dim == 0 else dim
            for axis, dim in enumerate(dims)
        ]
    if -1 in dims:
        rest = product(dim for dim in dims if dim != -1)
        total = UNKNOWN if data is None else product(data)
        dims[dims.index(-1)] = quotient(total, rest)
    elif dims.count(UNKNOWN) == 1 and data is not None and all(is_known(dim) for dim in data):
        # What one dim is follows from the others, since the number of elements does not change.
        rest = product(dim for dim in dims if is_known(dim))
        dims[dims.index(UNKNOWN)] = quotient(product(data), rest)
    return [dims]


def _expand(site: Site) -> Sequence[Dims]:
    return [broadcast(site.dims(0), from_sizes(site, 1))]


def _constant_of_shape(site: Site) -> Sequence[Dims]:
    return [from_sizes(site, 0)]


def _tile(site: Site) -> Sequence[Dims]:
    data, repeats = site.dims(0), site.known(1)
    if data is None:
        return [None]
    if repeats is None or site.opset < 6:  # when it had a number and an axis
        return [[UNKNOWN] * len(data)]
    return [[product(pair) for pair in zip(data, repeats.tolist(), strict=False)]]


def _slice(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [None]
    starts = or_none(site.elements, "starts", 1)
    ends = or_none(site.elements, "ends", 2)
    axes = or_none(site.ints, "axes", 3, range(len(starts or ())))
    if starts is None or ends is None or axes is None:
        return [[UNKNOWN] * len(data)]
    steps = or_none(site.ints, "steps", 4, [1] * len(starts)) or [0] * len(starts)
    dims = list(data)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dims[axis] = _slice_dim(data[axis], start, end, step)
    return [dims]


def _slice_dim(dim: Dim, start: Dim, end: Dim, step: int) -> Dim:
    if step == 0 or not all(is_known(number) for number in (dim, start, end)):
        return UNKNOWN
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        try:
            return len(sliced(dim, start, end, step))
        except Untraceable:
            return UNKNOWN
    if step < 0:
        return UNKNOWN
    begin, finish = _bound(dim, start), _bound(dim, end)
    return maximum(0, ceil_div(tidy(finish - begin), step))


def _bound(dim: Dim, bound: Dim) -> Dim:
    """A slice's start or end as a position from 0 to `dim`."""
    if isinstance(bound, int):
        if bound >= FAR:
            return dim
        return maximum(0, tidy(dim + bound)) if bound < 0 else minimum(dim, bound)
    if bound.is_nonnegative:
        return minimum(dim, bound)
    return maximum(0, tidy(dim + bound)) if bound.is_negative else UNKNOWN


def _concat(site: Site) -> Sequence[Dims]:
    operands = [site.dims(index) for index in range(len(site.node.inputs))]
    known = [dims for dims in operands if dims is not None]
    if not known:
        return [None]
    axis = site.attribute("axis", 1) % len(known[0])
    # Apart from the axis all operands agree, so that any of them may say what a dim is.
    dims = [agreed(column) for column in zip(*known, strict=True)]
    dims[axis] = add(*(UNKNOWN if operand is None else operand[axis] for operand in operands))
    return [dims]


def _split(site: Site) -> Sequence[Dims]:
    data, count = site.dims(0), len(site.node.outputs)
    if data is None:
        return [None] * count
    axis = site.attribute("axis", 0) % len(data)
    sizes = or_none(site.elements, "split", 1)
    if sizes is not None and any(isinstance(size, float) for size in sizes):
        return [None] * count  # as opset 1 allows
    if sizes is None and site.input(1) is None:
        even = quotient(data[axis], count)
        chunk = ceil_div(data[axis], count)
        is_even = site.opset < 18 or even == chunk
        last = even if is_even else add(data[axis], tidy(-chunk * (count - 1)))
        sizes = [even if is_even else chunk] * (count - 1) + [last]
    sizes = sizes or [UNKNOWN] * count
    return [[*data[:axis], size, *data[axis + 1 :]] for size in sizes]


def _pad(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [None]
    pads = or_none(site.elements, "pads", 1)
    axes = or_none(site.ints, "axes", 3, range(len(data)))
    if pads is None or axes is None:
        return [[UNKNOWN] * len(data)]
    dims = list(data)
    for place, axis in enumerate(axes):
        dims[axis] = add(data[axis], pads[place], pads[place + len(axes)])
    return [dims]


def _flatten(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [[UNKNOWN, UNKNOWN]]
    axis = site.attribute("axis", 1)
    axis = axis + len(data) if axis < 0 else axis
    return [[product(data[:axis]), product(data[axis:])]]


def _depth_to_space(site: Site) -> Sequence[Dims]:
    data, block = site.dims(0), site.attribute("blocksize")
    if data is None:
        return [None]
    batch, channels, *spatial = data
    wider = [product((dim, block)) for dim in spatial]
    return [[batch, quotient(channels, block**2), *wider]]


def _space_to_depth(site: Site) -> Sequence[Dims]:
    data, block = site.dims(0), site.attribute("blocksize")
    if data is None:
        return [None]
    batch, channels, *spatial = data
    narrower = [quotient(dim, block) for dim in spatial]
    return [[batch, product((channels, block**2)), *narrower]]


LAYOUT: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
}
