"""Output dims of operators that slide a window, and of those that scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aigcc.ir.shapes.dims import UNKNOWN, Dim, add, ceil_div, floor_div, product, tidy
from aigcc.ir.shapes.operands import Dims, Rule, or_none
from aigcc.ir.shapes.site import Site

_SAME = ("SAME_UPPER", "SAME_LOWER")


def keeps_size(site: Site) -> bool:
    """Whether a window is padded so that its stride alone decides how often it fits."""
    return site.attribute("auto_pad", "NOTSET") in _SAME


def _spatial(
    site: Site, data: list[Dim], kernel: Sequence[Dim], dilation: Sequence[int]
) -> list[Dim]:
    """The dims after a window of `kernel` slid over the spatial dims `data`."""
    rank = len(data)
    strides = site.attribute("strides") or [1] * rank
    is_rounded_up = bool(site.attribute("ceil_mode", 0))
    if keeps_size(site):
        # Runtimes differ in what they take for the size of a dilated window.
        if is_rounded_up or any(step != 1 for step in dilation):
            return [UNKNOWN] * rank
        return [ceil_div(dim, stride) for dim, stride in zip(data, strides, strict=True)]
    pads = site.attribute("pads") or [0] * 2 * rank
    if site.attribute("auto_pad", "NOTSET") == "VALID":
        pads = [0] * 2 * rank
    reach = [tidy(step * (size - 1) + 1) for size, step in zip(kernel, dilation, strict=True)]
    room = [add(data[i], pads[i], pads[rank + i], -reach[i]) for i in range(rank)]
    if is_rounded_up:
        return [_rounded_up(room[i], strides[i], add(data[i], pads[i])) for i in range(rank)]
    return [add(floor_div(room[i], strides[i]), 1) for i in range(rank)]


def _rounded_up(room: Dim, stride: int, edge: Dim) -> Dim:
    """How often a window fits where its last place may be incomplete.

    Some runtimes count a place that lies in the padding after the last element, `edge`.
    """
    count = add(ceil_div(room, stride), 1)
    if isinstance(count, int) and isinstance(edge, int) and (count - 1) * stride < edge:
        return count
    return UNKNOWN


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
    channels = product((weight[1], site.attribute("group", 1)))
    return [[data[0], channels, *_spread(site, data[2:], weight[2:])]]


def _spread(site: Site, data: list[Dim], weight: list[Dim]) -> list[Dim]:
    """The spatial dims after a window was laid down at each of the places `data`."""
    rank = len(data)
    strides = site.attribute("strides") or [1] * rank
    if site.attribute("output_shape"):
        return list(site.attribute("output_shape")[-rank:])
    kernel = site.attribute("kernel_shape") or weight
    dilation = site.attribute("dilations") or [1] * rank
    extra = site.attribute("output_padding") or [0] * rank
    reach = [tidy(dilation[i] * (kernel[i] - 1) + 1 + extra[i]) for i in range(rank)]
    pads = site.attribute("pads") or [0] * 2 * rank
    auto_pad = site.attribute("auto_pad", "NOTSET")
    if auto_pad != "NOTSET":
        # SAME cuts down to strides * data, and adds nothing where that is more.
        cut = [_cut(reach[i], strides[i], same=auto_pad != "VALID") for i in range(rank)]
        if any(dim is UNKNOWN for dim in cut):
            return [UNKNOWN] * rank
        pads = [*cut, *[0] * rank]
    return [
        tidy(strides[i] * (data[i] - 1) + reach[i] - pads[i] - pads[rank + i]) for i in range(rank)
    ]


def _cut(reach: Dim, stride: int, *, same: bool) -> Dim:
    if not same:
        return 0
    return max(reach - stride, 0) if isinstance(reach, int) else UNKNOWN


def pooling(site: Site) -> Sequence[Dims]:
    """MaxPool, AveragePool, LpPool; all outputs have the same dims."""
    data = site.dims(0)
    if data is None:
        return [None]
    kernel = site.attribute("kernel_shape")
    dilation = site.attribute("dilations") or [1] * len(kernel)
    dims = [*data[:2], *_spatial(site, data[2:], kernel, dilation)]
    return [dims] * len(site.node.outputs)


def _resize(site: Site) -> Sequence[Dims]:
    data = site.dims(0)
    if data is None:
        return [None]
    dims: list[Dim] = list(data)
    axes = site.attribute("axes", range(len(data)))
    scales_at, sizes_at = (2, 3) if site.opset >= 11 else (1, 4)
    sizes = or_none(site.elements, "", sizes_at)
    scales = or_none(site.elements, "scales", scales_at)
    is_plain = site.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    is_cropped = site.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    for place, axis in enumerate(axes):
        if sizes and is_plain:
            dims[axis] = sizes[place]
        elif scales and not is_cropped:
            dims[axis] = _scaled(data[axis], scales[place])
        else:
            dims[axis] = UNKNOWN
    return [dims]


def _scaled(dim: Dim, scale: float | Dim) -> Dim:
    """A dim times a scale, rounded down: 10 times 0.7 is 7 in the 32 bits that runtimes use."""
    if isinstance(dim, int) and isinstance(scale, float):
        return math.floor(np.float32(dim) * np.float32(scale))
    if isinstance(scale, float) and (scale * 64).is_integer():
        numerator, denominator = scale.as_integer_ratio()
        return floor_div(product((dim, numerator)), denominator)
    return UNKNOWN


def _short_time_fourier_transform(site: Site) -> Sequence[Dims]:
    """[batch, samples, 1 or 2] → [batch, frames, bins, 2]"""
    data, step, window, size = site.dims(0), site.known(1), site.dims(2), site.known(3)
    if data is None or len(data) != 3:
        return [[UNKNOWN] * 4]
    length: Dim = UNKNOWN if size is None else size.item()
    if window is not None and size is None:
        length = window[0]
    elif window is not None and window[0] != length:
        length = UNKNOWN
    frames = add(floor_div(add(data[1], -length), UNKNOWN if step is None else step.item()), 1)
    bins = length
    if site.attribute("onesided", 1):
        bins = add(floor_div(length, 2), 1) if data[2] == 1 else UNKNOWN
    return [[data[0], frames, bins, 2]]


def _window(site: Site) -> Sequence[Dims]:
    size = site.known(0)
    return [[UNKNOWN if size is None else size.item()]]


WINDOWS: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), pooling),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), _window),
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv"), convolution(1)),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "ConvTranspose": _transposed_convolution,
    "QLinearConv": convolution(3),
    "STFT": _short_time_fourier_transform,
}
