"""Whole models with a choice of schemes, as the target runs them: quality, latency and size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy.typing as npt

from aigcc.analysis.budget import Budget
from aigcc.analysis.damage import Damage
from aigcc.benchmark import interleave
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.slots import slots
from aigcc.passes.quant.quantise import FULL, PRECISION, Method, places, quantise, ranges
from aigcc.pipeline.context import Context
from aigcc.runtime import OrtSession
from aigcc.target import Session

_SAMPLES = 4
_SECONDS = 4.0

Outputs = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of a whole model.

    Attributes:
        shares: By bound on quality and output, how much of it is used up.
        measured: By metric: quality, "size" in bytes; "latency" in seconds where it can run here.
        original: The same of the model as it was, where it has such a figure.
    """

    shares: Mapping[str, float]
    measured: Mapping[str, float]
    original: Mapping[str, float]

    @property
    def ratio(self) -> float | None:
        """Latency as a factor of the model's as it was; None where it cannot run here."""
        if "latency" not in self.measured:
            return None
        return self.measured["latency"] / self.original["latency"]


class Trials:
    """Builds models with schemes for nodes, runs them on the target here, and measures them.

    Where this machine cannot run the target's programs, the quantised modules run in ONNX Runtime
    without its optimisations, and latency is not measured.

    Args:
        module: The model as it is; not changed.
        budget: What is of interest.
        calibration: How ranges are chosen.
        ctx: Target, samples to evaluate on (four of them are used), calibration, threads.

    Raises:
        CompileError: latency has a bound, and cannot be measured here.
    """

    def __init__(self, module: Module, budget: Budget, calibration: Method, ctx: Context) -> None:
        assert ctx.samples is not None
        self._module, self._budget, self._ctx = module, budget, ctx
        self._ranges = ranges(ctx.calibration, calibration)
        assert ctx.target is not None
        self._plain = ctx.target.open(module, ctx.threads)
        if self._plain is None and budget.of(["latency"]):
            raise CompileError(
                f"this machine cannot run programs for {ctx.target.name}, so no latency can be "
                "measured",
                hint="bound quality and size instead",
            )
        self._feeds = list(itertools.islice(ctx.samples, _SAMPLES))
        exact = OrtSession(module, optimise=False, threads=ctx.threads)
        self._expected: list[Outputs] = [exact.run(feeds) for feeds in self._feeds]
        self._size = size_of(module)

    def measure(self, precision: Mapping[int, str]) -> Figures:
        """Figures of the model with schemes for some positions of the main graph."""
        made = self._build(precision)
        session = self._open(made)
        damage = Damage(self._budget)
        for feeds, expected in zip(self._feeds, self._expected, strict=True):
            damage.add(feeds, expected, session.run(feeds))
        measured, original = self._latency(session)
        return Figures(
            damage.used(),
            {**damage.figures(), "size": size_of(made), **measured},
            {**damage.original(), "size": self._size, **original},
        )

    def _latency(self, session: Session) -> tuple[dict[str, float], dict[str, float]]:
        """Of a program and of the model as it is, run in turn; nothing where it cannot run here."""
        if self._plain is None:
            return {}, {}
        feeds = self._feeds[0]
        timing = interleave(
            {"full": partial(self._plain.run, feeds), "tried": partial(session.run, feeds)},
            seconds=_SECONDS,
        )
        seconds = timing["full"].median
        return {"latency": seconds * timing["tried"].ratio}, {"latency": seconds}

    def _build(self, precision: Mapping[int, str]) -> Module:
        made = self._module.clone()
        for position, node in enumerate(made.graph):
            node.metadata_props[PRECISION] = precision.get(position, FULL)
        silent = dataclasses.replace(
            self._ctx, remarks=[], rewrites=type(self._ctx.rewrites)(), limit=None
        )
        quantise(made, list(places(made, FULL, silent)), self._ranges, "max", silent)
        return made

    def _open(self, module: Module) -> Session:
        assert self._ctx.target is not None
        session = self._ctx.target.open(module, self._ctx.threads)
        return session or OrtSession(module, optimise=False, threads=self._ctx.threads)


def size_of(module: Module) -> float:
    """Bytes of all weights, each counted once."""
    tensors = {id(slot.tensor): slot.tensor for slot in slots(module.model)}
    return float(sum(tensor.nbytes for tensor in tensors.values()))
