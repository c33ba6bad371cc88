"""Output dims of standard ops where ONNX's own inference gives up on symbolic dims."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import sympy

from aigcc.ir.shapes.dims import (
    UNKNOWN,
    Dim,
    add,
    ceil_div,
    floor_div,
    is_known,
    maximum,
    minimum,
    product,
    quotient,
    tidy,
)
from aigcc.ir.shapes.site import Site, Untraceable

Dims = list[Dim] | None
Rule = Callable[[Site], Sequence[Dims]]

# A bound beyond this means "to the end" in a Slice.
_FAR = 2**31 - 1


def broadcast(*operands: Dims) -> Dims:
    """The dims of an elementwise result, by the rules of multidirectional broadcasting."""
    known = [dims for dims in operands if dims is not None]
    if len(known) < len(operands):
        return None
    columns = zip_longest(*(reversed(dims) for dims in known), fillvalue=1)
    return [_broadcast_dim(column) for column in columns][::-1]


def _broadcast_dim(dims: Sequence[Dim]) -> Dim:
    wide = [dim for dim in dims if dim != 1]
    for dim in wide:
        # A static dim above 1 decides alone: the others are equal to it, or 1.
        if isinstance(dim, int):
            return dim
    if not wide:
        return 1
    # Of two dims that broadcast, each at least 1, the result is the greater, where that is decided.
    greatest = maximum(*wide)
    return UNKNOWN if isinstance(greatest, sympy.Max) else greatest


def matmul(left: Dims, right: Dims) -> Dims:
    """The dims of a matrix product of stacks of matrices, or of vectors."""
    if left is None or right is None:
        return None
    stacks = broadcast(left[:-2], right[:-2]) or []
    return [*stacks, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]


def _elementwise(site: Site) -> Sequence[Dims]:
    return [broadcast(*(site.dims(index) for index in range(len(site.node.inputs))))]


def same(site: Site) -> Sequence[Dims]:
    """The first output has the dims of the first input."""
    return [site.dims(0)]


def _from_sizes(site: Site, index: int) -> Dims:
    """The dims that input `index` lists; of the right rank at least, where that is known."""
    known, dims = site.known(index), site.dims(index)
    if known is not None:
        return [_checked(size) for size in known.ravel().tolist()]
    if dims is not None and len(dims) == 1 and isinstance(dims[0], int):
        return [UNKNOWN] * dims[0]
    return None


def _checked(size: Dim) -> Dim:
    return size if isinstance(size, sympy.Expr) or size >= 0 else UNKNOWN


def _reshape(site: Site) -> Sequence[Dims]:
    known, data = site.known(1), site.dims(0)
    if known is None:
        return [_from_sizes(site, 1)]
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
    return [broadcast(site.dims(0), _from_sizes(site, 1))]


def _constant_of_shape(site: Site) -> Sequence[Dims]:
    return [_from_sizes(site, 0)]


def _tile(site: Site) -> Sequence[Dims]:
    data, repeats = site.dims(0), site.known(1)
    if data is None:
        return [None]
    if repeats is None or site.opset < 6:  # when it had a number and an axis
        return [[UNKNOWN] * len(data)]
    return [[product(pair) for pair in zip(data, repeats.tolist(), strict=False)]]


def _range(site: Site) -> Sequence[Dims]:
    bounds = [site.known(index) for index in range(3)]
    start, limit, step = (UNKNOWN if bound is None else bound.item() for bound in bounds)
    if any(isinstance(bound, float) for bound in (start, limit, step)):
        return [[UNKNOWN]]
    return [[maximum(0, ceil_div(add(limit, -start), step))]]


def _slice(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [None]
    starts = _or_none(site.elements, "starts", 1)
    ends = _or_none(site.elements, "ends", 2)
    axes = _or_none(site.ints, "axes", 3, range(len(starts or ())))
    if starts is None or ends is None or axes is None:
        return [[UNKNOWN] * len(data)]
    steps = _or_none(site.ints, "steps", 4, [1] * len(starts)) or [0] * len(starts)
    dims = list(data)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dims[axis] = _slice_dim(data[axis], start, end, step)
    return [dims]


def _or_none(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or None where that is known only when the model runs."""
    try:
        return read(*arguments)
    except Untraceable:
        return None


def _slice_dim(dim: Dim, start: Dim, end: Dim, step: int) -> Dim:
    if step <= 0 or not all(is_known(number) for number in (dim, start, end)):
        return UNKNOWN
    begin, finish = _bound(dim, start), _bound(dim, end)
    return maximum(0, ceil_div(tidy(finish - begin), step))


def _bound(dim: Dim, bound: Dim) -> Dim:
    """A slice's start or end as a position from 0 to `dim`."""
    if isinstance(bound, int):
        if bound >= _FAR:
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
    dims = [_agreed(column) for column in zip(*known, strict=True)]
    dims[axis] = add(*(UNKNOWN if operand is None else operand[axis] for operand in operands))
    return [dims]


def _agreed(dims: Sequence[Dim]) -> Dim:
    known = [dim for dim in dims if is_known(dim)]
    return next((dim for dim in known if isinstance(dim, int)), known[0] if known else UNKNOWN)


def _split(site: Site) -> Sequence[Dims]:
    data, count = site.dims(0), len(site.node.outputs)
    if data is None:
        return [None] * count
    axis = site.attribute("axis", 0) % len(data)
    sizes = _or_none(site.elements, "split", 1)
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
    pads = _or_none(site.elements, "pads", 1)
    axes = _or_none(site.ints, "axes", 3, range(len(data)))
    if pads is None or axes is None:
        return [[UNKNOWN] * len(data)]
    dims = list(data)
    for place, axis in enumerate(axes):
        dims[axis] = add(data[axis], pads[place], pads[place + len(axes)])
    return [dims]


def _resize(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [None]
    dims: list[Dim] = list(data)
    axes = site.attribute("axes", range(len(data)))
    scales_at, sizes_at = (2, 3) if site.opset >= 11 else (1, 4)
    sizes, scales = site.known(sizes_at), _or_none(site.elements, "scales", scales_at)
    is_plain = site.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    if sizes is not None and is_plain:
        for axis, size in zip(axes, sizes.tolist(), strict=False):
            dims[axis] = size
    elif scales and site.attribute("coordinate_transformation_mode") != "tf_crop_and_resize":
        for axis, scale in zip(axes, scales, strict=False):
            dims[axis] = _scaled(data[axis], scale)
    else:
        return [[UNKNOWN] * len(data)]
    return [dims]


def _scaled(dim: Dim, scale: float | Dim) -> Dim:
    if isinstance(dim, int) and isinstance(scale, float):
        return math.floor(dim * scale)
    if isinstance(scale, float) and (scale * 64).is_integer():
        numerator, denominator = scale.as_integer_ratio()
        return floor_div(product((dim, numerator)), denominator)
    return UNKNOWN


def _spatial(
    site: Site, data: list[Dim], kernel: Sequence[Dim], dilation: Sequence[int]
) -> list[Dim]:
    """The dims after a window of `kernel` slid over the spatial dims `data`."""
    rank = len(data)
    strides = site.attribute("strides") or [1] * rank
    pads = site.attribute("pads") or [0] * 2 * rank
    auto_pad = site.attribute("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return [ceil_div(dim, stride) for dim, stride in zip(data, strides, strict=True)]
    if auto_pad == "VALID":
        pads = [0] * 2 * rank
    reach = [tidy(step * (size - 1) + 1) for size, step in zip(kernel, dilation, strict=True)]
    free = [add(data[i], pads[i], pads[rank + i], -reach[i]) for i in range(rank)]
    if not site.attribute("ceil_mode", 0):
        return [add(floor_div(free[i], strides[i]), 1) for i in range(rank)]
    counts: list[Dim] = []
    for i, space in enumerate(free):
        size = data[i]
        if not isinstance(space, int) or not isinstance(size, int):
            counts.append(UNKNOWN)
            continue
        count = -(-space // strides[i]) + 1
        # a window that would begin in the padding behind is none
        counts.append(count - (strides[i] * (count - 1) >= size + pads[i]))
    return counts


def convolution(weight_at: int) -> Rule:
    """Conv and its relatives, with the weight [M, C/group, k...] as input `weight_at`."""

    def rule(site: Site) -> Sequence[Dims]:
        data, weight = site.dims(0), site.dims(weight_at)
        if data is None or weight is None:
            return [None]
        kernel = site.attribute("kernel_shape") or weight[2:]
        dilation = site.attribute("dilations") or [1] * len(kernel)
        return [[data[0], weight[0], *_spatial(site, data[2:], kernel, dilation)]]

    return rule


def _transposed_convolution(site: Site) -> Sequence[Dims]:
    data, weight = site.dims(0), site.dims(1)
    if data is None or weight is None:
        return [None]
    rank = len(data) - 2
    channels = product((weight[1], site.attribute("group", 1)))
    strides = site.attribute("strides") or [1] * rank
    if site.attribute("output_shape"):
        return [[data[0], channels, *site.attribute("output_shape")[-rank:]]]
    kernel = site.attribute("kernel_shape") or weight[2:]
    dilation = site.attribute("dilations") or [1] * rank
    extra = site.attribute("output_padding") or [0] * rank
    reach = [dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(rank)]
    auto_pad = site.attribute("auto_pad", "NOTSET")
    pads = site.attribute("pads") or [0] * 2 * rank
    if auto_pad != "NOTSET":
        if not all(isinstance(dim, int) for dim in reach):
            return [[data[0], channels, *[UNKNOWN] * rank]]
        # SAME cuts down to strides * data, and adds nothing where that is more.
        same = auto_pad != "VALID"
        cut = [max(reach[i] - strides[i], 0) if same else 0 for i in range(rank)]
        pads = [*cut, *[0] * rank]
    spatial = [
        tidy(strides[i] * (data[2 + i] - 1) + reach[i] - pads[i] - pads[rank + i])
        for i in range(rank)
    ]
    return [[data[0], channels, *spatial]]


def pooling(site: Site) -> Sequence[Dims]:
    """MaxPool, AveragePool, LpPool; all outputs have the same dims."""
    data = site.dims(0)
    if data is None:
        return [None]
    kernel = site.attribute("kernel_shape")
    dilation = site.attribute("dilations") or [1] * len(kernel)
    dims = [*data[:2], *_spatial(site, data[2:], kernel, dilation)]
    return [dims] * len(site.node.outputs)


def _flatten(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [[UNKNOWN, UNKNOWN]]
    axis = site.attribute("axis", 1)
    axis = axis + len(data) if axis < 0 else axis
    return [[product(data[:axis]), product(data[axis:])]]


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


def _window(site: Site) -> Sequence[Dims]:
    size = site.known(0)
    return [[UNKNOWN if size is None else size.item()]]


def _same_rank(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    return [None if data is None else [UNKNOWN] * len(data)]


def _ranked(step: int) -> Rule:
    """The rank after each of the axes in input 1, whichever they are, changed it by `step`."""

    def rule(site: Site) -> Sequence[Dims]:
        data, axes = site.dims(0), site.dims(1)
        count = None if axes is None else [*axes, 1][0]  # some write one axis as a scalar
        if data is None or not isinstance(count, int):
            return [None]
        return [[UNKNOWN] * (len(data) + step * count)]

    return rule


def _reduce(site: Site) -> Sequence[Dims]:
    return _same_rank(site) if site.attribute("keepdims", 1) else _ranked(-1)(site)


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


STANDARD: dict[str, Rule] = {
    **dict.fromkeys(
        ("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
        _elementwise,
    ),
    **dict.fromkeys(
        ("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or"),
        _elementwise,
    ),
    **dict.fromkeys(("Pow", "PRelu", "Sub", "Sum", "Where", "Xor"), _elementwise),
    **dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization"), same),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), _window),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
        _reduce,
    ),
    **dict.fromkeys(("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"), _reduce),
    "Attention": _attention,
    "AveragePool": pooling,
    "CenterCropPad": _same_rank,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": convolution(1),
    "ConvInteger": convolution(1),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": convolution(1),
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "LpPool": pooling,
    "MaxPool": pooling,
    "Pad": _pad,
    "QLinearConv": convolution(3),
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _ranked(-1),
    "Tile": _tile,
    "TopK": _top_k,
    "Unsqueeze": _ranked(1),
    "Upsample": _resize,
}
