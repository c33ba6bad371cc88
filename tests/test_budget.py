"""Budgets, the figures that they bound, and the recipes that come out of them."""

import math

import numpy as np
import pytest

from aigcc.analysis.budget import Budget
from aigcc.analysis.damage import Damage
from aigcc.analysis.recipe import Recipe
from aigcc.errors import CompileError


@pytest.mark.parametrize(
    ("text", "metric", "bound", "original", "keeps", "breaks"),
    [
        ("sqnr>=30", "sqnr", 30, 0, 30.0, 29.9),
        ("psnr >= 40 dB", "psnr", 40, 0, math.inf, -math.inf),
        ("size<=300MB", "size", 300e6, 0, 3e8, 3.1e8),
        ("size<=0.3x", "size", 30, 100, 30, 31),
        ("latency<=50%", "latency", 1, 2, 1.0, 1.1),
        ("latency<=20ms", "latency", 0.02, 9, 0.02, 0.021),
        ("perplexity<=+1%", "perplexity", 20.2, 20, 20.1, 20.3),
    ],
)
def test_bounds(text, metric, bound, original, keeps, breaks):
    (limit,) = Budget.parse(text).limits
    assert limit.metric == metric
    assert limit.value(original) == pytest.approx(bound)
    assert limit.holds(keeps, original)
    assert not limit.holds(breaks, original)
    assert not limit.holds(math.nan, original)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sqnr", "is no bound"),
        ("sqnr>30", "is no bound"),
        ("snqr>=30", "no metric 'snqr'"),
        ("sqnr<=30", "cannot ask for sqnr<="),
        ("size>=1MB", "cannot ask for size>="),
        ("size<=-1", "is no bound"),
    ],
)
def test_bad_bounds_are_refused(text, what):
    with pytest.raises(CompileError, match=what) as error:
        Budget.parse(text)
    assert error.value.hint


def test_missed_bounds_come_with_their_figures():
    budget = Budget.parse("sqnr>=30,size<=0.5x,latency<=1x")
    missed = budget.missed({"sqnr": 28.0, "size": 40.0}, {"size": 100.0})
    assert [(limit.text, figure) for limit, figure in missed] == [("sqnr>=30", 28.0)]


def test_a_share_of_one_is_just_kept():
    """For bounds on power the share says exactly how far an error is from the bound."""
    generator = np.random.default_rng(0)
    signal = generator.standard_normal(4096).astype(np.float32)
    noise = generator.standard_normal(4096).astype(np.float32)
    noise *= np.sqrt((signal @ signal) / (noise @ noise) / 10 ** (30 / 10))
    damage = Damage(Budget.parse("sqnr>=30"))
    damage.add({}, {"y": signal}, {"y": signal + noise})
    assert damage.figures()["sqnr"] == pytest.approx(30, abs=1e-3)
    assert damage.used() == {"sqnr>=30 of y": pytest.approx(1, rel=1e-3)}


def test_the_worst_sample_counts():
    damage = Damage(Budget.parse("sqnr>=30"))
    for error in (1e-3, 1e-1, 1e-2):
        damage.add({}, {"y": np.ones(8, np.float32)}, {"y": np.full(8, 1 + error, np.float32)})
    assert damage.figures()["sqnr"] == pytest.approx(20, abs=1e-3)


def test_nan_uses_up_everything():
    damage = Damage(Budget.parse("sqnr>=30,cosine>=0.9"))
    damage.add({}, {"y": np.ones(2, np.float32)}, {"y": np.array([1, np.nan], np.float32)})
    assert set(damage.used().values()) == {math.inf}
    assert damage.figures()["sqnr"] == -math.inf


def test_perplexity_is_that_of_the_next_token():
    tokens = np.array([[0, 1, 2]])
    logits = np.log(np.array([[[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]]))
    damage = Damage(Budget.parse("perplexity<=+1%"))
    damage.add({"ids": tokens}, {"logits": logits}, {"logits": logits + 7})
    expected = math.exp(-(math.log(0.5) + math.log(0.8)) / 2)
    assert damage.original()["perplexity"] == pytest.approx(expected)
    assert damage.figures()["perplexity"] == pytest.approx(expected)
    assert damage.used()["perplexity<=+1% of logits"] == pytest.approx(0, abs=1e-9)


def test_recipes_round_trip(tmp_path):
    recipe = Recipe({'a "quoted" node': "w8a8", "b": "full"}, "mobile", {"sqnr": 31.5})
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    "text", ["", "precision = 3", "[precision]\na = 1", "not toml at all [", "\udc80"]
)
def test_bad_recipes_are_refused(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CompileError, match="recipe"):
        Recipe.load(path)
