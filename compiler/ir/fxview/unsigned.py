"""Whole numbers of 16, 32 and 64 bits without a sign: torch moves them, and computes with others.

They come as numbers with a sign: those of 16 and 32 bits as wider ones, which hold them all; those
of 64 bits as the same bits. Sums and products have the right low bits then, and `narrowed` takes
these. For comparisons the numbers of 64 bits are moved by half of their range.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import recorded
from aigcc.ir.fxview.registry import Wide

D = ir.DataType

WIDER: dict[ir.DataType | None, torch.dtype] = {
    D.UINT16: torch.int32,
    D.UINT32: torch.int64,
    D.UINT64: torch.int64,
}
"""The type with a sign that stands for one without."""

_HALF = -(1 << 63)


def widened(x: Any, dtype: ir.DataType | None, wide: Wide) -> Any:
    """A tensor as numbers with a sign, where its converter asks for that."""
    if wide == "no" or dtype not in WIDER:
        return x
    made = x.to(WIDER[dtype])
    return made ^ _HALF if wide == "order" and dtype == D.UINT64 else made


def narrowed(x: Any, dtype: ir.DataType | None, wide: Wide) -> Any:
    """What a converter made, as numbers without a sign where the output has none."""
    if wide == "no" or dtype not in WIDER or dtype is None:
        return x
    return (x ^ _HALF if wide == "order" and dtype == D.UINT64 else x).to(TORCH[dtype])


@recorded
def quotient_of_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The quotient of numbers of 64 bits without a sign, rounded down; all by their bits."""
    # Half of `a` has no sign; twice its quotient is right or one too small.
    small = b.clamp(min=1)
    guess = torch.div((a >> 1) & ~_HALF, small, rounding_mode="trunc") << 1
    rest = a - guess * b
    guess = guess + ((rest ^ _HALF) >= (b ^ _HALF))
    return torch.where(b < 0, ((a ^ _HALF) >= (b ^ _HALF)).to(torch.int64), guess)


@recorded
def shifted_right(a: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Numbers of 64 bits without a sign, moved to the right."""
    once = (a >> 1) & ~_HALF
    return torch.where(places == 0, a, once >> (places - 1).clamp(min=0))
