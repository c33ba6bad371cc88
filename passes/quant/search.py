"""The search for a mixture of schemes: solve, measure the whole model, correct, solve again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.passes.quant import programme
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.choose import Option, choose
from aigcc.passes.quant.found import MOST, Found, describe, is_near, keeps, rank
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.trial import Refused, Trials
from aigcc.pipeline.context import Context

_TRIALS = 6
_AIM = 0.92
_FAR = 4.0  # times the budget, by the sums: not worth to be measured
_CONTENDERS = 3  # that run in turn: all of them are in memory then
_MORE = 1.05  # times what is saved already: worth more trials
_SHARPENED = 4  # times that picked estimates are measured, and the programme solved again
_REFINED = 3  # trials to take fewer nodes back


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
    sum says, so the mixture of one scheme wherever there is a kernel is measured, too. Where none
    of them keeps the budget, nodes of the best one go back to float until it does. The fastest run
    once more, in turn with each other and with the model as it is, before one is chosen. What the
    runtime refuses of it, or runs in another precision, is left out, and the search goes on.

    Returns:
        The best mixture; where nothing keeps the budget, the one that misses it least.
    """
    refused: list[Mapping[int, str]] = []
    while True:
        found = _Search(known, sensitivity, budget, trials, ctx, refused).run()
        try:
            wrong = trials.confirm(found.precision) if found.precision else {}
        except Refused as error:
            ctx.note(None, f"planned again, since it is refused: {error.what}", tried=True)
            refused.append(found.precision)
            continue
        if not wrong:
            return found
        counts = Counter(wrong.values())
        shown = ", ".join(f"{count} nodes in {scheme}" for scheme, count in counts.items())
        ctx.note(None, f"planned again: the runtime computes {shown} in other types", tried=True)
        known = known.without(wrong)


@dataclasses.dataclass
class _Search:
    """One search: what there is to choose from, and what has been measured of it."""

    known: Candidates
    sensitivity: Sensitivity
    budget: Budget
    trials: Trials
    ctx: Context
    refused: Sequence[Mapping[int, str]]
    kept: list[Found] = dataclasses.field(default_factory=list)
    missed: list[Found] = dataclasses.field(default_factory=list)

    def run(self) -> Found:
        """The best mixture, or the model as it is, or what misses the budget least."""
        nothing = Found({}, self.trials.measure({}))
        if nothing.used > 1:
            return nothing
        self._measure_uniform(nothing)
        self._measure_mixtures(nothing)
        self._go_back()
        if keeps(nothing, self.budget):
            self.kept.append(nothing)
        if self.kept:
            return self._choose(nothing)
        return min(
            self.missed or [nothing], key=lambda found: (found.used, found.figures.ratio or 1.0)
        )

    def _measure(self, name: str, precision: Mapping[int, str]) -> Found | None:
        """A mixture as a whole; None where the runtime does not take it."""
        precision = self.known.with_tables(precision)
        if precision in self.refused:
            return None
        try:
            found = Found(precision, self.trials.measure(precision))
        except Refused as error:
            self.ctx.note(None, f"{name}: refused: {error.what}", tried=True)
            return None
        is_kept = keeps(found, self.budget)
        (self.kept if is_kept else self.missed).append(found)
        fault = "too near to the bound" if MOST < found.used <= 1 else "which is not enough"
        text = f"{name}: {describe(found, self.budget)}"
        self.ctx.note(None, text if is_kept else f"{text}, {fault}", tried=True)
        return found

    def _measure_uniform(self, nothing: Found) -> None:
        uniform = {choice.position: choice.schemes[0].name for choice in self.known.uniform}
        is_far = self.budget.of(QUALITY) and programme.share(uniform, self.sensitivity) >= _FAR
        if uniform and nothing.figures.ratio is not None and not is_far:
            self.ctx.progress("measuring one scheme for all nodes", 0.0)
            self._measure("one scheme for all", uniform)

    def _measure_mixtures(self, nothing: Found) -> None:
        budget, known = self.budget, self.known
        allowed, pace = 1.0, 1.0
        tried: set[tuple[int, ...]] = set()
        for number in range(_TRIALS):
            options, picked = self._solve(allowed, pace, nothing)
            if picked is None or tuple(picked) in tried or not any(picked):
                break
            tried.add(tuple(picked))
            chosen = [row[index] for row, index in zip(options, picked, strict=True)]
            precision = {
                choice.position: option.scheme
                for choice, option in zip(known.choices, chosen, strict=True)
                if option.scheme != FULL
            }
            self.ctx.progress(f"measuring mixture {number + 1} as a whole", number / _TRIALS)
            found = self._measure(f"mixture {number + 1}", precision)
            if found is None or is_near(found, nothing, budget):
                break
            if found.used > nothing.used:
                room = (_AIM - nothing.used) / (found.used - nothing.used)
                allowed = (programme.expected(chosen, nothing) or allowed) * min(room, 4.0)
            pace = programme.pace(found, nothing, chosen, options)

    def _solve(
        self, allowed: float, pace: float, nothing: Found
    ) -> tuple[list[list[Option]], list[int] | None]:
        """The options of all nodes and the best of them, once what is picked has been measured."""
        known, budget = self.known, self.budget
        for last in (*[False] * _SHARPENED, True):
            options = [
                programme.options(choice, times, self.sensitivity, known)
                for choice, times in zip(known.choices, known.seconds, strict=True)
            ]
            bounds = programme.bounds(allowed, pace, budget, nothing, options)
            picked = choose(options, bounds)
            if picked is None and not budget.of(["latency"]):
                picked = choose(options, dataclasses.replace(bounds, seconds=None))
            alone = [
                dataclasses.replace(choice, schemes=choice.schemes[index - 1 : index])
                for choice, index in zip(known.choices, picked or (), strict=False)
                if index
            ]
            sharper = self.sensitivity if last else self.sensitivity.sharpened(alone)
            if sharper is self.sensitivity:
                break
            self.sensitivity = sharper
        return options, picked

    def _go_back(self) -> None:
        """Let the nodes of a mixture that cost most for what they save go back to float.

        One, two, four, and so on, until the budget is kept; then as few of them as that takes. The
        mixture is the one that misses the quality least, unless one that keeps it saves as much.
        """
        missed = [found for found in self.missed if found.used > MOST]
        if not missed or not self.budget.of(QUALITY):
            return
        start = min(missed, key=lambda found: found.used)
        saved = max(map(self._saved, self.kept), default=0.0)
        if self.kept and self._saved(start) <= _MORE * saved:
            return
        order = self._worst_first(start.precision)

        def is_enough(count: int) -> bool:
            left = {place: start.precision[place] for place in order[count:]}
            self.ctx.progress(f"measuring with {count} nodes back in float", count / len(order))
            name = f"{count} nodes of it back in float" if count > 1 else "a node of it in float"
            found = self._measure(name, left)
            return found is not None and keeps(found, self.budget)

        few, many = 0, 1
        while many < len(order) and not is_enough(many):
            few, many = many, min(2 * many, len(order))
        for _ in range(_REFINED):
            middle = (few + many) // 2
            if middle == few:
                break
            few, many = (few, middle) if is_enough(middle) else (middle, many)

    def _saved(self, found: Found) -> float:
        """Seconds that the nodes of a mixture save alone."""
        rows = zip(self.known.choices, self.known.seconds, strict=True)
        return sum(
            seconds[FULL] - seconds[found.precision[choice.position]]
            for choice, seconds in rows
            if choice.position in found.precision
        )

    def _worst_first(self, precision: Mapping[int, str]) -> list[int]:
        """The products of a mixture by what they cost in quality for the time that they save."""
        seconds = {
            choice.position: times
            for choice, times in zip(self.known.choices, self.known.seconds, strict=True)
        }

        def worth(place: int) -> float:
            shares = self.sensitivity.shares.get((place, precision[place]))
            if shares is None or place not in seconds:
                return 0.0  # it was no candidate: it does not pay
            saved = seconds[place][FULL] - seconds[place][precision[place]]
            return max(saved, 0.0) / max(*shares.values(), 1e-12)

        return sorted((p for p in precision if p not in self.known.tables), key=worth)

    def _choose(self, nothing: Found) -> Found:
        """The fastest of what keeps the budget, when the best run in turn."""
        quantised = [found for found in self.kept if found is not nothing]
        if not quantised:
            reason = "no mixture that was tried keeps the budget"
            reason = reason if self.missed else "no scheme pays for any node"
            self.ctx.decline(None, f"nothing is quantised: {reason}", tried=True)
            return nothing

        def badness(found: Found) -> float:
            return rank(found, self.budget)

        ratios = None
        best = [*sorted(quantised, key=badness)[:_CONTENDERS], nothing]
        if self.budget.of(QUALITY):
            self.ctx.progress("timing the best mixtures in turn", 1.0)
            ratios = self.trials.contest([found.precision for found in best])
        if ratios is None:
            best = self.kept
        else:
            best = [found.timed(ratio) for found, ratio in zip(best, ratios, strict=True)]
            best = [found for found in best if keeps(found, self.budget)] or best[:-1]
        found = min(best, key=badness)
        if found.precision:
            self.ctx.note(None, f"taken: {describe(found, self.budget)}", tried=True)
        else:
            reason = "the model keeps the budget as it is, and is exact"
            if self.budget.of(QUALITY):
                fastest = min(map(badness, best[:-1]))
                reason = (
                    "the fastest mixture that keeps the budget takes "
                    f"{fastest:.2f} times as long as the model as it is"
                )
            self.ctx.decline(None, f"nothing is quantised: {reason}", tried=True)
        return found
