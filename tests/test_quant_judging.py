"""What judges a quantised build: perplexity, outputs of any type, calibrations that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from aigcc.analysis.budget import Budget
from aigcc.analysis.calibration import calibrate as calibration_module
from aigcc.analysis.calibration.calibrate import Buckets, Calibration, calibrate
from aigcc.analysis.calibration.statistics import Statistics
from aigcc.analysis.damage import Damage
from aigcc.errors import CompileError, TargetError
from aigcc.ir.module import Module
from aigcc.quality import Quality, measure
from aigcc.runtime import OrtSession
from aigcc.samples import Samples, load_samples

PERPLEXITY = Budget.parse("perplexity<=+1%")
SQNR = Budget.parse("sqnr>=30")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Perplexity

IDS = np.random.default_rng(1).integers(0, 50, (1, 16))
MASK = np.ones((1, 16), np.int64)
POSITIONS = np.arange(16)[np.newaxis]
LOGITS = np.zeros((1, 16, 50), np.float32)
LOGITS[0, np.arange(15), IDS[0, 1:]] = 8
PERPLEXITY_OF_LOGITS = 1 + 49 * math.exp(-8)


def judged(
    feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray], given: dict[str, np.ndarray]
) -> Damage:
    damage = Damage(PERPLEXITY)
    damage.add(feeds, expected, given)
    return damage


@pytest.mark.parametrize(
    "feeds",
    [
        {"attention_mask": MASK, "input_ids": IDS},
        {"position_ids": POSITIONS, "input_ids": IDS},
        {"a": MASK, "b": POSITIONS, "c": IDS},
        {"a": POSITIONS + 7, "model/input_ids:0": IDS},
        {"input_ids": IDS[:, ::-1], "decoder_input_ids": IDS},
        {"langs": IDS[:, ::-1], "tokens": IDS.astype(np.uint8)},
    ],
)
def test_the_order_of_the_feeds_does_not_decide_which_are_the_tokens(
    feeds: dict[str, np.ndarray],
) -> None:
    for order in (feeds, dict(reversed(feeds.items()))):
        damage = judged(order, {"logits": LOGITS}, {"logits": LOGITS})
        assert damage.original()["perplexity"] == pytest.approx(PERPLEXITY_OF_LOGITS)


def test_a_mask_alone_is_no_tokens() -> None:
    with pytest.raises(CompileError, match="perplexity has no meaning here"):
        judged({"attention_mask": MASK}, {"logits": LOGITS}, {"logits": LOGITS})


@pytest.mark.parametrize("shape", [(1, 4, 16, 64), (1, 16, 32)])
def test_only_logits_use_up_a_perplexity(shape: tuple[int, ...]) -> None:
    """What is kept of keys has other axes than the tokens, a hidden state too few numbers."""
    other = normal(*shape)
    damage = judged(
        {"input_ids": IDS},
        {"other": other, "logits": LOGITS},
        {"other": other + 1e-1 * normal(*shape, seed=1), "logits": LOGITS},
    )
    assert damage.used() == {
        "perplexity<=+1% of other": 0,
        "perplexity<=+1% of logits": pytest.approx(0, abs=1e-9),
    }
    assert damage.figures()["perplexity"] == pytest.approx(PERPLEXITY_OF_LOGITS)


def test_an_output_that_once_has_too_few_numbers_never_was_logits() -> None:
    hidden = normal(1, 16, 32)
    damage = Damage(PERPLEXITY)
    for ids in (IDS % 32, IDS):
        damage.add({"ids": ids}, {"h": hidden, "y": LOGITS}, {"h": -hidden, "y": LOGITS})
    alone = judged({"ids": IDS}, {"h": hidden, "y": LOGITS}, {"h": hidden, "y": LOGITS})
    assert damage.used()["perplexity<=+1% of h"] == 0
    assert damage.used().keys() == alone.used().keys()


def test_logits_in_bfloat16() -> None:
    logits = LOGITS.astype(ml_dtypes.bfloat16)
    damage = judged({"ids": IDS}, {"logits": logits}, {"logits": logits})
    assert damage.figures()["perplexity"] == pytest.approx(PERPLEXITY_OF_LOGITS)


# Outputs of narrow types, and of none that is a float


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_an_output_of_the_opposite_sign_is_refused_in_every_type(dtype: type) -> None:
    right = normal(4, 4).astype(dtype)
    quality = Quality(damage=Damage(SQNR))
    quality.add({}, {"y": right}, {"y": -right})
    assert quality.damage is not None
    assert quality.damage.used() == {"sqnr>=30 of y": pytest.approx(4000)}
    with pytest.raises(TargetError, match=r"sqnr is -6\.0\d* dB, not 30 dB"):
        quality.refuse(SQNR, "here")


@pytest.mark.parametrize(
    "bound",
    ["sqnr>=3", "psnr>=3", "cosine>=0.1", "relative<=9", "max_abs<=9", "perplexity<=+1%"],
)
def test_quality_that_nobody_measured_breaks_its_bound(bound: str) -> None:
    budget = Budget.parse(f"{bound},size<=1x,latency<=1x")
    ((limit, figure),) = budget.missed({}, {})
    assert limit.text == bound and math.isnan(figure)
    assert budget.shortfall({}, {}) == f"{limit.metric} could not be measured"


def test_what_has_no_float_output_cannot_be_judged_by_quality() -> None:
    module = Module.parse(
        '<ir_version: 10, opset_import: ["" : 21]> g (int64[2] x) => (int64[2] y) { y = Neg (x) }'
    )
    samples = load_samples(lambda: [{"x": np.array([1, 2])}], module)
    session = OrtSession(module, optimise=False)
    with pytest.raises(CompileError, match="sqnr cannot be measured: no output") as error:
        measure(module, session, samples, budget=SQNR)
    assert error.value.hint
    measure(module, session, samples, budget=Budget.parse("size<=0.5x")).refuse(
        Budget.parse("size<=0.5x"), "here"
    )


# What calibration keeps

NET = Module.parse(
    """<ir_version: 10, opset_import: ["" : 21]>
g (float[2,3] x, float[1] t) => (float[2,3] y) {
  r = Relu (x)
  y = Add (r, t)
}"""
)
VALUES = {"r": 1, "y": None}


def some(*numbers: int) -> Samples:
    return load_samples(
        lambda: ({"x": normal(2, 3, seed=n), "t": np.array([n], np.float32)} for n in numbers), NET
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One item for each sample that was run."""
    found: list[None] = []
    run = calibration_module.Stream.run

    def counting(*arguments: object) -> object:
        found.append(None)
        return run(*arguments)

    monkeypatch.setattr(calibration_module.Stream, "run", counting)
    return found


def same(a: Calibration, b: Calibration, folder: Path) -> bool:
    for name, calibration in (("a", a), ("b", b)):
        calibration.save(folder / name)
    return (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_each_set_of_samples_keeps_its_own_calibration(tmp_path: Path, runs: list[None]) -> None:
    """As a search has them: all samples, and two folds of which one may begin as all do."""
    sets = [(0, 1, 2, 3, 4, 5), (1, 3, 5), (0, 1, 2), (0, 2, 4)]
    for numbers in (*sets, *sets):
        found = calibrate(NET, some(*numbers), VALUES, cache=tmp_path / "cache")
        kept = len(runs)
        assert same(found, calibrate(NET, some(*numbers), VALUES), tmp_path)
        del runs[kept:]
    assert len(runs) == sum(map(len, sets))


def test_more_samples_go_on_from_the_longest_that_fits(tmp_path: Path, runs: list[None]) -> None:
    for numbers, cost in [
        ((0, 1, 2, 9, 9), 5),
        ((0, 1), 2),
        ((0, 1, 2), 1),  # takes the place of (0, 1)
        ((0, 1, 2, 3), 1),
        ((0, 1, 2, 9, 9, 4), 1),
        ((0, 1, 2, 3), 0),
    ]:
        runs.clear()
        found = calibrate(NET, some(*numbers), VALUES, cache=tmp_path / "cache")
        assert (len(runs), found.samples) == (cost, len(numbers))
        assert same(found, calibrate(NET, some(*numbers), VALUES), tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_calibration_that_was_used_longest_ago_makes_room(
    tmp_path: Path, runs: list[None]
) -> None:
    for number in range(20):
        calibrate(NET, some(number), VALUES, cache=tmp_path)
        calibrate(NET, some(0), VALUES, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    assert len(runs) == 20


def test_looking_at_all_buckets_together_changes_none() -> None:
    buckets = Buckets("t", edges=(2,))
    found = calibrate(NET, some(0, 1, 2, 3), VALUES, buckets=buckets)
    before = calibrate(NET, some(0, 1, 2, 3), VALUES, buckets=buckets)
    assert found.tensors["r"].channels is not None
    for one, other in zip(found.buckets["r"], before.buckets["r"], strict=True):
        assert one.channels is not None and other.channels is not None
        np.testing.assert_array_equal(one.channels.high, other.channels.high)
        np.testing.assert_array_equal(one.channels.count, other.channels.count)


def test_merging_takes_nothing_away() -> None:
    one, two = (Statistics.of(np.full((2, 3), n, np.float32), 1) for n in (1, 5))
    merged = Statistics()
    merged.merge(one)
    merged.merge(two)
    assert one.channels is not None and one.channels.high.tolist() == [1, 1, 1]
    assert merged.channels is not None and merged.channels.high.tolist() == [5, 5, 5]
