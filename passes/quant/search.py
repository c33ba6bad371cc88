"""The search for a mixture of schemes: solve, measure the whole model, correct, solve again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.passes.quant import programme
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.choose import Option, choose
from aigcc.passes.quant.found import Found, describe, is_near, keeps, rank
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.trial import Trials
from aigcc.passes.quant.tried import Tried
from aigcc.pipeline.context import Context

_TRIALS = 6
_AIM = 0.92
_FAR = 4.0  # times the budget, by the sums: not worth to be measured
_CONTENDERS = 3  # that run in turn: all of them are in memory then
_HOPELESS = 1.2  # times as long as the model as it is, timed apart: no run in turn makes that up
_MORE = 1.05  # times what is saved already: worth more trials
_SHARPENED = 4  # times that picked estimates are measured, and the programme solved again
_REFINED = 3  # trials to take fewer nodes back
_PARTS = 12  # trials to find the nodes of a mixture that the runtime refuses
_CONFIRMED = 10  # mixtures that are built and run on all samples


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
    once more, in turn with each other and with the model as it is, before one is chosen. That one
    is built as it will be in the end, and judged by all samples: where it misses the budget, or the
    runtime refuses it or runs it in another precision, the search goes on with what this showed.

    Returns:
        The best mixture; where nothing keeps the budget, the one that misses it least.
    """
    tried = Tried(known, budget, trials, ctx)
    run = _Search(sensitivity, tried, Found({}, trials.measure({})))
    if run.nothing.used > 1:
        return run.nothing
    plain = run.nothing if keeps(run.nothing, budget) else None
    for _ in range(_CONFIRMED):
        found = run.best() or plain
        if found is None:
            return tried.nearest() or run.nothing
        confirmed = tried.confirm(found)
        if confirmed is not None:
            run.say(confirmed)
            return confirmed
    if plain is None:
        return tried.nearest() or run.nothing
    reason = f"{_CONFIRMED} mixtures miss the budget on all samples"
    ctx.decline(None, f"nothing is quantised: {reason}", tried=True)
    return plain


@dataclasses.dataclass
class _Search:
    """One search.

    Attributes:
        sensitivity: What is known of single nodes.
        tried: What is known of mixtures.
        nothing: The model as it is.
    """

    sensitivity: Sensitivity
    tried: Tried
    nothing: Found

    def best(self) -> Found | None:
        """The best that is expected to keep the budget; None where nothing is."""
        self._measure_uniform()
        self._measure_mixtures()
        self._go_back()
        return self._choose()

    def say(self, found: Found) -> None:
        """What the search ends with, and why."""
        tried, budget = self.tried, self.tried.budget
        if found.precision:
            tried.ctx.note(None, f"taken: {describe(found, budget)}", tried=True)
            return
        if not budget.of(QUALITY) and tried.kept():
            reason = "the model keeps the budget as it is, and is exact"
        elif rest := [*tried.kept(), *tried.doubted()]:
            fastest = min(rank(found, budget) for found in rest)
            reason = (
                "the fastest mixture that keeps the budget takes "
                f"{fastest:.2f} times as long as the model as it is"
            )
        elif tried.rows or tried.refused:
            reason = "no mixture that was tried keeps the budget"
        else:
            reason = "no scheme pays for any node"
        tried.ctx.decline(None, f"nothing is quantised: {reason}", tried=True)

    def _measure(self, name: str, precision: Mapping[int, str]) -> Found | None:
        """A mixture as a whole; None where the runtime does not take it: then parts of it are."""
        found = self.tried.measure(name, precision)
        if found is None:
            self._measure_parts(precision)
        return found

    def _measure_parts(self, precision: Mapping[int, str]) -> None:
        """A mixture that the runtime refuses, without the nodes that it refuses: by halves."""
        accepted: dict[int, str] = {}
        waiting = _halves(list(precision))
        for _ in range(_PARTS):
            if not waiting:
                return
            part = waiting.pop()
            wanted = accepted | {place: precision[place] for place in part}
            name = f"{len(wanted)} nodes of it"
            if self.tried.measure(name, wanted) is not None:
                accepted = wanted
            elif len(part) > 1:
                waiting += _halves(part)

    def _measure_uniform(self) -> None:
        tried = self.tried
        uniform = {choice.position: choice.schemes[0].name for choice in tried.known.uniform}
        used = programme.share(uniform, self.sensitivity)
        is_far = tried.budget.of(QUALITY) and used >= _FAR
        if uniform and self.nothing.figures.ratio is not None and not is_far:
            tried.ctx.progress("measuring one scheme for all nodes", 0.0)
            self._measure("one scheme for all", uniform)

    def _measure_mixtures(self) -> None:
        nothing, budget = self.nothing, self.tried.budget
        allowed, pace, extra = 1.0, 1.0, 0.0
        done: set[tuple[int, ...]] = set()
        for number in range(_TRIALS):
            options, picked = self._solve(allowed, pace, extra)
            if picked is None or tuple(picked) in done or not any(picked):
                break
            done.add(tuple(picked))
            chosen = [row[index] for row, index in zip(options, picked, strict=True)]
            precision = {
                choice.position: option.scheme
                for choice, option in zip(self.tried.known.choices, chosen, strict=True)
                if option.scheme != FULL
            }
            self.tried.ctx.progress(f"measuring mixture {number + 1} as a whole", number / _TRIALS)
            found = self._measure(f"mixture {number + 1}", precision)
            if found is None or is_near(found, nothing, budget):
                break
            if found.used > nothing.used:
                room = (_AIM - nothing.used) / (found.used - nothing.used)
                allowed = (programme.expected(chosen, nothing) or allowed) * min(room, 4.0)
            pace = programme.pace(found, nothing, chosen, options)
            if budget.of(["size"]):
                extra = max(extra, programme.extra(found, nothing, chosen, options))

    def _solve(
        self, allowed: float, pace: float, extra: float
    ) -> tuple[list[list[Option]], list[int] | None]:
        """The options of all nodes and the best of them, once what is picked has been measured."""
        known, budget = self.tried.known, self.tried.budget
        for last in (*[False] * _SHARPENED, True):
            options = [
                programme.options(choice, times, self.sensitivity, known)
                for choice, times in zip(known.choices, known.seconds, strict=True)
            ]
            bounds = programme.bounds(allowed, pace, budget, self.nothing, options, extra)
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
        tried, budget = self.tried, self.tried.budget
        missed = [row for row in tried.missed() if row.used > 1 and not tried.breaks(row, "size")]
        if not missed or not budget.of(QUALITY):
            return
        start = min(missed, key=lambda found: found.used)
        kept = [found for found in tried.kept() if keeps(found, budget)]
        if kept and self._saved(start) <= _MORE * max(map(self._saved, kept)):
            return
        order = self._worst_first(start.precision)

        def back(count: int) -> Found | None:
            left = {place: start.precision[place] for place in order[count:]}
            text = f"measuring with {count} nodes back in float"
            tried.ctx.progress(text, count / len(order))
            name = f"{count} nodes of it back in float" if count > 1 else "a node of it in float"
            return tried.measure(name, left)

        few, many = 0, 1
        while many < len(order):
            found = back(many)
            if found is not None and keeps(found, budget):
                break
            if found is not None and tried.breaks(found, "size"):
                return  # with more of them it is larger still
            few, many = many, min(2 * many, len(order))
        for _ in range(_REFINED):
            middle = (few + many) // 2
            if middle == few:
                break
            found = back(middle)
            is_enough = found is not None and keeps(found, budget)
            few, many = (few, middle) if is_enough else (middle, many)

    def _saved(self, found: Found) -> float:
        """Seconds that the nodes of a mixture save alone."""
        rows = zip(self.tried.known.choices, self.tried.known.seconds, strict=True)
        return sum(
            seconds[FULL] - seconds[found.precision[choice.position]]
            for choice, seconds in rows
            if choice.position in found.precision
        )

    def _worst_first(self, precision: Mapping[int, str]) -> list[int]:
        """The products of a mixture by what they cost in quality for the time that they save."""
        seconds = {
            choice.position: times
            for choice, times in zip(
                self.tried.known.choices, self.tried.known.seconds, strict=True
            )
        }

        def worth(place: int) -> float:
            shares = self.sensitivity.shares.get((place, precision[place]))
            if shares is None or place not in seconds:
                return 0.0  # it was no candidate: it does not pay
            saved = seconds[place][FULL] - seconds[place][precision[place]]
            return max(saved, 0.0) / max(*shares.values(), 1e-12)

        return sorted((p for p in precision if p not in self.tried.known.tables), key=worth)

    def _choose(self) -> Found | None:
        """The best of what keeps the budget, when the fastest run in turn; None where none does.

        As long as the model as it is turns out to be faster, the next ones run as well.
        """
        tried, budget = self.tried, self.tried.budget
        plain = [self.nothing] if keeps(self.nothing, budget) else []
        kept = sorted(tried.kept(), key=self._badness)
        if not budget.of(QUALITY):
            return min([*kept, *plain], key=self._badness, default=None)
        for group in (kept, tried.doubted()):
            for start in range(0, len(group), _CONTENDERS):
                batch = group[start : start + _CONTENDERS]
                if start and self._badness(batch[0]) >= _HOPELESS:
                    break
                found = self._contest([*batch, *plain])
                if found is not None and found.precision:
                    return found
        return None

    def _contest(self, mixtures: Sequence[Found]) -> Found | None:
        """The best of some when they run in turn; None where none is fast enough for the budget."""
        tried = self.tried
        tried.ctx.progress("timing the best mixtures in turn", 1.0)
        ratios = tried.trials.contest([found.precision for found in mixtures])
        if ratios is not None:
            pairs = zip(mixtures, ratios, strict=True)
            mixtures = [tried.time(found, ratio) for found, ratio in pairs]
        in_time = [found for found in mixtures if not tried.breaks(found, "latency")]
        return min(in_time, key=self._badness, default=None)

    def _badness(self, found: Found) -> float:
        return rank(found, self.tried.budget)


def _halves(places: list[int]) -> list[list[int]]:
    middle = (len(places) + 1) // 2
    return [part for part in (places[:middle], places[middle:]) if part]
