"""Calibration: statistics that no order, no number of jobs and no interruption can change."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aigcc.analysis.calibration import calibrate as calibration_module
from aigcc.analysis.calibration.calibrate import Buckets, Calibration, calibrate
from aigcc.analysis.calibration.histogram import BINS, Histogram
from aigcc.analysis.calibration.ranges import choose_range
from aigcc.analysis.calibration.statistics import Statistics
from aigcc.errors import ArtifactError, CompileError, SampleError
from aigcc.ir.module import Module
from aigcc.samples import Samples, load_samples

QUICK = settings(deadline=None, max_examples=60)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOATS = arrays.arrays(np.float32, st.integers(1, 30), elements=NUMBERS)
MODERATE = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32).map(np.float32)
)


def module(text: str) -> Module:
    return Module.parse(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def same(a: Histogram, b: Histogram) -> bool:
    return (a.exponent, a.first, a.counts.tolist()) == (b.exponent, b.first, b.counts.tolist())


# Histograms


@QUICK
@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms())
def test_a_histogram_does_not_depend_on_order_or_pieces(
    pieces: list[np.ndarray], random: object
) -> None:
    whole = Statistics.of(np.concatenate(pieces)).histogram
    assert whole.total == sum(piece.size for piece in pieces)
    parts = [Statistics.of(piece).histogram for piece in pieces]
    random.shuffle(parts)
    left = Histogram()
    for part in parts:
        left.merge(part)
    right = Histogram()
    for part in reversed(parts):
        both = Histogram()
        both.merge(part)
        both.merge(right)
        right = both
    assert same(left, whole)
    assert same(right, whole)


@QUICK
@given(FLOATS)
def test_bins_hold_what_they_say(numbers: np.ndarray) -> None:
    histogram = Statistics.of(numbers).histogram
    edges = histogram.edges()
    assert len(histogram.counts) <= BINS
    assert 0 in edges
    if numbers.any():
        finer = math.ldexp(1.0, histogram.exponent - 1)
        low, high = min(numbers.min(), 0) / finer, max(numbers.max(), 0) / finer
        assert histogram.exponent == -120 or int(high) - (int(low) - (low < 0)) >= BINS
    for left, right, count in zip(edges, edges[1:], histogram.counts, strict=False):
        inside = (numbers > left) & (numbers <= right) if right <= 0 else (
            (numbers >= left) & (numbers < right))  # fmt: skip
        inside &= numbers < 0 if right <= 0 else numbers >= 0
        assert inside.sum() == count


@QUICK
@given(FLOATS)
def test_negated_numbers_mirror_the_bins(numbers: np.ndarray) -> None:
    numbers = numbers[numbers != 0]
    assume(numbers.size)
    one, two = Statistics.of(numbers).histogram, Statistics.of(-numbers).histogram
    assume(one.exponent == two.exponent)  # bin 0 is there even if only bins below it are filled
    np.testing.assert_array_equal(one.magnitudes(), two.magnitudes())


def test_double_precision_and_integers() -> None:
    assert Statistics.of(np.array([1e300, -1e-300])).histogram.total == 2
    assert Statistics.of(np.array([3, -(2**40)])).low == -(2**40)
    assert Statistics.of(np.array([True, False])).zeros == 1


# Statistics


def test_what_is_counted() -> None:
    found = Statistics.of(f32(1, -2, 0, math.inf, -math.inf))
    assert (found.count, found.non_finite, found.zeros) == (3, 2, 1)
    assert (found.low, found.high) == (-2, 1)
    assert found.mean == pytest.approx(-1 / 3)
    assert found.mean_square == pytest.approx(5 / 3)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels(axis: int) -> None:
    array = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    array[1, 2, 3] = -math.inf
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    found = Statistics.of(array, axis).channels
    assert found is not None
    for index, row in enumerate(rows):
        finite = row[np.isfinite(row)].astype(np.float64)
        assert found.count[index] == finite.size
        assert (found.low[index], found.high[index]) == (finite.min(), finite.max())
        assert found.absmax[index] == np.abs(finite).max()
        assert found.mean[index] == pytest.approx(finite.mean())
        assert found.mean_square[index] == pytest.approx((finite**2).mean())


def test_large_arrays_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((3, 7, 11)).astype(np.float32)
    whole = Statistics.of(array, 1)
    monkeypatch.setattr("aigcc.analysis.calibration.statistics._BLOCK", 20)
    monkeypatch.setattr("aigcc.analysis.calibration.statistics._CHUNK", 5)
    blocks = Statistics.of(array, 1)
    assert same(whole.histogram, blocks.histogram)
    assert whole.channels is not None and blocks.channels is not None
    np.testing.assert_array_equal(whole.channels.low, blocks.channels.low)
    np.testing.assert_allclose(whole.channels.squares, blocks.channels.squares)


def test_a_dead_channel_and_a_constant_value() -> None:
    dead = Statistics.of(np.zeros((2, 3), np.float32), 1)
    assert dead.channels is not None and dead.channels.absmax.tolist() == [0, 0, 0]
    assert dead.is_constant
    constant = Statistics.of(f32(3, 3))
    for method in ("minmax", "percentile", "entropy", "mse"):
        assert dead.range(method, 256, True) == (0, 0)
        assert constant.range(method, 256, False) == (0, 3)
        assert constant.range(method, 256, True) == (-3, 3)


# Ranges


def squared_error(x: np.ndarray, low: float, high: float, levels: int) -> float:
    step = (high - low) / (levels - 1)
    clipped = np.clip(x, low, high)
    return float(((np.round(clipped / step) * step - x) ** 2).mean())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("levels", [15, 255])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "skewed"])
def test_mse_is_near_the_best_of_all_ranges(kind: str, levels: int, symmetric: bool) -> None:
    random = np.random.default_rng(0)
    x = {
        "normal": lambda: random.standard_normal(20000),
        "laplace": lambda: random.laplace(size=20000),
        "relu": lambda: np.maximum(random.standard_normal(20000), 0),
        "skewed": lambda: random.gumbel(size=20000),
    }[kind]().astype(np.float32)
    low, high = Statistics.of(x).range("mse", levels, symmetric)
    highs = np.linspace(0, x.max(), 30)[1:]
    lows = np.linspace(0, -x.min(), 30) if x.min() < 0 else [0.0]
    candidates = (
        [(-t, t) for t in highs] if symmetric else itertools.product(-np.array(lows), highs)
    )
    best = min(squared_error(x, *pair, levels) for pair in candidates)
    assert squared_error(x, low, high, levels) <= 1.06 * best


def modelled_error(statistics: Statistics, low: float, high: float, levels: int) -> float:
    """The documented error of a range: every bin is inside of it, or clipped."""
    histogram = statistics.histogram
    edges, width = histogram.edges(), histogram.width
    noise = ((high - low) / (levels - 1)) ** 2 / 12
    middles = (edges[1:] + edges[:-1]) / 2
    error = np.full(len(middles), noise)
    for end, is_clipped in ((high, edges[:-1] >= high), (low, edges[1:] <= low)):
        error[is_clipped] = (middles[is_clipped] - end) ** 2 + width**2 / 12
    return float(error @ histogram.counts) - statistics.zeros * noise


@QUICK
@given(MODERATE, st.sampled_from([3, 16, 255]), st.booleans())
def test_mse_is_the_best_of_all_edges(x: np.ndarray, levels: int, symmetric: bool) -> None:
    statistics = Statistics.of(np.round(x))  # few numbers, so that brute force is quick
    low, high = min(statistics.low, 0), max(statistics.high, 0)
    if low == high:
        return
    found = statistics.range("mse", levels, symmetric)
    random = np.random.default_rng(0)
    edges = statistics.histogram.edges()
    for _ in range(40):
        pair = random.choice(edges, 2)
        if symmetric:
            top = min(abs(pair[0]), max(-low, high))
            trial = (-top, top)
        else:
            trial = (max(-abs(pair[0]), low), min(abs(pair[1]), high))
        if trial[0] < trial[1]:
            mine = modelled_error(statistics, *found, levels)
            assert mine <= modelled_error(statistics, *trial, levels) * (1 + 1e-9) + 1e-9


@QUICK
@given(
    FLOATS,
    st.sampled_from(["minmax", "percentile", "percentile(90)", "entropy", "mse"]),
    st.sampled_from([2, 16, 255, 256, 65536]),
    st.booleans(),
)
def test_any_range_holds_zero_and_nothing_beyond_the_numbers(
    x: np.ndarray, method: str, levels: int, symmetric: bool
) -> None:
    low, high = Statistics.of(x).range(method, levels, symmetric)
    assert math.isfinite(low) and math.isfinite(high)
    assert low <= 0 <= high
    assert -low == high or not symmetric
    largest = float(np.abs(x).max())
    assert -largest <= low and high <= largest


def test_percentiles() -> None:
    x = np.arange(1, 100_001, dtype=np.float32)
    _, high = Statistics.of(x).range("percentile(99)", 256, True)
    assert high == pytest.approx(99_000, abs=64)
    mixed = np.concatenate([x, -x[:1000]])
    low, high = Statistics.of(mixed).range("percentile(99)", 256, False)
    assert low == pytest.approx(-500, abs=64)
    assert high == pytest.approx(100_000 - 505, abs=64)
    assert Statistics.of(x).range("percentile(100)", 256, False) == (0, 100_000)


def divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """Migacz's, as his slides have it."""
    p = counts[:end].astype(float)
    q = np.zeros(end)
    for level in range(levels):
        here = slice(end * level // levels, end * (level + 1) // levels)
        filled = p[here] > 0
        if filled.any():
            q[here] = np.where(filled, p[here].sum() / filled.sum(), 0)
    p[-1] += counts[end:].sum()
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * np.log(p / q), 0).sum())


def test_entropy_is_the_least_of_all_divergences() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.laplace(size=5000), [15.0, -30.0]]).astype(np.float32)
    statistics = Statistics.of(x)
    histogram = statistics.histogram
    counts = histogram.magnitudes()
    counts[0] = counts[1]
    all_ends = range(16, len(counts) + 1, 7)
    _, high = statistics.range("entropy", 32, True)
    mine = divergence(counts, round(high / histogram.width), 16)
    assert mine <= min(divergence(counts, end, 16) for end in all_ends) + 1e-12
    assert high < 30


@pytest.mark.parametrize("method", ["mean", "percentile(3)", "percentile(101)", "percentil"])
def test_methods_that_do_not_exist(method: str) -> None:
    with pytest.raises(CompileError, match="there is no calibration method"):
        choose_range(Histogram(), 0, 1, 0, method, 256, True)


# Calibration of a module

NET = module(
    """net (float[n,4] x, int64[1] timestep) => (float[n,4] y)
  <float[4,4] w = {1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 2, 0, -1, 1, -1, 1}>
{
  a = MatMul (x, w)
  b = Relu (a)
  t = Cast <to = 1> (timestep)
  y = Div (b, t)
}"""
)
VALUES = {"x": 1, "a": -1, "b": None, "y": None}


def sample(index: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(index)
    scale = 1 + index % 7
    return {
        "x": (scale * random.standard_normal((1 + index % 3, 4))).astype(np.float32),
        "timestep": np.array([1 + index]),
    }


def samples(count: int, make: Callable[[int], dict[str, np.ndarray]] = sample) -> Samples:
    return load_samples(lambda: (make(index) for index in range(count)), NET)


def saved(calibration: Calibration, folder: Path) -> bytes:
    calibration.save(folder / "saved.npz")
    return (folder / "saved.npz").read_bytes()


def test_statistics_are_those_of_all_samples_together(tmp_path: Path) -> None:
    found = calibrate(NET, samples(20), VALUES, moments=["a"])
    x = np.concatenate([sample(index)["x"] for index in range(20)])
    assert found.samples == 20
    assert list(found.tensors) == ["a", "b", "x", "y"]
    assert found.tensors["x"].count == x.size
    assert found.tensors["x"].low == x.min()
    assert found.tensors["x"].mean_square == pytest.approx((x**2).mean())
    assert same(found.tensors["x"].histogram, Statistics.of(x).histogram)
    channels = found.tensors["x"].channels
    assert channels is not None and found.tensors["b"].channels is None
    np.testing.assert_array_equal(channels.absmax, np.abs(x).max(0))
    assert found.range("x", "minmax", 256, False) == (x.min(), x.max())
    a = x @ NET.graph.initializers["w"].const_value.numpy()
    assert found.moments["a"].rows == len(x)
    np.testing.assert_allclose(found.moments["a"].matrix, a.T @ a, rtol=1e-5)


@pytest.mark.parametrize("jobs", [2, 5])
def test_jobs_do_not_change_a_byte(tmp_path: Path, jobs: int) -> None:
    buckets = Buckets("timestep", edges=(4, 9))
    one, many = (
        calibrate(NET, samples(17), VALUES, moments=["x", "a"], buckets=buckets, jobs=n)
        for n in (1, jobs)
    )
    assert saved(one, tmp_path) == saved(many, tmp_path)


def test_a_file_gives_back_all_that_was_saved(tmp_path: Path) -> None:
    found = calibrate(NET, samples(5), VALUES, moments=["a"], buckets=Buckets("timestep", (3,)))
    first = saved(found, tmp_path)
    loaded = Calibration.load(tmp_path / "saved.npz")
    assert saved(loaded, tmp_path) == first
    for method in ("minmax", "mse"):
        for bucket in (None, 0, 1):
            assert loaded.range("y", method, 16, False, bucket) == found.range(
                "y", method, 16, False, bucket
            )
    with np.load(tmp_path / "saved.npz", allow_pickle=False) as archive:
        assert "header" in archive.files


def test_buckets_by_edges() -> None:
    found = calibrate(NET, samples(10), VALUES, buckets=Buckets("timestep", edges=(4, 9)))
    assert found.edges == (4, 9)
    below, between, above = found.buckets["x"]  # timesteps 1 to 3, 4 to 8, 9 and 10
    expected = np.concatenate([sample(index)["x"] for index in range(3)])
    assert (below.count, below.low) == (expected.size, expected.min())
    assert found.tensors["x"].count == below.count + between.count + above.count
    assert found.tensors["x"].high == max(below.high, between.high, above.high)
    assert found.range("x", "minmax", 256, False, 0)[1] == expected.max()


def test_buckets_of_equal_counts() -> None:
    found = calibrate(NET, samples(12), {"t": None}, buckets=Buckets("timestep", count=3))
    assert found.edges == (5, 9)
    assert [part.count for part in found.buckets["t"]] == [4, 4, 4]
    flat = samples(6, lambda index: {**sample(index), "timestep": np.array([7])})
    assert calibrate(NET, flat, {"t": None}, buckets=Buckets("timestep", count=3)).edges == ()


def test_an_empty_bucket_has_no_range() -> None:
    found = calibrate(NET, samples(3), VALUES, buckets=Buckets("timestep", edges=(100,)))
    with pytest.raises(CompileError, match=r"no range\n  at: value 'x', bucket 1"):
        found.range("x", "minmax", 256, True, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either edges or a count"),
        ({"edges": (1.0,), "count": 2}, "either edges or a count"),
        ({"edges": (2.0, 1.0)}, "do not ascend"),
    ],
)
def test_buckets_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        Buckets("timestep", **arguments)


def test_buckets_by_an_input_that_cannot_decide() -> None:
    with pytest.raises(SampleError, match="no input is called 'time'"):
        calibrate(NET, samples(2), VALUES, buckets=Buckets("time", edges=(1,)))
    with pytest.raises(SampleError, match="numbers of 2 buckets"):
        calibrate(NET, samples(2), VALUES, buckets=Buckets("x", edges=(0,)))


# The cache


class Counted:
    """Samples that know how many runs of the module they cost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        run = calibration_module.Stream.run

        def counting(*arguments: object) -> object:
            self.runs += 1
            return run(*arguments)

        monkeypatch.setattr(calibration_module.Stream, "run", counting)


def test_what_is_cached_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    first = calibrate(NET, samples(5), VALUES, cache=tmp_path)
    again = calibrate(NET.clone(), samples(5), VALUES, cache=tmp_path)
    assert counted.runs == 5
    assert saved(first, tmp_path) == saved(again, tmp_path)
    more = calibrate(NET, samples(8), VALUES, cache=tmp_path)
    assert counted.runs == 8
    assert saved(more, tmp_path) == saved(calibrate(NET, samples(8), VALUES), tmp_path)


def test_other_samples_and_fewer_ones_start_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(NET, samples(5), VALUES, cache=tmp_path)
    counted = Counted(monkeypatch)
    for given_samples, count in (
        (samples(5, lambda index: sample(index + 1)), 5),
        (samples(3), 3),
    ):
        counted.runs = 0
        found = calibrate(NET, given_samples, VALUES, cache=tmp_path)
        assert counted.runs == count == found.samples


def test_any_change_is_another_key(tmp_path: Path) -> None:
    def files(module: Module, **options: object) -> set[str]:
        arguments: dict[str, object] = {"values": VALUES, **options}
        values = arguments.pop("values")
        calibrate(module, samples(2), values, cache=tmp_path, **arguments)
        return {path.name for path in tmp_path.glob("calibration-*.npz")}

    seen = files(NET)
    assert len(seen) == 1
    weight = NET.clone()
    array = weight.graph.initializers["w"].const_value.numpy().copy()
    array[3, 3] += 1
    weight.graph.initializers["w"].const_value = ir.tensor(array)
    other = NET.clone()
    next(node for node in other.graph if node.op_type == "Relu").op_type = "Abs"
    for count, (changed, options) in enumerate(
        [
            (weight, {}),
            (other, {}),
            (NET, {"values": {"x": None}}),
            (NET, {"moments": ["x"]}),
            (NET, {"buckets": Buckets("timestep", (2,))}),
        ],
        2,
    ):
        assert len(files(changed, **options)) == count


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    first = calibrate(NET, samples(3), VALUES, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-30], b"PK" + whole[10:]):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="no calibration that can be read"):
            Calibration.load(file)
        calibrate(NET, samples(3), VALUES, cache=tmp_path)
        assert file.read_bytes() == whole == saved(first, tmp_path.parent)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from aigcc.analysis.calibration import calibrate as module
import test_calibrate as t
module.SAVE_SECONDS = 0.0
def slow(index):
    if index >= 6:
        print("started", flush=True)
        time.sleep(60)
    return t.sample(index)
samples, cache = t.samples(12, slow), Path({cache!r})
module.calibrate(t.NET, samples, t.VALUES, moments=["a"], jobs={jobs}, cache=cache)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    cache = tmp_path / "cache"
    text = KILLED.format(tests=str(Path(__file__).parent), cache=str(cache), jobs=jobs)
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (file,) = cache.glob("calibration-*.npz")
    assert 0 < Calibration.load(file).samples <= 6
    counted = Counted(monkeypatch)
    found = calibrate(NET, samples(12), VALUES, moments=["a"], cache=cache)
    assert 6 <= counted.runs < 12
    assert saved(found, tmp_path) == saved(
        calibrate(NET, samples(12), VALUES, moments=["a"]), tmp_path
    )


# What goes wrong


def test_a_node_that_makes_nan_is_named() -> None:
    def zero_at_three(index: int) -> dict[str, np.ndarray]:
        return {**sample(index), "timestep": np.array([0 if index == 3 else 1])}

    broken = NET.clone()
    node = next(node for node in broken.graph if node.op_type == "Div")
    node.metadata_props["aigcc.source"] = "unet.py:42"
    for jobs in (1, 3):
        with pytest.raises(CompileError) as error:
            calibrate(broken, samples(9, zero_at_three), {"y": None}, jobs=jobs)
        text = str(error.value)
        assert "of 'y' are" in text
        assert "Div that makes 'y' from unet.py:42, sample 3" in text


def test_the_first_node_is_named_and_not_the_one_that_was_looked_at() -> None:
    overflow = module(
        """g (float[2] x) => (float[2] y) {
  e = Exp (x)
  d = Div (e, e)
  y = Neg (d)
}"""
    )
    feeds = load_samples(lambda: [{"x": f32(1, 1000)}], overflow)
    with pytest.raises(CompileError, match=r"1 of 2 values of 'e' are infinite(.|\n)*Exp"):
        calibrate(overflow, feeds, {"y": None})


def test_the_infinities_of_a_mask_are_counted_and_left_out() -> None:
    masked = module(
        """g (float[2,2] x) => (float[2,2] y) <float[2,2] mask = {0, 0, 0, 0}> {
  a = Add (x, mask)
  y = Softmax (a)
}"""
    )
    mask = f32(0, -math.inf, 0, 0).reshape(2, 2)
    masked.graph.initializers["mask"].const_value = ir.tensor(mask)
    feeds = load_samples(lambda: [{"x": np.ones((2, 2), np.float32)}] * 3, masked)
    found = calibrate(masked, feeds, {"a": 1, "y": None}, jobs=2)
    assert found.tensors["a"].non_finite == 3
    assert (found.tensors["a"].low, found.tensors["a"].high) == (1, 1)
    assert found.tensors["y"].non_finite == 0
    with pytest.raises(CompileError, match="second moments are wanted"):
        calibrate(masked, feeds, {}, moments=["a"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z": None}, "no value 'z'"),
        ({"w": None}, "'w' is a weight"),
        ({"x": 2}, r"channel axis 2 is outside of the shape \[1, 4\]\n  at: value 'x', sample 0"),
        ({"x": 0}, "1 channels in one sample and 2 in another"),
    ],
)
def test_values_that_cannot_be_calibrated(values: dict[str, int | None], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        calibrate(NET, samples(3), values)


def test_samples_that_cannot_be_used() -> None:
    turns = iter(range(10))

    def once() -> Iterator[dict[str, np.ndarray]]:
        if next(turns) < 1:
            yield sample(0)

    with pytest.raises(SampleError, match="no samples"):
        calibrate(NET, load_samples(once, NET), VALUES)

    def broken(index: int) -> dict[str, np.ndarray]:
        feeds = sample(index)
        if index == 2:
            feeds["x"][0, 1] = math.nan
        return feeds

    with pytest.raises(SampleError, match=r"input 'x' holds 1 values that are NaN(.|\n)*sample 2"):
        calibrate(NET, samples(4, broken), VALUES, jobs=2)


def test_results_that_are_asked_for_wrongly(tmp_path: Path) -> None:
    found = calibrate(NET, samples(2), VALUES)
    with pytest.raises(CompileError, match="'bb' was not calibrated"):
        found.range("bb", "minmax", 256, True)
    with pytest.raises(CompileError, match="no bucket 1"):
        found.range("b", "minmax", 256, True, 1)
    with pytest.raises(ArtifactError, match="cannot be saved"):
        found.save(tmp_path / "nowhere" / "x.npz")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cache cannot be made"):
        calibrate(NET, samples(2), VALUES, cache=tmp_path / "file")
    with pytest.raises(ArtifactError, match="No such file"):
        Calibration.load(tmp_path / "x.npz")


def test_memory_does_not_grow_with_the_samples() -> None:
    def size(calibration: Calibration) -> int:
        return sum(part.histogram.counts.size for (part,) in calibration.buckets.values())

    few, many = (calibrate(NET, samples(count), VALUES, jobs=2) for count in (30, 300))
    assert size(many) <= len(VALUES) * BINS
    assert size(many) <= 2 * size(few)


def test_samples_are_read_one_at_a_time() -> None:
    events: list[str] = []

    def make(index: int) -> dict[str, np.ndarray]:
        events.append(f"read {index}")
        return sample(index)

    walk = samples(3, make)
    events.clear()
    calibrate(NET, walk, VALUES, progress=lambda text, fraction: events.append(text))
    assert events == [
        "read 0", "calibrating: 1 samples", "read 1", "calibrating: 2 samples",
        "read 2", "calibrating: 3 samples",
    ]  # fmt: skip


def test_the_reach_of_a_channel_holds_all_it_saw_and_five_deviations() -> None:
    array = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    array[0, 2, 0] = 40
    channels = Statistics.of(array, axis=1).channels
    assert channels is not None
    low, high = channels.reach
    rows = array.transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(low, rows.mean(1) - 5 * rows.std(1), rtol=1e-5)
    np.testing.assert_allclose(high[:2], (rows.mean(1) + 5 * rows.std(1))[:2], rtol=1e-5)
    assert high[2] == 40
