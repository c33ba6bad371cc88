"""How much quality each scheme of each node costs, by running the whole model with it alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from aigcc.analysis.budget import Budget
from aigcc.analysis.damage import Damage
from aigcc.ir.module import Module
from aigcc.passes.quant.estimate import relative_noise
from aigcc.passes.quant.region import RangeOf
from aigcc.passes.quant.switch import Choice, Switch
from aigcc.pipeline.context import Context
from aigcc.samples import Feeds

Shares = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """By position and scheme, the shares of the budget's bounds that this choice alone uses up."""

    shares: Mapping[tuple[int, str], Shares]

    def of(self, position: int, scheme: str) -> tuple[float, ...]:
        """The shares of a choice, in the order of the bounds."""
        return tuple(self.shares[position, scheme].values())

    def none(self) -> tuple[float, ...]:
        """The shares of leaving a node as it is."""
        return tuple(0.0 for _ in next(iter(self.shares.values()), ()))

    @classmethod
    def measure(
        cls,
        module: Module,
        choices: Sequence[Choice],
        samples: Iterable[Feeds],
        budget: Budget,
        range_of: RangeOf,
        ctx: Context,
    ) -> Sensitivity:
        """Run the model once for each choice and sample, with the choice's noisiest scheme.

        Its other schemes are taken to cost less in proportion to the noise that they add to the
        node's own output.

        Args:
            module: The module; it is not changed.
            choices: Nodes and the schemes they may take.
            samples: Inputs; every one costs a run for each choice.
            budget: Whose bounds the errors are measured against.
            range_of: The calibrated range of an activation.
            ctx: Told about progress; has the calibration.
        """
        nodes = list(module.graph)
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
        damages = _run(module, tried, samples, budget, range_of, ctx)
        shares: dict[tuple[int, str], Shares] = {}
        for choice, noise, name, damage in zip(choices, noises, worst, damages, strict=True):
            for scheme, own in noise.items():
                part = own / noise[name] if noise[name] else 0.0
                shares[choice.position, scheme] = {
                    bound: share * part for bound, share in damage.used().items()
                }
        return cls(shares)


def _run(
    module: Module,
    tried: Sequence[Choice],
    samples: Iterable[Feeds],
    budget: Budget,
    range_of: RangeOf,
    ctx: Context,
) -> list[Damage]:
    """What each choice alone, in its one scheme, does to the outputs."""
    damages = [Damage(budget) for _ in tried]
    if not tried:
        return damages
    ctx.progress("preparing the sensitivity of nodes", 0.0)
    switch = Switch(module, tried, range_of, ctx.threads)
    for feeds in samples:
        reference = switch.run(feeds, ())
        for done, (choice, damage) in enumerate(zip(tried, damages, strict=True)):
            ctx.progress("measuring the sensitivity of nodes", done / len(tried))
            key = (choice.position, choice.schemes[0].name)
            damage.add(feeds, reference, switch.run(feeds, {key}))
    return damages
