"""Converters of random numbers, which are torch's own."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site


@converts(
    "RandomNormal",
    "RandomUniform",
    folds=False,
    attributes=("dtype", "high", "low", "mean", "scale", "seed", "shape"),
)
def random(node: Site) -> Expr:
    """Random numbers of a given shape."""
    dtype = TORCH[ir.DataType(node.attribute("dtype", 1))]
    is_normal = node.node.op_type == "RandomNormal"
    return draw(tuple(node.attribute("shape")), dtype, node.device, is_normal, _range(node))


@converts(
    "RandomNormalLike",
    "RandomUniformLike",
    folds=False,
    attributes=("dtype", "high", "low", "mean", "scale", "seed"),
)
def random_like(node: Site, x: Expr) -> Expr:
    """Random numbers in the shape of `x`."""
    is_normal = node.node.op_type == "RandomNormalLike"
    return draw(x.shape, node.torch_dtype(), node.device, is_normal, _range(node))


def _range(node: Site) -> tuple[float, float]:
    if "Normal" in node.node.op_type:
        return node.attribute("mean", 0.0), node.attribute("scale", 1.0)
    return node.attribute("low", 0.0), node.attribute("high", 1.0)


@recorded
def draw(
    sizes: Any, dtype: torch.dtype, device: Any, is_normal: bool, bounds: tuple[float, float]
) -> torch.Tensor:
    """Normal numbers of a mean and a deviation, or uniform ones between two bounds."""
    first, second = bounds
    if is_normal:
        return first + second * torch.randn(tuple(sizes), dtype=dtype, device=device)
    return first + (second - first) * torch.rand(tuple(sizes), dtype=dtype, device=device)
