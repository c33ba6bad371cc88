"""The search for a mixture of schemes: solve, measure the whole model, correct, solve again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.choose import Bounds, Option, choose
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.switch import Choice
from aigcc.passes.quant.trial import Figures, Trials
from aigcc.pipeline.context import Context

_TRIALS = 6
_ENOUGH = 0.85  # of the budget used up is near enough to it
_AIM = 0.92
_MOST = 0.97  # of the budget: the program itself is calibrated on all samples
_FAR = 4.0  # times the budget, by the sums: not worth to be measured
_SLACK = 1 + 1e-6  # what sums lose in the integer programme


@dataclasses.dataclass(frozen=True)
class Found:
    """A mixture and what was measured of it.

    Attributes:
        precision: Scheme by position in the main graph; others stay as they are.
        figures: Of the whole model.
    """

    precision: Mapping[int, str]
    figures: Figures

    @property
    def used(self) -> float:
        """The largest share of a bound on quality that is used up."""
        return max(self.figures.shares.values(), default=0.0)

    def facts(self) -> dict[str, Any]:
        """For the recipe."""
        figures = {k: v for k, v in self.figures.measured.items() if math.isfinite(v)}
        ratio = self.figures.ratio
        return figures if ratio is None else {**figures, "latency_ratio": ratio}


def search(
    known: Candidates,
    sensitivity: Sensitivity,
    budget: Budget,
    trials: Trials,
    ctx: Context,
) -> Found:
    """The fastest mixture that keeps the budget, as measured as a whole.

    Without a bound on quality it is the best of those that keep the others. Errors of nodes add up
    only roughly, and so do their times: after each trial the sums that are allowed are scaled by
    what the trial measured, and the programme solved again. What is lost or won between nodes no
    sum says, so the mixture of one scheme wherever there is a kernel is measured, too.

    Raises:
        CompileError: nothing that was tried keeps the budget; says by how much the best missed it.
    """
    nothing = Found({}, trials.measure({}))
    if nothing.used > 1:
        return nothing
    options = [
        _options(choice, times, sensitivity, known)
        for choice, times in zip(known.choices, known.seconds, strict=True)
    ]
    kept: list[Found] = [nothing] if _keeps(nothing, budget) else []
    missed: list[Found] = []

    def measure(name: str, precision: Mapping[int, str]) -> Found:
        precision = known.with_tables(precision)
        found = Found(precision, trials.measure(precision))
        (kept if _keeps(found, budget) else missed).append(found)
        ctx.note(None, f"{name}: {_describe(found, budget)}")
        return found

    uniform = {choice.position: choice.schemes[0].name for choice in known.uniform}
    is_far = budget.of(QUALITY) and _share(uniform, sensitivity) >= _FAR
    if uniform and nothing.figures.ratio is not None and not is_far:
        ctx.progress("measuring one scheme for all nodes", 0.0)
        measure("one scheme for all", uniform)
    allowed, pace = 1.0, 1.0
    tried: set[tuple[int, ...]] = set()
    for number in range(_TRIALS):
        bounds = _bounds(allowed, pace, budget, nothing, options)
        picked = choose(options, bounds)
        if picked is None and not budget.of(["latency"]):
            picked = choose(options, dataclasses.replace(bounds, seconds=None))
        if picked is None or tuple(picked) in tried:
            break
        tried.add(tuple(picked))
        chosen = [row[index] for row, index in zip(options, picked, strict=True)]
        precision = {
            choice.position: option.scheme
            for choice, option in zip(known.choices, chosen, strict=True)
            if option.scheme != FULL
        }
        ctx.progress(f"measuring mixture {number + 1} as a whole", number / _TRIALS)
        found = measure(f"mixture {number + 1}", precision)
        if _is_near(found, nothing, budget):
            break
        if found.used > nothing.used:
            room = (_AIM - nothing.used) / (found.used - nothing.used)
            allowed = (_expected(chosen, nothing) or allowed) * min(room, 4.0)
        pace = _pace(found, nothing, chosen, options)
    if not kept:
        return min(missed or [nothing], key=lambda found: (found.used, found.figures.ratio or 1.0))
    best = min(kept, key=lambda found: _rank(found, nothing, budget))
    if best is nothing:
        ctx.decline(None, "no mixture that keeps the budget is faster than the model as it is")
    return best


def _share(precision: Mapping[int, str], sensitivity: Sensitivity) -> float:
    """How often a mixture uses up the bounds, by the sum of what is known of its nodes."""
    rows = [sensitivity.shares.get(choice, {}).values() for choice in precision.items()]
    return max(map(sum, zip(*(row for row in rows if row), strict=True)), default=0.0)


def _expected(chosen: Sequence[Option], nothing: Found) -> float:
    """What a mixture's errors add up to, as a share of the room that there is for them."""
    sums = [sum(errors) for errors in zip(*(option.errors for option in chosen), strict=True)]
    used = nothing.figures.shares.values()
    parts = [own / max(1 - other, 1e-9) for own, other in zip(sums, used, strict=True)]
    return max(parts, default=0.0)


def _is_near(found: Found, nothing: Found, budget: Budget) -> bool:
    """Whether a mixture keeps the budget, and uses up nearly all of it."""
    if not _keeps(found, budget):
        return False
    if budget.of(QUALITY):
        return found.used <= nothing.used or found.used >= _ENOUGH
    return all(
        found.figures.measured[limit.metric]
        >= _ENOUGH * limit.value(found.figures.original[limit.metric])
        for limit in budget.of(["latency"])
    )


def _pace(
    found: Found, nothing: Found, chosen: Sequence[Option], options: Sequence[Sequence[Option]]
) -> float:
    """The time that nodes were measured to save in the whole, over what they save alone."""
    if found.figures.ratio is None:
        return 1.0
    alone = sum(row[0].seconds for row in options) - sum(option.seconds for option in chosen)
    saved = nothing.figures.measured["latency"] - found.figures.measured["latency"]
    return min(max(saved / alone, 0.25), 4.0) if alone > 0 else 1.0


def _rank(found: Found, nothing: Found, budget: Budget) -> float:
    """Less is better: latency, or without a bound on quality the error.

    Where latency cannot be measured, more quantised nodes count as faster.
    """
    if not budget.of(QUALITY):
        return -found.figures.measured.get("sqnr", 0.0)
    if found.figures.ratio is not None:
        return found.figures.ratio
    return 1.0 if found is nothing else 1 / (1 + len(found.precision))


def _options(
    choice: Choice, seconds: Mapping[str, float], sensitivity: Sensitivity, known: Candidates
) -> list[Option]:
    elements, size = choice.weight.tensor.size, choice.weight.tensor.nbytes
    plain = Option(FULL, sensitivity.none(), seconds[FULL], size)
    return [
        plain,
        *(
            Option(
                scheme.name,
                sensitivity.of(choice.position, scheme.name),
                seconds[scheme.name],
                scheme.bytes_of(elements)
                + (size if known.keeps_table(choice.position, scheme.name) else 0),
            )
            for scheme in choice.schemes
        ),
    ]


def _bounds(
    allowed: float,
    pace: float,
    budget: Budget,
    nothing: Found,
    options: Sequence[Sequence[Option]],
) -> Bounds:
    measured, original = nothing.figures.measured, nothing.figures.original
    room: dict[str, float] = {}
    for limit in budget.of(["latency", "size"]):
        too_much = measured[limit.metric] - limit.value(original[limit.metric])
        rows = [[_cost(option, limit.metric) for option in row] for row in options]
        saved = too_much / pace if limit.metric == "latency" else too_much
        # where no mixture is said to be small enough, the smallest one shall be measured
        most = max(sum(row[0] for row in rows) - saved, sum(map(min, rows)) * _SLACK)
        room[limit.metric] = min(room.get(limit.metric, math.inf), most)
    if not budget.of([*QUALITY, "latency"]):
        room["latency"] = sum(row[0].seconds for row in options)  # no slower, if that can be
    shares = tuple(allowed * max(1 - used, 0.0) for used in nothing.figures.shares.values())
    return Bounds(shares, room.get("latency"), room.get("size"))


def _cost(option: Option, metric: str) -> float:
    return option.seconds if metric == "latency" else option.size


def _keeps(found: Found, budget: Budget) -> bool:
    """Whether a budget is kept, by a quantised model with some room for other ranges."""
    if found.precision and found.used > _MOST:
        return False
    return not budget.missed(found.figures.measured, found.figures.original)


def _describe(found: Found, budget: Budget) -> str:
    measured = found.figures.measured
    ratio = found.figures.ratio
    shown = ["latency not measured" if ratio is None else f"{ratio:.2f} times the latency"]
    shown += [f"{limit.metric} {measured[limit.metric]:.4g}" for limit in budget.limits]
    return f"{len(found.precision)} nodes, {', '.join(shown)}"
