"""Element types: what ONNX calls them, and the torch type that holds their values."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from aigcc.ir.fxview.recording import recorded

D = ir.DataType

TORCH: dict[ir.DataType, torch.dtype] = {
    D.FLOAT: torch.float32,
    D.DOUBLE: torch.float64,
    D.FLOAT16: torch.float16,
    D.BFLOAT16: torch.bfloat16,
    D.FLOAT8E4M3FN: torch.float8_e4m3fn,
    D.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    D.FLOAT8E5M2: torch.float8_e5m2,
    D.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    D.FLOAT8E8M0: torch.float8_e8m0fnu,
    D.INT8: torch.int8,
    D.INT16: torch.int16,
    D.INT32: torch.int32,
    D.INT64: torch.int64,
    D.UINT8: torch.uint8,
    D.UINT16: torch.uint16,
    D.UINT32: torch.uint32,
    D.UINT64: torch.uint64,
    D.BOOL: torch.bool,
    D.COMPLEX64: torch.complex64,
    D.COMPLEX128: torch.complex128,
    # torch computes with nothing smaller than a byte, so these are held one element an item.
    D.INT2: torch.int8,
    D.INT4: torch.int8,
    D.UINT2: torch.uint8,
    D.UINT4: torch.uint8,
    D.FLOAT4E2M1: torch.float32,
}
"""The torch type that holds the values of an ONNX type."""

TRAINABLE = frozenset({D.FLOAT, D.DOUBLE, D.FLOAT16, D.BFLOAT16})
"""Types whose weights become parameters."""

FLOAT8 = frozenset({D.FLOAT8E4M3FN, D.FLOAT8E4M3FNUZ, D.FLOAT8E5M2, D.FLOAT8E5M2FNUZ})

_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def bounds(dtype: ir.DataType) -> tuple[float, float]:
    """The lowest and the highest number of a type."""
    if dtype.is_floating_point():
        return float(dtype.min), float(dtype.max)
    return int(dtype.min), int(dtype.max)


def cast(
    x: Any, source: ir.DataType, to: ir.DataType, saturate: bool = True, how: str = "up"
) -> Any:
    """`x` with the values that ONNX Runtime's Cast gives it.

    Floats become whole numbers as in C, but for those of four bits and less, which are rounded.

    Args:
        x: Numbers.
        source: Their type.
        to: What they become.
        saturate: Whether float8 has its largest number for what is larger still.
        how: To which power of two float8e8m0 rounds: "up", "down" or "nearest".
    """
    if to == D.FLOAT8E8M0 and source != to:
        return to_power(x.to(torch.float32), saturate, how)
    if to == D.FLOAT4E2M1:
        return round_to_float4(x.to(torch.float32))
    if to in (D.INT4, D.INT2, D.UINT4, D.UINT2):
        return _low_bits(x, source, to)
    if to in FLOAT8 and source not in FLOAT8:
        return _to_float8(x, to, saturate)
    return x.to(TORCH[to])


def _low_bits(x: Any, source: ir.DataType, to: ir.DataType) -> Any:
    """The low bits of whole numbers; of floats, those of the nearest, halves away from zero."""
    if source.is_floating_point():
        x = (x + 0.5 * x.sign()).trunc()
    wide, full = x.to(torch.int64), 1 << to.bitwidth
    if to in (D.UINT4, D.UINT2):
        return (wide & (full - 1)).to(torch.uint8)
    return (((wide + full // 2) & (full - 1)) - full // 2).to(torch.int8)


def _to_float8(x: Any, to: ir.DataType, saturate: bool) -> Any:
    low, high = bounds(to)
    if saturate:
        return x.clamp(low, high).to(TORCH[to])
    if to == D.FLOAT8E4M3FN:  # torch saturates where this type has no infinity
        limit = high + (high - 416) / 2  # half a step beyond the largest
        x = torch.where(x.abs() > limit, torch.nan, x)
    return x.to(TORCH[to])


@recorded
def round_to_float4(x: torch.Tensor) -> torch.Tensor:
    """The nearest number of four bits (two of exponent, one of mantissa), ties to even."""
    grid = torch.tensor(_FLOAT4, device=x.device)
    middle = (grid[1:] + grid[:-1]) / 2
    size = x.abs()
    # A tie goes to the even neighbour: below the middle of an even and an odd step it goes down.
    down, up = torch.bucketize(size, middle), torch.bucketize(size, middle, right=True)
    nearest = torch.copysign(grid[torch.where(up % 2 == 0, up, down)], x)
    return torch.where(x.isnan(), -0.0, nearest)


@recorded
def to_power(x: torch.Tensor, saturate: bool, how: str) -> torch.Tensor:
    """A power of two beside each number: 8 bits of exponent, and none of anything else."""
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    if how == "nearest":
        is_half, has_more = (bits & 0x400000) != 0, (bits & 0x3FFFFF) != 0
        goes_up = is_half & (has_more | (exponent > 0))
    else:
        goes_up = ((bits & 0x7FFFFF) != 0) & (how == "up")
    is_last = exponent == 0xFE
    goes_up = goes_up & (exponent != 0xFF) & ~(is_last & saturate)
    return (exponent + goes_up).to(torch.uint8).view(torch.float8_e8m0fnu)
