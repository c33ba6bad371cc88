"""What the search for precisions tries, keeps and says, with quality and latencies planted."""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.analysis.budget import Budget
from aigcc.analysis.recipe import Recipe
from aigcc.ir.module import Module
from aigcc.passes.assign_precision import AssignPrecision
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import trial
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.found import Found
from aigcc.passes.quant.placement import Scheme, schemes, weight_of
from aigcc.passes.quant.quantise import obstacle
from aigcc.passes.quant.search import search
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.switch import Choice
from aigcc.passes.quant.trial import Figures, Refused, Trials, Verdict
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.samples import load_samples
from aigcc.targets import make_target

sys.path.insert(0, str(Path(__file__).parent))
from weighted import floats, module

COUNT = 6
Mixture = Mapping[int, str]


def net(count: int = COUNT) -> Module:
    body = " ".join(f"h{n + 1} = MatMul (h{n}, w{n})" for n in range(count))
    weights = {f"w{n}": floats(4, 4, seed=n) for n in range(count)}
    text = f"g (float[2,4] h0) => (float[2,4] h{count}) <W> {{ {body} }}"
    return module(text, weights)


@dataclasses.dataclass
class Planted:
    """Measures as it is told to.

    Attributes:
        used: How much of the budget a mixture uses up.
        ratio: Its latency when it is timed apart.
        again: Its latency when it is timed in turn with others.
        wrong: What a program runs in another type.
        truly: How much of the budget its program uses up on all samples.
    """

    used: Callable[[Mixture], float]
    ratio: Callable[[Mixture], float] = lambda mixture: 1 - 0.05 * len(mixture)
    again: Callable[[Mixture], float] | None = None
    wrong: Callable[[Mixture], dict[int, str]] = lambda mixture: {}
    truly: Callable[[Mixture], float] | None = None
    measured: list[Mixture] = dataclasses.field(default_factory=list)
    contests: list[Sequence[Mixture]] = dataclasses.field(default_factory=list)
    confirmed: list[Mixture] = dataclasses.field(default_factory=list)
    refused: list[Mixture] = dataclasses.field(default_factory=list)
    wrongs: set[tuple[int, str]] = dataclasses.field(default_factory=set)

    def measure(self, mixture: Mixture) -> Figures:
        self.measured.append(mixture)
        return figures(self.used(mixture), latency=self.ratio(mixture), size=size_of(mixture))

    def contest(self, mixtures: Sequence[Mixture]) -> list[float]:
        self.contests.append(mixtures)
        return [(self.again or self.ratio)(mixture) if mixture else 1.0 for mixture in mixtures]

    def confirm(self, mixture: Mixture) -> Verdict:
        self.refused.append(mixture)
        if wrong := self.wrong(mixture):
            self.wrongs |= wrong.items()
            return Verdict(wrong)
        self.refused.pop()
        self.confirmed.append(mixture)
        return Verdict({}, figures((self.truly or self.used)(mixture), size=size_of(mixture)))


def figures(used: float, **more: float) -> Figures:
    """Of a mixture that uses up so much of a bound of 20 dB."""
    sqnr = 20 - 10 * math.log10(used) if used else math.inf
    return Figures({"sqnr": used}, {"sqnr": sqnr, **more}, {"latency": 1.0, "size": 1.0})


def size_of(mixture: Mixture) -> float:
    return 1 - 0.1 * len(mixture)


def look(
    trials: Planted,
    *,
    told: float = 0.1,
    names: Sequence[str] = ("w8a8",),
    made: Module | None = None,
    uniform: bool = False,
    probe: Callable[[Sequence[Choice]], list[Mapping[str, float]]] | None = None,
    bounds: str = "sqnr>=20",
    seconds: float = 0.5,
) -> tuple[Found, str]:
    """Search with nodes that are told to use up so much each; what was found, and said."""
    made = made or net()
    known = [schemes(None)[name] for name in names]
    nodes = [weight_of(node) for node in made.graph]
    choices = [Choice(n, w, tuple(known)) for n, w in enumerate(nodes) if w is not None]
    times = [{"full": 1.0, **{name: seconds + 0.1 * i for i, name in enumerate(names)}}] * len(
        nodes
    )
    every = [dataclasses.replace(c, schemes=(known[0],)) for c in choices] if uniform else []
    costs = {
        (choice.position, name): {"sqnr": told * (1 + 0.01 * choice.position)}
        for choice in choices
        for name in names
    }
    ctx = Context()
    budget = Budget.parse(bounds)
    sensitivity = Sensitivity(costs, frozenset(), probe)
    known_here = Candidates(choices, times, every)
    found = search(known_here, sensitivity, budget, trials, ctx)  # type: ignore[arg-type]
    return found, "\n".join(remark.message for remark in ctx.remarks)


def test_a_mixture_that_misses_the_budget_a_little_ends_with_a_neighbour_that_keeps_it() -> None:
    """Whatever the programme proposes is off, as where errors do not add up."""
    trials = Planted(lambda mixture: 1.01 if len(mixture) > 9 else 0.1 * len(mixture))
    found, said = look(trials, told=1e-6, made=net(20))
    assert len(found.precision) == 9
    assert "nodes of it back in float: " in said
    assert "taken: 9 nodes, 0.55 times the latency" in said


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 12))
def test_as_few_nodes_go_back_as_it_takes(count: int, fitting: int) -> None:
    trials = Planted(lambda mixture: 1.1 if len(mixture) > fitting else 0.5)
    found, said = look(trials, told=1e-6, made=net(count))
    assert len(found.precision) == min(fitting, count)
    if not fitting:
        assert "nothing is quantised: no mixture that was tried keeps the budget" in said


def test_a_measured_mixture_that_keeps_the_budget_is_not_thrown_away() -> None:
    """The model as it is seemed fast for a moment, while something else ran on the machine."""
    trials = Planted(lambda mixture: 0.1 * len(mixture), lambda mixture: 0.8 if mixture else 0.6)
    found, said = look(trials)
    assert len(found.precision) == COUNT
    assert found.figures.ratio == pytest.approx(0.8)
    assert trials.contests
    assert "taken: 6 nodes, 0.80 times the latency" in said


def test_what_was_fast_for_a_moment_only_is_not_taken() -> None:
    trials = Planted(
        lambda mixture: 0.1 * len(mixture), lambda mixture: 0.7, again=lambda mixture: 1.04
    )
    found, said = look(trials)
    assert found.precision == {}
    assert "takes 1.04 times as long as the model as it is" in said
    assert "mixture 1: 6 nodes, 0.70 times the latency" in said


def test_the_best_of_several_in_one_run_is_taken() -> None:
    trials = Planted(
        lambda mixture: 0.1,
        lambda mixture: 0.5 if len(mixture) == COUNT else 0.6,
        again=lambda mixture: 0.9 if "w8a8" in mixture.values() else 0.8,
    )
    found, _ = look(trials, names=("w8", "w8a8"), uniform=True)
    assert set(found.precision.values()) == {"w8"}


def test_what_the_runtime_computes_in_another_type_is_planned_again() -> None:
    def wrong(mixture: Mixture) -> dict[int, str]:
        return {place: name for place, name in mixture.items() if name == "w8a8" and place < 2}

    trials = Planted(lambda mixture: 0.1 * len(mixture), wrong=wrong)
    found, said = look(trials, names=("w8a8", "w8"), uniform=True)
    assert found.precision == {0: "w8", 1: "w8", **dict.fromkeys(range(2, COUNT), "w8a8")}
    assert "planned again: the runtime computes 2 nodes in w8a8 in other types" in said


def test_what_the_runtime_refuses_is_planned_again() -> None:
    def confirm(mixture: Mixture) -> dict[int, str]:
        if len(mixture) == COUNT:
            raise Refused("Conv as bf16 runs in float")
        return {}

    def used(mixture: Mixture) -> float:
        if 3 in mixture:
            raise Refused("no kernel for it")
        return 0.1 * len(mixture)

    found, said = look(Planted(lambda mixture: 0.1 * len(mixture), wrong=confirm))
    assert len(found.precision) < COUNT
    assert "planned again, since it is refused: Conv as bf16 runs in float" in said
    found, said = look(Planted(used))
    assert sorted(found.precision) == [0, 1, 2, 4, 5]
    assert "mixture 1: refused: no kernel for it" in said


def test_what_is_picked_is_measured_before_it_is_built() -> None:
    """An estimate was far too low for one node, in one of its schemes."""
    real = {(0, "w8a8"): 5.0, (0, "w8"): 0.1}
    asked: list[tuple[int, str]] = []

    def alone(mixture: Mixture) -> float:
        return sum(real.get(choice, 0.1) for choice in mixture.items())

    def probe(choices: Sequence[Choice]) -> list[Mapping[str, float]]:
        keys = [(choice.position, choice.schemes[0].name) for choice in choices]
        asked.extend(keys)
        return [{"sqnr": alone(dict([key]))} for key in keys]

    trials = Planted(alone)
    found, _ = look(trials, names=("w8a8", "w8"), told=1e-3, probe=probe)
    assert found.precision == {0: "w8", **dict.fromkeys(range(1, COUNT), "w8a8")}
    assert len(asked) == len(set(asked)) == COUNT + 1
    assert [mixture for mixture in trials.measured if mixture] == [found.precision]


def test_figures_are_those_of_the_last_run() -> None:
    found, _ = look(Planted(lambda mixture: 0.1, lambda mixture: 0.7, again=lambda mixture: 0.75))
    assert found.facts()["latency_ratio"] == pytest.approx(0.75)


def test_a_choice_that_misses_the_budget_on_all_samples_is_planned_again() -> None:
    """Samples of the search show less than half of the error that there is."""
    trials = Planted(lambda mixture: 0.15 * len(mixture), truly=lambda mixture: 0.4 * len(mixture))
    found, said = look(trials)
    assert len(found.precision) == 2
    assert found.facts()["sqnr"] == pytest.approx(20 - 10 * math.log10(0.8))
    assert "planned again: 6 nodes, 0.70 times the latency, sqnr 16.1979 dB on all samples" in said
    assert len(trials.confirmed) == 2


def test_what_was_doubted_is_looked_at_before_nothing_is_quantised() -> None:
    """One mixture is far worse on all samples; that says nothing of the others."""

    def truly(mixture: Mixture) -> float:
        return 9.0 if len(mixture) == COUNT else 0.9 * bool(mixture)

    trials = Planted(lambda mixture: 0.9 * bool(mixture), truly=truly, wrong=lambda mixture: {})
    found, _ = look(trials)
    assert 0 < len(found.precision) < COUNT


def test_a_model_that_misses_the_budget_whatever_is_chosen_stays_as_it_is() -> None:
    trials = Planted(lambda mixture: 0.1 * len(mixture), truly=lambda m: 2.0 if m else 0.0)
    found, said = look(trials)
    assert found.precision == {}
    assert "nothing is quantised: " in said
    assert len(trials.confirmed) <= 11


def test_a_bound_on_latency_that_is_missed_by_chance_is_timed_again() -> None:
    trials = Planted(
        lambda mixture: 0.1 * len(mixture), lambda m: 0.72 if m else 1.0, again=lambda m: 0.68
    )
    found, _ = look(trials, bounds="sqnr>=20,latency<=0.7x")
    assert found.facts()["latency_ratio"] == pytest.approx(0.68)
    trials = Planted(lambda mixture: 0.1 * len(mixture), lambda m: 0.9 if m else 1.0)
    found, _ = look(trials, bounds="sqnr>=20,latency<=0.7x")
    assert found.figures.measured["latency"] == pytest.approx(0.9)


def test_bytes_that_nobody_counted_are_made_up_for() -> None:
    """Each quantised node has ten bytes of scales; five of six are too few, and each is slower."""

    class Sized(Planted):
        def measure(self, mixture: Mixture) -> Figures:
            self.measured.append(mixture)
            made = figures(0.1, latency=1.0 + 0.1 * len(mixture), size=384.0 - 38 * len(mixture))
            return dataclasses.replace(made, original={"latency": 1.0, "size": 384.0})

        def confirm(self, mixture: Mixture) -> Verdict:
            return Verdict()

    trials = Sized(lambda mixture: 0.1, again=lambda mixture: 1.0 + 0.1 * len(mixture))
    found, said = look(trials, bounds="sqnr>=20,size<=0.5x", seconds=1.5, told=0.01)
    assert len(found.precision) == 6, said
    assert [len(mixture) for mixture in trials.measured if mixture] == [4, 5, 6]


def planted(seed: int, each: float, worse: float, slow: float) -> Planted:
    """Tables of numbers for mixtures, in which nothing adds up.

    Args:
        seed: Of the tables.
        each: Of the budget that a node uses up, at most.
        worse: Times as much on all samples, at most.
        slow: Times as long as the model as it is in turn with others, at most.
    """

    def draw(what: str, mixture: Mixture) -> float:
        return random.Random(f"{seed} {what} {sorted(mixture.items())}").random()

    def used(mixture: Mixture) -> float:
        return draw("used", mixture) * each * len(mixture)

    def refused(mixture: Mixture) -> dict[int, str]:
        if draw("refused", mixture) < 0.1:
            raise Refused("no kernel")
        return dict([next(iter(mixture.items()))]) if draw("wrong", mixture) < 0.1 else {}

    return Planted(
        used,
        lambda mixture: 0.5 + draw("apart", mixture) if mixture else 1.0,
        lambda mixture: slow - 0.5 * draw("in turn", mixture),
        lambda mixture: refused(mixture) if mixture else {},
        lambda mixture: used(mixture) * (0.5 + (worse - 0.5) * draw("truly", mixture)),
    )


@settings(deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from(["sqnr>=20", "sqnr>=20,size<=0.8x", "sqnr>=20,latency<=0.9x"]),
    st.booleans(),
    st.tuples(st.floats(0.05, 0.5), st.floats(1, 6), st.floats(1, 1.6)),
)
def test_whatever_is_measured_the_best_that_keeps_the_budget_is_taken(
    seed: int, bounds: str, uniform: bool, hard: tuple[float, float, float]
) -> None:
    """Of what the search measured; what it takes keeps the budget on all samples."""
    trials, budget = planted(seed, *hard), Budget.parse(bounds)
    assert trials.again is not None and trials.truly is not None
    found, _ = look(trials, uniform=uniform, names=("w8a8", "w8"), bounds=bounds)

    def is_kept(mixture: Mixture, used: float, latency: float) -> bool:
        made = figures(used, latency=latency, size=size_of(mixture))
        return not budget.missed(made.measured, made.original)

    def is_taken(mixture: Mixture) -> bool:
        return mixture in trials.confirmed and is_kept(mixture, trials.truly(mixture), 0.0)

    contested = [mixture for mixtures in trials.contests for mixture in mixtures if mixture]
    fit = [
        mixture
        for mixture in contested
        if is_kept(mixture, trials.used(mixture), trials.again(mixture))
    ]
    if found.precision and is_kept(found.precision, found.used, found.figures.measured["latency"]):
        # it keeps the budget, and what was faster in the same run did not
        assert is_taken(found.precision)
        assert trials.again(found.precision) == pytest.approx(found.figures.measured["latency"])
        last = trials.contests[-1]
        rivals = [mixture for mixture in last if mixture in fit]
        assert trials.again(found.precision) == min(map(trials.again, rivals))
        assert "size" in bounds or trials.again(found.precision) <= 1.0
        return
    # whatever was measured and keeps the budget is no choice, as another measurement showed
    for mixture in trials.measured:
        if mixture and is_kept(mixture, trials.used(mixture), trials.ratio(mixture)):
            excuses = [
                mixture in trials.confirmed and not is_taken(mixture),
                trials.wrongs & set(mixture.items()),
                mixture in trials.refused,
                mixture in contested and mixture not in fit,
                mixture in contested and trials.again(mixture) > 1 and "size" not in bounds,
                trials.ratio(mixture) >= 1.2 and "size" not in bounds,
                len(trials.confirmed) + len(trials.refused) >= 10,
            ]
            assert any(excuses), mixture


def test_trials_have_what_the_search_asks_of_them() -> None:
    asked = {name for name in vars(Planted) if not name.startswith("_")} - {
        field.name for field in dataclasses.fields(Planted)
    }
    assert {name for name in vars(Trials) if not name.startswith("_")} == asked


# --- opsets


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_bfloat16_is_offered_from_the_opset_on_that_has_it(op: str) -> None:
    text = f"g (float[1,4,8,8] x) => (float[1,4,?,?] y) <W> {{ y = {op} (x, w) }}"
    scheme = Scheme.read("bf16", {"weight": "bfloat16", "activation": "bfloat16", "ops": {op: {}}})
    for opset, is_legal in ((13, False), (21, False), (22, True)):
        (node,) = module(text, {"w": floats(4, 4, 3, 3)}, opset).graph
        weight = weight_of(node)
        assert weight is not None
        reason = obstacle(node, weight, scheme, opset)
        assert (reason == "") == is_legal, reason
        assert is_legal or "bf16 needs opset 22" in reason


@pytest.mark.parametrize(("scheme", "opset"), [("w8a8", 17), ("w4", 21), ("full", 17)])
def test_a_recipe_raises_the_opset_as_far_as_its_schemes_need(
    scheme: str, opset: int, tmp_path: Path
) -> None:
    made = module(
        "g (float[4,32] x) => (float[4,32] y) <W> { y = MatMul (x, w) }", {"w": floats(32, 32)}, 17
    )
    next(iter(made.graph)).name = "product"
    Recipe({"product": scheme}).save(tmp_path / "recipe.toml")
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made))
    passes = [AssignPrecision(recipe=str(tmp_path / "recipe.toml")), InsertQdq(scheme="full")]
    PassManager(passes).run(made, ctx)
    assert made.opset == opset
    assert ("DequantizeLinear" in [node.op_type for node in made.graph]) == (scheme != "full")


def test_a_search_looks_at_schemes_of_later_opsets_and_raises_for_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_SECONDS", 0.05)
    made = module(
        "g (float[4,64] x) => (float[4,64] y) <W> { y = MatMul (x, w) }", {"w": floats(64, 64)}, 17
    )
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made), threads=1)
    PassManager([AssignPrecision(budget="size<=0.2x"), InsertQdq(scheme="full")]).run(made, ctx)
    assert made.opset == 21
    (table,) = {v.dtype for v in made.graph.initializers.values() if v.const_value.size == 64 * 64}
    assert table == ir.DataType.INT4


@pytest.mark.parametrize(("scheme", "opset"), [("w8a8", 13), ("w8", 21), ("full", 11)])
def test_a_scheme_by_hand_raises_the_opset_for_a_target(scheme: str, opset: int) -> None:
    text = "g (float[4,32] x) => (float[4,32] y) <W> { y = MatMul (x, w) }"
    made = module(text, {"w": floats(32, 32)}, 11)
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made))
    PassManager([InsertQdq(scheme=scheme)]).run(made, ctx)
    assert made.opset == opset
    assert ("DequantizeLinear" in [node.op_type for node in made.graph]) == (scheme != "full")
