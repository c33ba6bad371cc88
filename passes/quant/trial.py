"""Whole models with a choice of schemes, as the target runs them: quality, latency and size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial

from aigcc.analysis.damage import Damage
from aigcc.benchmark import interleave
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.slots import slots
from aigcc.options import show
from aigcc.passes.quant.evidence import Evidence, Fold
from aigcc.passes.quant.quantise import FULL, PRECISION, places, quantise
from aigcc.pipeline.context import Context
from aigcc.runtime import OrtSession
from aigcc.target import Session, Target

_SECONDS = 4.0


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
    """Builds models with schemes for nodes, runs them on a target here, and measures them.

    Where this machine cannot run the target's programs, the quantised modules run in ONNX Runtime
    without its optimisations, and latency is not measured.

    Args:
        module: The model as it is; not changed.
        evidence: What to judge by.
        plain: The target that runs the model as it is, which latencies are compared with.
        target: The target that runs the mixtures.
        ctx: Threads.

    Raises:
        CompileError: latency has a bound, and cannot be measured here.
    """

    def __init__(
        self, module: Module, evidence: Evidence, plain: Target, target: Target, ctx: Context
    ) -> None:
        self._module, self._evidence, self._target, self._ctx = module, evidence, target, ctx
        self._plain = plain.open(module, ctx.threads)
        if self._plain is None and evidence.budget.of(["latency"]):
            raise CompileError(
                f"this machine cannot run programs for {target.name}, so no latency can be "
                "measured",
                hint="bound quality and size instead",
            )
        self._size = size_of(module)

    def measure(self, precision: Mapping[int, str]) -> Figures:
        """Figures of the model with schemes for some positions of the main graph."""
        key = json.dumps([show(self._target, self._target.name), sorted(precision.items())])
        row = self._evidence.memory.recall(key, partial(self._measure, precision))
        assert row is not None
        return Figures(**row)

    def _measure(self, precision: Mapping[int, str]) -> dict[str, Mapping[str, float]]:
        evidence = self._evidence
        damage = Damage(evidence.budget)
        for fold in evidence.folds:
            made = self._build(precision, fold)
            session = self._open(made)
            for position in fold.judged:
                feeds = evidence.feeds[position]
                damage.add(feeds, evidence.expected[position], session.run(feeds))
        measured, original = self._latency(session)
        return {
            "shares": damage.used(),
            "measured": {**damage.figures(), "size": size_of(made), **measured},
            "original": {**damage.original(), "size": self._size, **original},
        }

    def _latency(self, session: Session) -> tuple[dict[str, float], dict[str, float]]:
        """Of a program and of the model as it is, run in turn; nothing where it cannot run here."""
        if self._plain is None:
            return {}, {}
        feeds = self._evidence.feeds[0]
        timing = interleave(
            {"full": partial(self._plain.run, feeds), "tried": partial(session.run, feeds)},
            seconds=_SECONDS,
        )
        seconds = timing["full"].median
        return {"latency": seconds * timing["tried"].ratio}, {"latency": seconds}

    def _build(self, precision: Mapping[int, str], fold: Fold) -> Module:
        made = self._module.clone()
        for position, node in enumerate(made.graph):
            node.metadata_props[PRECISION] = precision.get(position, FULL)
        silent = dataclasses.replace(
            self._ctx, remarks=[], rewrites=type(self._ctx.rewrites)(), limit=None
        )
        found, ranges = list(places(made, FULL, silent)), fold.ranges
        quantise(made, found, ranges.range_of, "max", silent, ranges.tuning)
        return made

    def _open(self, module: Module) -> Session:
        session = self._target.open(module, self._ctx.threads)
        return session or OrtSession(module, optimise=False, threads=self._ctx.threads)


def size_of(module: Module) -> float:
    """Bytes of all weights, each counted once."""
    tensors = {id(slot.tensor): slot.tensor for slot in slots(module.model)}
    return float(sum(tensor.nbytes for tensor in tensors.values()))
