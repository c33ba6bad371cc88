"""Metrics: known values, NaN and infinity, integers, text, and sums over samples."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aigcc.analysis.metrics import (
    Agreement,
    Comparison,
    compare_outputs,
    cosine,
    max_abs,
    psnr,
    relative,
    sqnr,
)
from aigcc.errors import CompileError

NAN, INF = math.nan, math.inf


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_known_values() -> None:
    a, b = f32(3, 4), f32(3, 3.5)
    assert sqnr(a, b) == pytest.approx(20.0)  # 25 / 0.25
    assert cosine(a, b) == pytest.approx(23 / (5 * math.hypot(3, 3.5)))
    assert max_abs(a, b) == 0.5
    assert relative(a, b) == 0.125
    assert psnr(a, b, peak=2) == pytest.approx(10 * math.log10(4 / 0.125))
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / 0.125))  # the range is 1


def test_equal_arrays() -> None:
    a = f32(1, -2, 0)
    assert (sqnr(a, a), psnr(a, a), cosine(a, a)) == (INF, INF, 1)
    assert (max_abs(a, a), relative(a, a)) == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (f32(0, 0), f32(0, 0), (INF, 1, 0)),
        (f32(0, 0), f32(0, 1), (-INF, 0, INF)),
        (f32(0, 1), f32(0, 0), (0, 0, 1)),
        (f32(), f32(), (INF, 1, 0)),
    ],
)
def test_zeros(a: np.ndarray, b: np.ndarray, wanted: tuple[float, float, float]) -> None:
    assert (sqnr(a, b), cosine(a, b), relative(a, b)) == wanted


@pytest.mark.parametrize("same", [NAN, INF, -INF])
def test_equal_infinities_agree(same: float) -> None:
    a = f32(1, same)
    assert (sqnr(a, a), cosine(a, a), relative(a, a)) == (INF, 1, 0)
    assert max_abs(a, f32(1.5, same)) == 0.5


@pytest.mark.parametrize(
    ("one", "two"), [(NAN, 1), (1, NAN), (INF, 1), (1, -INF), (INF, -INF), (NAN, INF)]
)
def test_a_broken_element_is_never_dropped(one: float, two: float) -> None:
    a, b = f32(1, one), f32(1, two)
    assert (sqnr(a, b), psnr(a, b), cosine(a, b)) == (-INF, -INF, -1)
    assert (max_abs(a, b), relative(a, b)) == (INF, INF)
    (row,) = compare_outputs({"y": a}, {"y": b})
    assert row.broken == 1


def test_integers_count_mismatches_exactly() -> None:
    a = np.array([1, 2, 2**60], np.int64)
    (row,) = compare_outputs({"y": a}, {"y": a + np.array([0, 0, 1])})
    assert row.mismatches == 1
    assert row.max_abs == 1
    (row,) = compare_outputs({"y": a > 1}, {"y": a > 2})
    assert (row.mismatches, row.max_abs) == (1, 1)
    (row,) = compare_outputs({"y": f32(1)}, {"y": f32(2)})
    assert row.mismatches is None


def test_text() -> None:
    (row,) = compare_outputs({"y": np.array(["a", "b"])}, {"y": np.array(["a", "c"], object)})
    assert (row.mismatches, row.relative) == (1, INF)
    with pytest.raises(CompileError, match="do not compare"):
        compare_outputs({"y": np.array(["a"])}, {"y": f32(1)})


def test_bfloat16_and_complex() -> None:
    a = np.array([1, 2], ml_dtypes.bfloat16)
    assert max_abs(a, f32(1, 2.5)) == 0.5
    assert max_abs(np.array([1 + 1j]), np.array([1 + 3j])) == 2


def test_missing_outputs_and_other_shapes() -> None:
    with pytest.raises(CompileError, match=r"output 'logits' is missing(.|\n)*'logit'"):
        compare_outputs({"logits": f32(1)}, {"logit": f32(1)})
    with pytest.raises(CompileError, match=r"\[1\] and \[2\](.|\n)*output 'y'"):
        compare_outputs({"y": f32(1)}, {"y": f32(1, 2)})


FLOATS = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1000, 1000, width=32))


@given(FLOATS, st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_sums_over_samples_are_the_metric_of_all(a: np.ndarray, seed: int, cut: int) -> None:
    b = a + np.random.default_rng(seed).standard_normal(a.shape).astype(np.float32)
    parts = Comparison()
    parts.add({"y": a[:cut]}, {"y": b[:cut]})
    parts.add({"y": a[cut:]}, {"y": b[cut:]})
    (row,) = parts.rows()
    assert row.elements == a.size
    assert row.sqnr == pytest.approx(sqnr(a, b))
    assert row.cosine == pytest.approx(cosine(a, b))
    assert row.psnr == pytest.approx(psnr(a, b))
    assert (row.max_abs, row.relative) == (max_abs(a, b), relative(a, b))


@given(FLOATS, st.floats(0.1, 10))
def test_against_the_definitions(a: np.ndarray, scale: float) -> None:
    b = (a * np.float32(scale)).astype(np.float32)
    wide, error = a.astype(float), a.astype(float) - b
    if (error**2).sum() and (wide**2).sum():
        assert sqnr(a, b) == pytest.approx(10 * np.log10((wide**2).sum() / (error**2).sum()))
        assert relative(a, b) == pytest.approx(np.abs(error).max() / np.abs(wide).max())


def test_large_arrays_are_walked_in_chunks() -> None:
    a = np.ones((3, 700_001), np.float32)
    b = a.copy()
    b[2, -1] = 0
    made = Agreement()
    made.add(a, b)
    assert (made.elements, made.mismatches, made.max_abs) == (a.size, 1, 1)
