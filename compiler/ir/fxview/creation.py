"""Converters that create tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site


@converts("Range", attributes=("stash_type",), settings=(0, 1, 2))
def number_range(node: Site) -> Expr:
    """Numbers from a start to before a limit."""
    start, limit, step = (node.number(index) for index in range(3))
    return arange(start, limit, step, node.torch_dtype(), node.device)


@recorded
def arange(start: Any, limit: Any, step: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Numbers from `start` to before `limit`."""
    bounds: list[float] = [
        n.item() if isinstance(n, torch.Tensor) else n for n in (start, limit, step)
    ]
    if (bounds[1] - bounds[0]) * bounds[2] <= 0:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.arange(bounds[0], bounds[1], bounds[2], dtype=dtype, device=device)


@converts("ConstantOfShape", sizes=(0,), attributes=("value",))
def constant_of_shape(node: Site, sizes: Any) -> Expr:
    """A tensor of one value."""
    value = node.attribute("value")
    if value is None:
        return full(sizes, 0, torch.float32, node.device)
    return full(sizes, value.numpy().reshape(-1)[0].item(), TORCH[value.dtype], node.device)


@recorded
def full(sizes: Sequence[int], value: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """A tensor of one value."""
    return torch.full(tuple(sizes), value, dtype=dtype, device=device)


@converts("EyeLike", attributes=("dtype", "k"))
def eye_like(node: Site, x: Expr) -> Expr:
    """Ones on a diagonal, in the shape of a matrix."""
    return eye(x, node.attribute("k", 0), node.torch_dtype())


@recorded
def eye(x: torch.Tensor, diagonal: int, dtype: torch.dtype) -> torch.Tensor:
    """Ones on a diagonal, in the shape of a matrix."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns == rows[:, None] + diagonal).to(dtype)


@converts("Trilu", sizes=(1,), attributes=("upper",), wide="bits")
def trilu(node: Site, x: Expr, diagonal: Any = None) -> Expr:
    """What is on and above a diagonal, or on and below it; the rest is 0."""
    k = 0 if diagonal is None else diagonal[0]
    return torch.triu(x, k) if node.flag("upper", 1) else torch.tril(x, k)
