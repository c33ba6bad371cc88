"""How much quality each scheme of each node costs, by running the whole model with it alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.analysis.damage import Damage
from aigcc.ir.module import Module
from aigcc.passes.quant.estimate import relative_noise
from aigcc.passes.quant.evidence import Evidence, Outputs
from aigcc.passes.quant.switch import Choice, Switch
from aigcc.pipeline.context import Context

Shares = Mapping[str, float]

_POWER = "sqnr>=0"  # of which an error as large as the output uses up all


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """By position and scheme, the shares of the budget's bounds that this choice alone uses up.

    Of a budget that bounds no quality, the powers of the errors that it adds.

    Attributes:
        shares: As far as they are known.
        measured: The choices that the model ran with; all others are estimated.
        probe: Measures more of them.
    """

    shares: Mapping[tuple[int, str], Shares]
    measured: frozenset[tuple[int, str]] = frozenset()
    probe: Callable[[Sequence[Choice]], list[Shares]] | None = None

    def of(self, position: int, scheme: str) -> tuple[float, ...]:
        """The shares of a choice, in the order of the bounds."""
        return tuple(self.shares[position, scheme].values())

    def none(self) -> tuple[float, ...]:
        """The shares of leaving a node as it is."""
        return tuple(0.0 for _ in next(iter(self.shares.values()), ()))

    def sharpened(self, choices: Sequence[Choice]) -> Sensitivity:
        """The same, with choices of one scheme each measured that were estimated."""
        wanted = [c for c in choices if (c.position, c.schemes[0].name) not in self.measured]
        if self.probe is None or not wanted:
            return self
        keys = [(choice.position, choice.schemes[0].name) for choice in wanted]
        found = dict(zip(keys, self.probe(wanted), strict=True))
        return dataclasses.replace(
            self, shares={**self.shares, **found}, measured=self.measured | found.keys()
        )

    @classmethod
    def measure(
        cls, module: Module, choices: Sequence[Choice], evidence: Evidence, ctx: Context
    ) -> Sensitivity:
        """Run the model once for each choice and sample, with the choice's noisiest scheme.

        Its other schemes are taken to cost less in proportion to the noise that they add to the
        node's own output, until they are wanted: `sharpened` measures them. Ranges are from other
        samples, if there are several: a node that only does well on what it was calibrated on shows
        here. The worst sample counts.

        Args:
            module: The module; it is not changed.
            choices: Nodes and the schemes they may take.
            evidence: Samples, every one of which costs a run for each choice, and ranges.
            ctx: Told about progress; has the calibration.
        """
        if not evidence.budget.of(QUALITY):
            evidence = dataclasses.replace(evidence, budget=Budget.parse(_POWER))
        nodes = list(module.graph)
        range_of = evidence.folds[0].ranges.range_of
        noises = [
            {
                scheme.name: relative_noise(
                    nodes[choice.position], choice.weight, scheme, ctx.calibration, range_of
                )
                for scheme in choice.schemes
            }
            for choice in choices
        ]
        worst = [max(noise, key=lambda name: noise[name]) for noise in noises]
        tried = [
            dataclasses.replace(c, schemes=tuple(s for s in c.schemes if s.name == name))
            for c, name in zip(choices, worst, strict=True)
        ]
        probe = functools.partial(_measure, module, evidence=evidence, ctx=ctx)
        shares: dict[tuple[int, str], Shares] = {}
        for choice, noise, name, row in zip(choices, noises, worst, probe(tried), strict=True):
            for scheme, own in noise.items():
                part = own / noise[name] if noise[name] else 0.0
                shares[choice.position, scheme] = {
                    bound: share * part for bound, share in row.items()
                }
        measured = frozenset((choice.position, choice.schemes[0].name) for choice in tried)
        return cls(shares, measured, probe)


def _measure(
    module: Module, tried: Sequence[Choice], *, evidence: Evidence, ctx: Context
) -> list[Shares]:
    """What each choice alone, in its one scheme, uses up with the samples of the worst fold."""
    folds = [_run(module, tried, evidence, number, ctx) for number in range(len(evidence.folds))]
    return [
        {bound: max(row[bound] for row in rows) for bound in rows[0]}
        for rows in zip(*folds, strict=True)
    ]


def _run(
    module: Module, tried: Sequence[Choice], evidence: Evidence, number: int, ctx: Context
) -> list[Shares]:
    """What each choice alone, in its one scheme, uses up with the samples of a fold."""
    fold = evidence.folds[number]
    probes = [evidence.feeds[position] for position in fold.probes]

    @functools.cache
    def prepared() -> tuple[Switch, list[Outputs]]:
        ctx.progress("preparing the sensitivity of nodes", 0.0)
        ranges = fold.ranges
        switch = Switch(module, tried, ranges.range_of, ranges.tuning, ctx.threads)
        return switch, [switch.run(feeds, ()) for feeds in probes]

    def measure(choice: tuple[int, str]) -> Shares:
        switch, references = prepared()
        damage = Damage(evidence.budget)
        for feeds, reference in zip(probes, references, strict=True):
            damage.add(feeds, reference, switch.run(feeds, {choice}))
        return damage.used()

    found = []
    for done, choice in enumerate(tried):
        ctx.progress(f"measuring the sensitivity of nodes, {number + 1}", done / len(tried))
        key = choice.position, choice.schemes[0].name
        name = f"{key[0]} {key[1]} {number} {evidence.budget}"
        row = evidence.memory.recall(name, functools.partial(measure, key))
        assert row is not None
        found.append(row)
    return found
