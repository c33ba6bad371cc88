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


@converts("Upsample", settings=(1,))
def upsample(node: Site, x: Expr) -> Expr:
    """Resize as it was before opset 10."""
    found = node.setting(1)
    scales = [float(n) for n in (node.attribute("scales") if found is None else found)]
    mode = node.text("mode", "nearest")
    if mode == "nearest" and (short := _by_torch(node, x, scales)) is not None:
        return short
    return _resample(node, x, list(range(len(scales))), scales, None, "asymmetric", "floor")


@converts("Resize", settings=(1, 2, 3))
def resize(node: Site, x: Expr) -> Expr:
    """`x`, larger or smaller along some axes."""
    if node.opset < 11:
        scales: list[float] | None = [float(n) for n in _need(node.setting(1), node)]
        sizes: Any = None
    else:
        found = node.setting(2)
        scales = None if found is None or not found.size else [float(n) for n in found]
        sizes = node.sizes(3) if scales is None else None
    how = node.text("coordinate_transformation_mode", "half_pixel")
    how = "asymmetric" if node.opset < 11 else how
    nearest = node.text("nearest_mode", "round_prefer_floor")
    nearest = "floor" if node.opset < 11 else nearest
    count = len(scales) if scales is not None else len(sizes) if isinstance(sizes, list) else 0
    axes = list(node.attribute("axes") or range(count or node.need_rank()))
    if scales is not None and (short := _short(node, x, axes, scales, how, nearest)) is not None:
        return short
    if sizes is not None and (short := _sized(node, x, axes, sizes, how)) is not None:
        return short
    return _resample(node, x, axes, scales, sizes, how, nearest)


def _need(found: Any, node: Site) -> Any:
    return node.refuse("it has neither scales nor sizes") if found is None else found


def _short(
    node: Site, x: Expr, axes: list[int], scales: list[float], how: str, nearest: str
) -> Expr | None:
    """What torch's own interpolation gives, where that is the same."""
    mode, rank = node.text("mode", "nearest"), node.rank()
    if rank is None or node.flag("antialias"):
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
    if rank not in _TORCH_LINEAR or not is_linear or not stretches or not isinstance(sizes, list):
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
    scales: list[float] | None,
    sizes: Any,
    how: str,
    nearest: str,
) -> Expr:
    roi = node.constant(1) if how == "tf_crop_and_resize" and node.opset >= 11 else None
    if how == "tf_crop_and_resize" and roi is None:
        node.refuse("its region of interest is computed")
    options = {
        "mode": node.text("mode", "nearest"),
        "how": how,
        "nearest": nearest,
        "cubic": node.attribute("cubic_coeff_a", -0.75),
        "exclude_outside": node.flag("exclude_outside"),
        "antialias": node.flag("antialias"),
        "extrapolation": node.attribute("extrapolation_value", 0.0),
        "policy": node.text("keep_aspect_ratio_policy", "stretch"),
        "roi": None if roi is None else [float(n) for n in roi.reshape(-1)],
    }
    made = resample(x if node.is_float() else x.to(torch.float32), axes, scales, sizes, options)
    return made if node.is_float() else made.to(node.torch_dtype())


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
        x: Any tensor of floats.
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


@converts("GridSample")
def grid_sample(node: Site, x: Expr, grid: Expr) -> Expr:
    """The elements at places between -1 and 1."""
    mode = node.text("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding = node.text("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode, padding, node.flag("align_corners"))
