"""The search for a mixture of schemes: solve, measure the whole model, correct, solve again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aigcc.analysis.budget import Budget
from aigcc.errors import CompileError
from aigcc.passes.quant.choose import Bounds, Option, choose
from aigcc.passes.quant.placement import Scheme
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.switch import Choice
from aigcc.passes.quant.trial import Figures, Trials
from aigcc.pipeline.context import Context

_TRIALS = 6
_ENOUGH = 0.85  # of the budget used up is near enough to it
_AIM = 0.95


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
    choices: Sequence[Choice],
    seconds: Sequence[Mapping[str, float]],
    sensitivity: Sensitivity,
    budget: Budget,
    trials: Trials,
    ctx: Context,
) -> Found:
    """The fastest mixture that keeps the budget, as measured as a whole.

    Errors of nodes add up only roughly: after each trial the sum that is allowed is scaled by what
    the trial measured, and the programme solved again.

    Raises:
        CompileError: nothing that was tried keeps the budget; says by how much the best missed it.
    """
    nothing = Found({}, trials.measure({}))
    if nothing.used > 1:
        raise _failure([nothing], budget)
    options = [
        _options(choice, times, sensitivity) for choice, times in zip(choices, seconds, strict=True)
    ]
    kept: list[Found] = [nothing] if _keeps(nothing, budget) else []
    missed: list[Found] = []
    allowed = 1.0
    tried: set[tuple[int, ...]] = set()
    for number in range(_TRIALS):
        picked = choose(options, _bounds(allowed, budget, nothing, options))
        if picked is None or tuple(picked) in tried:
            break
        tried.add(tuple(picked))
        precision = {
            choice.position: row[index].scheme
            for choice, row, index in zip(choices, options, picked, strict=True)
            if row[index].scheme != FULL
        }
        ctx.progress(f"measuring mixture {number + 1} as a whole", number / _TRIALS)
        found = Found(precision, trials.measure(precision))
        (kept if _keeps(found, budget) else missed).append(found)
        ctx.note(None, f"mixture {number + 1}: {_describe(found, budget)}")
        if found.used <= nothing.used or _ENOUGH <= found.used <= 1:
            break
        room = (_AIM - nothing.used) / (found.used - nothing.used)
        allowed *= min(max(room, 0.1), 4.0)
    if not kept:
        raise _failure(missed or [nothing], budget)
    best = min(kept, key=lambda found: _slowness(found, nothing))
    if best is nothing:
        ctx.decline(None, "no mixture that keeps the budget is faster than the model as it is")
    return best


def _slowness(found: Found, nothing: Found) -> float:
    """Measured latency; where that cannot be, more quantised nodes count as faster."""
    if found is nothing:
        return 1.0
    ratio = found.figures.ratio
    return ratio if ratio is not None else 1 / (1 + len(found.precision))


def _options(
    choice: Choice, seconds: Mapping[str, float], sensitivity: Sensitivity
) -> list[Option]:
    elements = choice.weight.tensor.size
    plain = Option(FULL, sensitivity.none(), seconds[FULL], choice.weight.tensor.nbytes)
    return [
        plain,
        *(
            Option(
                scheme.name,
                sensitivity.of(choice.position, scheme.name),
                seconds[scheme.name],
                _bytes(scheme, elements),
            )
            for scheme in choice.schemes
        ),
    ]


def _bytes(scheme: Scheme, elements: int) -> float:
    scales = 4 / scheme.block if scheme.block else 0.0
    return elements * (scheme.weight.bitwidth / 8 * scheme.weight_terms + scales)


def _bounds(
    allowed: float, budget: Budget, nothing: Found, options: Sequence[Sequence[Option]]
) -> Bounds:
    original = nothing.figures.original
    rest = {"size": original["size"] - sum(row[0].size for row in options)}
    if "latency" in original:
        rest["latency"] = original["latency"] - sum(row[0].seconds for row in options)
    limits = {
        metric: min((limit.value(original[metric]) for limit in budget.of([metric])), default=None)
        for metric in rest
    }
    room = {m: None if limit is None else limit - rest[m] for m, limit in limits.items()}
    shares = tuple(allowed * max(1 - used, 0.0) for used in nothing.figures.shares.values())
    return Bounds(shares, room.get("latency"), room["size"])


def _keeps(found: Found, budget: Budget) -> bool:
    return not budget.missed(found.figures.measured, found.figures.original)


def _describe(found: Found, budget: Budget) -> str:
    measured = found.figures.measured
    ratio = found.figures.ratio
    shown = ["latency not measured" if ratio is None else f"{ratio:.2f} times the latency"]
    shown += [f"{limit.metric} {measured[limit.metric]:.4g}" for limit in budget.limits]
    return f"{len(found.precision)} nodes, {', '.join(shown)}"


def _failure(tried: Sequence[Found], budget: Budget) -> CompileError:
    best = min(tried, key=lambda found: found.used)
    figures = best.figures
    parts = []
    for limit, value in budget.missed(figures.measured, figures.original):
        bound = limit.value(figures.original.get(limit.metric, 0.0))
        parts.append(f"{limit.metric} is {value:.4g}, not {bound:.4g}")
    return CompileError(
        f"no mixture keeps the budget {budget}: with the best one {'; '.join(parts)}",
        hint="ask for less, or give more schemes to choose from",
    )
