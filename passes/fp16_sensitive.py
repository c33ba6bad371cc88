"""Which parts of a model have to stay in float32 for its outputs to stay what they are."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from aigcc.analysis.metrics import compare_outputs
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.reference import Reference

Unit = TypeVar("Unit")

_SAMPLES = 4
_RUNS = 24  # variants of the model that are run, each on all samples
_ROOM = 0.7  # of the tolerance: other inputs than the samples may be further off


@dataclasses.dataclass
class _Part(Generic[Unit]):
    """Neighbours that go to float16 together, and how far that alone puts the outputs off."""

    units: Sequence[Unit]
    error: float


class Sensitive(Generic[Unit]):
    """Finds the fewest units whose float32 keeps a model's outputs within its target's tolerance.

    Halves of the model are tried on samples, and those that put outputs off are halved again. The
    squares of what the parts do are taken to add up; the answer is then tried as a whole.

    Args:
        module: In float32, left as it is.
        make: The model with some units in float16.
        ctx: Its target tells what is allowed, its samples what is measured.
    """

    def __init__(
        self, module: Module, make: Callable[[Sequence[Unit]], Module], ctx: Context
    ) -> None:
        self._make = make
        self._ctx = ctx
        self._runs = 0
        self.error = 0.0
        self.allowed = math.inf if ctx.target is None else ctx.target.tolerance
        is_measured = ctx.samples is not None and ctx.target is not None
        self._feeds = list(itertools.islice(ctx.samples or (), _SAMPLES)) if is_measured else []
        if self._feeds:
            session = Reference(module, ctx.threads)
            self._wanted = [session.run(feeds) for feeds in self._feeds]

    def find(self, units: Sequence[Unit]) -> list[Unit]:
        """Those to keep in float32; `error` is how far the outputs of all in float16 are off."""
        self.error = self._try(units)
        if not self._feeds or not self.error > self.allowed:
            return []
        parts = [_Part(units, self.error)]
        while self._runs < _RUNS:
            splittable = [part for part in parts if len(part.units) > 1]
            if not splittable:
                break
            worst = max(splittable, key=lambda part: part.error)
            parts.remove(worst)
            middle = len(worst.units) // 2
            halves = (worst.units[:middle], worst.units[middle:])
            parts += [_Part(half, self._try(half)) for half in halves]
            kept = self._worst(parts)
            if len(kept) <= max(1, len(units) // 16) and self._is_enough(units, kept):
                return kept
        kept = self._worst(parts)
        return kept if self._is_enough(units, kept) else list(units)

    def _worst(self, parts: list[_Part[Unit]]) -> list[Unit]:
        """The units of the fewest parts without which the others are within bounds."""
        rest = sorted(parts, key=lambda part: part.error)
        kept: list[Unit] = []
        while rest and not _together(rest) <= self.allowed * _ROOM:
            kept += rest.pop().units
        return kept

    def _is_enough(self, units: Sequence[Unit], kept: list[Unit]) -> bool:
        without = set(kept)
        return self._try([unit for unit in units if unit not in without]) <= self.allowed

    def _try(self, units: Sequence[Unit]) -> float:
        """How far the outputs are off with these in float16; infinite where it does not run."""
        if not units or not self._feeds:
            return 0.0
        self._runs += 1
        self._ctx.progress("looking for what has to stay float32", min(self._runs / _RUNS, 1.0))
        try:
            session = Reference(self._make(units), self._ctx.threads, rounds=True)
            rows = [
                row
                for feeds, wanted in zip(self._feeds, self._wanted, strict=True)
                for row in compare_outputs(wanted, session.run(feeds))
            ]
        except CompileError:
            return math.inf
        return max((row.relative for row in rows), default=0.0)


def _together(parts: list[_Part[Unit]]) -> float:
    return math.sqrt(sum(part.error**2 for part in parts))
