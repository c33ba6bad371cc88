"""What a search has tried: what was measured of mixtures, and what all samples said of programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from aigcc.analysis.budget import Budget
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.found import Found, describe, keeps
from aigcc.passes.quant.trial import Refused, Trials
from aigcc.pipeline.context import Context

_MOST = 10.0  # times as far off on all samples: more than that says nothing of other mixtures
_LATE = 1.1  # times a bound on latency: the machine may just have been busy

Key = tuple[tuple[int, str], ...]


@dataclasses.dataclass
class Tried:
    """All mixtures of one search.

    A search judges by a few samples, and a build by all. Once a program misses on all what its
    mixture kept on a few, others are expected to use up as many times as much.

    Attributes:
        known: What there is to choose from: less, once the runtime refused some of it.
        budget: What has to hold.
        trials: Measures.
        ctx: Told what came of it.
        rows: Mixtures by what is in them, as they were measured on a few samples.
        judged: Those that missed the budget on all samples, as they were measured on these.
        refused: Those that the runtime does not take, or computes in other types.
        factor: How many times as much of the budget mixtures use up on all samples.
    """

    known: Candidates
    budget: Budget
    trials: Trials
    ctx: Context
    rows: dict[Key, Found] = dataclasses.field(default_factory=dict)
    judged: dict[Key, Found] = dataclasses.field(default_factory=dict)
    refused: set[Key] = dataclasses.field(default_factory=set)
    factor: float = 1.0

    def measure(self, name: str, precision: Mapping[int, str]) -> Found | None:
        """A mixture as a whole, by what is known by now; None where the runtime does not take it.

        Args:
            name: What remarks call it.
            precision: Scheme by position; tables that follow their products are added.
        """
        key = key_of(precision := self.known.with_tables(precision))
        if key in self.refused:
            return None
        if key not in self.rows:
            try:
                self.rows[key] = found = Found(precision, self.trials.measure(precision))
            except Refused as error:
                self.ctx.note(None, f"{name}: refused: {error.what}", tried=True)
                self.refused.add(key)
                return None
            fault = ", which is not enough" if self._misses(found) else ", too near to the bound"
            fault = "" if keeps(found, self.budget) else fault
            self.ctx.note(None, f"{name}: {describe(found, self.budget)}{fault}", tried=True)
        return self._seen(self.rows[key])

    def kept(self) -> list[Found]:
        """The quantised mixtures that are expected to keep the budget on all samples."""
        rows = map(self._seen, self.rows.values())
        return [row for row in rows if keeps(row, self.budget)]

    def doubted(self) -> list[Found]:
        """Others that keep it on a few samples, or all but a bound on latency, by little.

        The one that uses up least of the bounds on quality comes first.
        """
        untold = [row for key, row in self.rows.items() if key not in self.judged]
        rows = [r for r in untold if not keeps(self._seen(r), self.budget) and self._may_keep(r)]
        return sorted(rows, key=lambda found: (self._misses(found), found.used))

    def missed(self) -> list[Found]:
        """The quantised mixtures that are not expected to keep the budget."""
        rows = map(self._seen, self.rows.values())
        return [row for row in rows if not keeps(row, self.budget)]

    def nearest(self) -> Found | None:
        """What misses the budget least, of the mixtures that are known to miss it."""
        rows = [row for key, row in self.rows.items() if key not in self.judged]
        missed = [row for row in (*self.judged.values(), *rows) if self._misses(row)]
        return min(missed, key=lambda r: (r.used, r.figures.ratio or 1.0), default=None)

    def time(self, found: Found, ratio: float) -> Found:
        """Note another latency of a mixture, from a run in which several ran in turn."""
        key = key_of(found.precision)
        if key in self.rows:
            self.rows[key] = self.rows[key].timed(ratio)
        return found.timed(ratio)

    def breaks(self, found: Found, metric: str) -> bool:
        """Whether a mixture breaks a bound on a metric."""
        missed = self.budget.missed(found.figures.measured, found.figures.original)
        return any(limit.metric == metric for limit, _ in missed)

    def confirm(self, found: Found) -> Found | None:
        """A mixture with the figures of its program on all samples; None where it misses there.

        What came of it is kept, so that the search can go on.
        """
        key = key_of(found.precision)
        try:
            verdict = self.trials.confirm(found.precision)
        except Refused as error:
            if not found.precision:
                return found  # there is nothing else to plan, and the build says why
            self.ctx.note(None, f"planned again, since it is refused: {error.what}", tried=True)
            self._refuse(key)
            return None
        if verdict.wrong:
            counts = Counter(verdict.wrong.values())
            shown = ", ".join(f"{count} nodes in {scheme}" for scheme, count in counts.items())
            text = f"planned again: the runtime computes {shown} in other types"
            self.ctx.note(None, text, tried=True)
            self._refuse(key)
            self.known = self.known.without(verdict.wrong)
            for other in [k for k in self.rows if verdict.wrong.items() & set(k)]:
                self._refuse(other)
            return None
        if verdict.figures is None:
            return found
        sure = found.judged(verdict.figures)
        if not found.precision or not self._misses(sure):
            return sure
        text = f"{describe(sure, self.budget)} on all samples, which is not enough"
        self.ctx.note(None, f"planned again: {text}", tried=True)
        self.judged[key] = sure
        known = self.rows[key].used if key in self.rows else 0.0
        if known and sure.used / known <= _MOST:
            self.factor = max(self.factor, sure.used / known)
        return None

    def _seen(self, found: Found) -> Found:
        return self.judged.get(key_of(found.precision)) or found.scaled(self.factor)

    def _misses(self, found: Found) -> bool:
        return bool(self.budget.missed(found.figures.measured, found.figures.original))

    def _may_keep(self, found: Found) -> bool:
        """Whether at most a bound on latency is missed, by so little as may be chance."""
        figures = found.figures
        return all(
            limit.metric == "latency" and figure <= _LATE * limit.value(figures.original["latency"])
            for limit, figure in self.budget.missed(figures.measured, figures.original)
        )

    def _refuse(self, key: Key) -> None:
        self.refused.add(key)
        self.rows.pop(key, None)


def key_of(precision: Mapping[int, str]) -> Key:
    """What tells one mixture from others."""
    return tuple(sorted(precision.items()))
