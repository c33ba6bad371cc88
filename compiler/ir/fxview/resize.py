"""Converters that sample images at other places: Resize, Upsample, GridSample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


_RESIZE = (
    *("antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside"),
    *("extrapolation_value", "keep_aspect_ratio_policy", "mode", "nearest_mode"),
)


@converts("Upsample", attributes=(*_RESIZE, "scales"), settings=(1,), wide="bits")
def upsample(node: Site, x: Expr) -> Expr:
    """Resize as it was before opset 10."""
    scales = _numbers(node, 1) if node.has(1) else list(node.attribute("scales"))
    is_nearest = node.text("mode", "nearest") == "nearest" and isinstance(scales, list)
    if is_nearest and (short := _by_torch(node, x, scales)) is not None:
        return short
    axes = list(range(node.need_rank()))
    return _resample(node, x, axes, scales, None, ("asymmetric", "floor"))


def _numbers(node: Site, index: int) -> Any:
    """An input as a list of floats; one proxy of it where it is computed."""
    found = node.constant(index)
    return floats(node.tensor(index)) if found is None else [float(n) for n in found.reshape(-1)]


@recorded
def floats(x: torch.Tensor) -> list[float]:
    """The elements of a tensor as Python floats."""
    return [float(n) for n in x.reshape(-1).tolist()]


@converts("Resize", attributes=_RESIZE, settings=(1, 2, 3), wide="bits")
def resize(node: Site, x: Expr) -> Expr:
    """`x`, larger or smaller along some axes."""
    sizes = node.sizes(3) if node.has(3) else None
    scales = None if sizes is not None else _numbers(node, 1 if node.opset < 11 else 2)
    how = node.text("coordinate_transformation_mode", "half_pixel")
    nearest = node.text("nearest_mode", "round_prefer_floor")
    if node.opset < 11:
        how, nearest = "asymmetric", "floor"
    axes = list(node.attribute("axes") or range(node.need_rank()))
    short = None
    if isinstance(scales, list):
        short = _short(node, x, axes, scales, how, nearest)
    elif sizes is not None:
        short = _sized(node, x, axes, sizes, how)
    return _resample(node, x, axes, scales, sizes, (how, nearest)) if short is None else short


def _short(
    node: Site, x: Expr, axes: list[int], scales: list[float], how: str, nearest: str
) -> Expr | None:
    """What torch's own interpolation gives, where that is the same."""
    mode, rank = node.text("mode", "nearest"), node.rank()
    if rank is None or node.flag("antialias") or not node.is_float():
        return None
    full = [1.0] * rank
    for axis, scale in zip(axes, scales, strict=True):
        full[axis] = scale
    if mode == "nearest" and (how, nearest) == ("asymmetric", "floor"):
        return _by_torch(node, x, full)
    if rank not in _TORCH_LINEAR or full[:2] != [1, 1] or how not in _HALF_PIXEL:
        return None
    factors = full[2:]
    if mode == "linear" and all(f >= 1 and f.is_integer() for f in factors):
        return F.interpolate(x, scale_factor=factors, mode=_TORCH_LINEAR[rank])
    return None


def _by_torch(node: Site, x: Expr, scales: list[float]) -> Expr | None:
    """Each element repeated, for whole factors of up to three axes of an image."""
    is_image = 3 <= len(scales) <= 5 and scales[:2] == [1, 1]
    if not is_image or not all(scale >= 1 and scale.is_integer() for scale in scales):
        return None
    return F.interpolate(x, scale_factor=scales[2:], mode="nearest")


def _sized(node: Site, x: Expr, axes: list[int], sizes: Any, how: str) -> Expr | None:
    """What torch's own linear interpolation to given sizes gives, where that is the same."""
    rank = node.rank()
    is_linear = node.text("mode", "nearest") == "linear" and not node.flag("antialias")
    stretches = node.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    if (
        rank not in _TORCH_LINEAR
        or not is_linear
        or not node.is_float()
        or not stretches
        or not isinstance(sizes, list)
    ):
        return None
    if how == "half_pixel" and axes in (list(range(rank)), list(range(2, rank))):
        spatial = sizes if len(axes) < rank else sizes[2:]
        kept = [n if isinstance(n, int) else None for n in sizes[:2]]
        if len(axes) < rank or (None not in kept and kept == (node.dims(0) or [])[:2]):
            return F.interpolate(x, size=spatial, mode=_TORCH_LINEAR[rank])
    return None


def _resample(
    node: Site,
    x: Expr,
    axes: list[int],
    scales: Any,
    sizes: Any,
    modes: tuple[str, str],
) -> Expr:
    how, nearest = modes
    options = {
        "mode": node.text("mode", "nearest"),
        "how": how,
        "nearest": nearest,
        "cubic": node.attribute("cubic_coeff_a", -0.75),
        "exclude_outside": node.flag("exclude_outside"),
        "antialias": node.flag("antialias"),
        "extrapolation": node.attribute("extrapolation_value", 0.0),
        "policy": node.text("keep_aspect_ratio_policy", "stretch"),
        "roi": _numbers(node, 1) if how == "tf_crop_and_resize" else None,
    }
    if node.is_float() or options["mode"] == "nearest":
        return resample(x, axes, scales, sizes, options)
    return resample(x.to(torch.float32), axes, scales, sizes, options).to(node.torch_dtype())


@recorded
def resample(
    x: torch.Tensor,
    axes: Sequence[int],
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Resize one axis after the other, as each of ONNX's modes asks for.

    Args:
        x: Any tensor; of floats, unless the mode is nearest.
        axes: The axes that change.
        scales: A factor for each of `axes`; or None.
        sizes: A new size for each of `axes`; or None.
        options: ONNX's attributes.
    """
    old = [x.size(axis) for axis in axes]
    if scales is not None:
        new = [math.floor(n * scale) for n, scale in zip(old, scales, strict=True)]
        factors = list(scales)
    else:
        assert sizes is not None
        new = list(sizes)
        factors = [n / size for n, size in zip(new, old, strict=True)]
        if options["policy"] != "stretch":
            factor = min(factors) if options["policy"] == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            new = [math.floor(factor * size + 0.5) for size in old]
    outside: torch.Tensor | None = None
    for at, axis in enumerate(axes):
        if new[at] == old[at] and factors[at] == 1 and options["roi"] is None:
            continue
        roi = options["roi"]
        region = (0.0, 1.0) if roi is None else (roi[at], roi[at + len(axes)])
        place = _places(new[at], old[at], factors[at], options["how"], region).to(x.device)
        if options["roi"] is not None:
            beyond = (place < 0) | (place > old[at] - 1)
            beyond = beyond.reshape(-1, *[1] * (x.dim() - 1 - axis % x.dim()))
            outside = beyond if outside is None else outside | beyond
        x = _sample(x, axis, place, factors[at], options)
    return x if outside is None else torch.where(outside, options["extrapolation"], x)


def _places(
    new: int, old: int, factor: float, how: str, region: tuple[float, float]
) -> torch.Tensor:
    """Where each new element lies among the old ones; in single precision, which decides ties."""
    i, scale = torch.arange(new, dtype=torch.float32), torch.tensor(factor, dtype=torch.float32)
    if how == "asymmetric":
        return i / scale
    if how == "align_corners":
        return i * (old - 1) / max(new - 1, 1)
    if how == "pytorch_half_pixel" and new <= 1:
        return i * 0
    if how == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if how == "tf_crop_and_resize":
        start, end = (side * (old - 1) for side in region)
        return start + i * (end - start) / (new - 1) if new > 1 else (start + end) / 2 + i * 0
    if how == "half_pixel_symmetric":
        shift = old / 2 * (1 - new / (scale * old))
        return shift + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def _sample(
    x: torch.Tensor, axis: int, place: torch.Tensor, factor: float, options: dict[str, Any]
) -> torch.Tensor:
    """The elements at `place` along an axis, interpolated."""
    count = x.size(axis)
    if options["mode"] == "nearest":
        return x.index_select(axis, _nearest(place, options["nearest"]).clamp(0, count - 1))
    narrow = min(factor, 1.0) if options["antialias"] else 1.0
    reach = 2 if options["mode"] == "cubic" else 1
    taps = math.ceil(reach / narrow)
    first = place.floor().to(torch.int64) - taps + 1
    at = first[:, None] + torch.arange(2 * taps, device=x.device)
    distance = ((place[:, None] - at) * narrow).abs()
    weight = _cubic(distance, options["cubic"]) if reach == 2 else (1 - distance).clamp(0)
    if options["exclude_outside"]:
        weight = torch.where((at >= 0) & (at < count), weight, 0)
    if options["exclude_outside"] or options["antialias"]:
        weight = weight / weight.sum(1, keepdim=True)
    weight, at = weight.to(x.dtype), at.clamp(0, count - 1)
    shape = (-1, *[1] * (x.dim() - 1 - axis % x.dim()))
    parts = [
        x.index_select(axis, at[:, tap]) * weight[:, tap].reshape(shape) for tap in range(2 * taps)
    ]
    return torch.stack(parts).sum(0)


def _nearest(place: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "floor":
        found = place.floor()
    elif mode == "ceil":
        found = place.ceil()
    elif mode == "round_prefer_ceil":
        found = (place + 0.5).floor()
    else:
        found = (place - 0.5).ceil()
    return found.to(torch.int64)


def _cubic(t: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' kernel (https://doi.org/10.1109/TASSP.1981.1163711)."""
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0))


@converts("GridSample", attributes=("align_corners", "mode", "padding_mode"))
def grid_sample(node: Site, x: Expr, grid: Expr) -> Expr:
    """The elements at places between -1 and 1."""
    mode = node.text("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding = node.text("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode, padding, node.flag("align_corners"))
