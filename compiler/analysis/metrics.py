"""How far one set of outputs is from another: SQNR, cosine, PSNR and friends, NaN counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.errors import CompileError, did_you_mean

Array = npt.NDArray[Any]

_CHUNK = 1 << 20  # elements that are widened to float64 at a time


@dataclasses.dataclass
class Agreement:
    """Running sums over pairs of arrays; every metric is read from them.

    Elements where both arrays are NaN, or both the same infinity, agree and enter no sum. An
    element that is NaN or infinite in one array only, or infinite with opposite signs, is
    `broken`: then every metric has its worst value.

    Attributes:
        elements: Compared elements.
        broken: Elements whose error is infinite.
        mismatches: Elements that are not equal.
        signal: Sum of squares of the reference.
        power: Sum of squares of the other.
        dot: Sum of products.
        noise: Sum of squared differences.
        max_abs: Largest |a - b|; infinite where something is broken.
        largest: Largest |a| of the reference.
        low: Smallest value of the reference.
        high: Largest value of the reference.
    """

    elements: int = 0
    broken: int = 0
    mismatches: int = 0
    signal: float = 0.0
    power: float = 0.0
    dot: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    largest: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, reference: Array, other: Array) -> None:
        """Take in one more pair of arrays.

        Args:
            reference: The array that is right; any shape, real, complex, boolean or text.
            other: The array that is judged; same shape.

        Raises:
            CompileError: the shapes differ, or one holds text and the other numbers.
        """
        reference, other = np.asarray(reference), np.asarray(other)
        if reference.shape != other.shape:
            raise CompileError(
                f"outputs have different shapes: {list(reference.shape)} and {list(other.shape)}"
            )
        if _is_text(reference) != _is_text(other):
            raise CompileError(f"outputs of {reference.dtype} and {other.dtype} do not compare")
        self.elements += reference.size
        for a, b in _chunks(reference, other):
            if _is_text(a):
                self.mismatches += int((a != b).sum())
            else:
                self._add_numbers(_widen(a), _widen(b))
        if self.broken or (_is_text(reference) and self.mismatches):
            self.max_abs = math.inf

    def _add_numbers(self, a: Array, b: Array) -> None:
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        self.mismatches += int((~same).sum())
        self.broken += int((~same & ~finite).sum())
        a, b = a[finite], b[finite]
        if not a.size:
            return
        difference = a - b
        self.signal += float(a @ a)
        self.power += float(b @ b)
        self.dot += float(a @ b)
        self.noise += float(difference @ difference)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.largest = max(self.largest, float(np.abs(a).max()))
        self.low = min(self.low, float(a.min()))
        self.high = max(self.high, float(a.max()))

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise, 10 log10(sum a^2 / sum (a-b)^2), in dB; inf when equal."""
        return self._decibel(self.signal)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, from -1 (also: broken) to 1 (also: both zero)."""
        if math.isinf(self.max_abs):
            return -1.0
        if not self.signal or not self.power:
            return 1.0 if self.signal == self.power else 0.0
        if not self.noise:
            return 1.0
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.signal) / math.sqrt(self.power)))

    @property
    def relative(self) -> float:
        """max|a-b| / max|a|; infinite where a is zero and b is not."""
        if not self.max_abs:
            return 0.0
        return self.max_abs / self.largest if self.largest else math.inf

    @property
    def peak(self) -> float:
        """The range of the reference, high - low: the peak that `psnr` takes by default."""
        return max(0.0, self.high - self.low)

    def psnr(self, peak: float | None = None) -> float:
        """Peak signal to noise, 10 log10(peak^2 / mean (a-b)^2), in dB; inf when equal.

        Args:
            peak: The range that values can have (255 for 8-bit images, 2 for [-1, 1]); the
                range that the reference really has by default.
        """
        peak = self.peak if peak is None else peak
        return self._decibel(peak * peak * self.elements)

    def _decibel(self, signal: float) -> float:
        if math.isinf(self.max_abs):
            return -math.inf
        if not self.noise:
            return math.inf
        return 10 * math.log10(signal / self.noise) if signal else -math.inf


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from the reference's; see `Agreement` for what the numbers mean.

    Attributes:
        name: Of the output.
        dtype: Of the reference.
        elements: Compared elements, over all samples.
        sqnr: In dB.
        cosine: From -1 to 1.
        max_abs: Largest |a-b|, in the output's own unit.
        relative: max|a-b| / max|a|.
        psnr: In dB, for `peak`.
        peak: The range of the reference.
        broken: Elements that are NaN or infinite in one of both only.
        mismatches: Unequal elements of an integer, boolean or text output; None for others.
    """

    name: str
    dtype: str
    elements: int
    sqnr: float
    cosine: float
    max_abs: float
    relative: float
    psnr: float
    peak: float
    broken: int
    mismatches: int | None


class Comparison:
    """Collects outputs over many samples, and holds sums only."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[str, Agreement]] = {}

    def add(self, reference: Mapping[str, Array], other: Mapping[str, Array]) -> None:
        """Take in the outputs for one sample.

        Raises:
            CompileError: an output is missing, or its shape differs; names the output.
        """
        for name, expected in reference.items():
            if name not in other:
                raise CompileError(
                    f"output {name!r} is missing", hint=did_you_mean(name, other) if other else None
                )
            dtype = str(np.asarray(expected).dtype)
            _, sums = self._sums.setdefault(name, (dtype, Agreement()))
            try:
                sums.add(expected, other[name])
            except CompileError as error:
                raise CompileError(error.what, at=f"output {name!r}") from None

    def rows(self) -> list[OutputError]:
        """One row an output, in the reference's order."""
        return [
            OutputError(
                name,
                dtype,
                sums.elements,
                sums.sqnr,
                sums.cosine,
                sums.max_abs,
                sums.relative,
                sums.psnr(),
                sums.peak,
                sums.broken,
                None if _is_real_or_complex(dtype) else sums.mismatches,
            )
            for name, (dtype, sums) in self._sums.items()
        ]


def compare_outputs(
    reference: Mapping[str, Array], other: Mapping[str, Array]
) -> list[OutputError]:
    """How far the outputs for one sample are from the reference's.

    Raises:
        CompileError: an output is missing, or its shape differs; names the output.
    """
    comparison = Comparison()
    comparison.add(reference, other)
    return comparison.rows()


def sqnr(reference: Array, other: Array) -> float:
    """Signal to quantisation noise in dB: see `Agreement.sqnr`."""
    return _agreement(reference, other).sqnr


def cosine(reference: Array, other: Array) -> float:
    """Cosine similarity, -1 to 1: see `Agreement.cosine`."""
    return _agreement(reference, other).cosine


def max_abs(reference: Array, other: Array) -> float:
    """Largest |a-b|; infinite where one of both is NaN or infinite."""
    return _agreement(reference, other).max_abs


def relative(reference: Array, other: Array) -> float:
    """max|a-b| / max|a|: see `Agreement.relative`."""
    return _agreement(reference, other).relative


def psnr(reference: Array, other: Array, peak: float | None = None) -> float:
    """Peak signal to noise in dB: see `Agreement.psnr`."""
    return _agreement(reference, other).psnr(peak)


def _agreement(reference: Array, other: Array) -> Agreement:
    made = Agreement()
    made.add(reference, other)
    return made


def _chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _CHUNK):
        yield flat_a[start : start + _CHUNK], flat_b[start : start + _CHUNK]


def _widen(values: Array) -> Array:
    """As float64; a complex number becomes its two parts."""
    if np.iscomplexobj(values):
        return np.ascontiguousarray(values, np.complex128).view(np.float64)
    exact = values.dtype.kind in "iu" and values.dtype.itemsize == 8
    return values.astype(np.longdouble if exact else np.float64)


def _is_text(values: Array) -> bool:
    return values.dtype.kind in "OSU"


def _is_real_or_complex(dtype: str) -> bool:
    return "float" in dtype or "complex" in dtype
