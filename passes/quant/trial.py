"""Whole models with a choice of schemes, as the target runs them: quality, latency and size."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aigcc.analysis.damage import Damage
from aigcc.benchmark import interleave
from aigcc.deployed import open_program
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.slots import slots
from aigcc.noise import equal_noise
from aigcc.options import show
from aigcc.passes.quant.evidence import Evidence, Ranges
from aigcc.passes.quant.quantise import FULL, PRECISION, places, quantise
from aigcc.passes.quant.readback import read_back
from aigcc.pipeline.context import Context
from aigcc.quality import measure
from aigcc.reference import Reference
from aigcc.target import Session, Target, node_label

_SECONDS = 4.0
_POSITION = "aigcc.position"


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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a build would make of a mixture.

    Attributes:
        wrong: What would run in another dtype than planned: schemes by position.
        figures: On all samples; None where no more is known of it than before.
    """

    wrong: Mapping[int, str] = dataclasses.field(default_factory=dict)
    figures: Figures | None = None


class Refused(CompileError):
    """The runtime does not take a mixture."""


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
        self._is_plain = plain == target
        self._plain = plain.open(module, ctx.threads)
        if self._plain is None and evidence.budget.of(["latency"]):
            raise CompileError(
                f"this machine cannot run programs for {target.name}, so no latency can be "
                "measured",
                hint="bound quality and size instead",
            )
        self._size = size_of(module)

    def measure(self, precision: Mapping[int, str]) -> Figures:
        """Figures of the model with schemes for some positions of the main graph.

        What misses a bound on quality is not timed, unless latency has a bound as well.

        Raises:
            Refused: the runtime does not take it.
        """
        key = json.dumps([show(self._target, self._target.name), sorted(precision.items())])
        row = self._evidence.memory.recall(key, partial(self._measure, precision))
        assert row is not None
        return Figures(**row)

    def contest(self, mixtures: Sequence[Mapping[int, str]]) -> list[float] | None:
        """Latencies as factors of the model's as it is; None where nothing can run here.

        All of them run in turn with the model and with each other: what was timed apart differs by
        more than what it is worth.
        """
        if self._plain is None:
            return None
        keys = [sorted(mixture.items()) for mixture in mixtures]
        key = json.dumps(["contest", show(self._target, self._target.name), keys])
        row = self._evidence.memory.recall(key, partial(self._contest, mixtures))
        assert row is not None
        return list(row["ratios"])

    def _contest(self, mixtures: Sequence[Mapping[int, str]]) -> dict[str, list[float]]:
        assert self._plain is not None
        feeds = self._evidence.feeds[0]
        programs = {"full": partial(self._plain.run, feeds)}
        for number, mixture in enumerate(mixtures):
            if mixture or not self._is_plain:
                session = self._open(self._build(mixture, self._evidence.folds[0].ranges))
                programs[str(number)] = partial(session.run, feeds)
        timing = interleave(programs, seconds=_SECONDS * len(programs))
        found = [timing.get(str(number)) for number in range(len(mixtures))]
        return {"ratios": [1.0 if each is None else each.ratio for each in found]}

    def confirm(self, precision: Mapping[int, str]) -> Verdict:
        """Build a mixture as it will be in the end, and judge it as a build is judged.

        Raises:
            Refused: the target's compiler does not take the mixture, or its program fails.
        """
        if self._is_plain and not precision:
            return Verdict()
        made, target = self._build(precision, self._evidence.final), self._target
        self._ctx.progress("judging the choice by all samples", 1.0)
        with _scratch() as folder, _refused():
            if self._plain is None:  # lowering takes long then, and nothing would be learned
                return Verdict({}, self._judge(made, self._open(made)))
            if problems := target.check(made):
                raise CompileError(problems[0].message, at=problems[0].node)
            lowered = target.lower(made, folder, silent(self._ctx))
            wrong, _ = read_back(made, target, lowered.precision)
            if wrong:
                places = {
                    node_label(node): node.metadata_props.get(_POSITION) for node in made.graph
                }
                return Verdict(
                    {int(place): w.scheme for w in wrong if (place := places[w.node]) is not None}
                )
            session = open_program(target, made, folder, lowered, silent(self._ctx))
            return Verdict({}, self._judge(made, session or self._open(made)))

    def _judge(self, made: Module, session: Session) -> Figures:
        ctx, budget = self._ctx, self._evidence.budget
        assert ctx.samples is not None
        original = ctx.original or self._module
        quality = measure(original, session, ctx.samples, ctx.threads, budget, inputs=made.inputs)
        if quality.failure is not None:
            raise quality.failure
        quality.refuse_elsewhere(self._target.tolerance, show(self._target, self._target.name))
        assert quality.damage is not None
        damage = quality.damage
        return Figures(
            damage.used(),
            {**damage.figures(), "size": size_of(made)},
            {**damage.original(), "size": self._size},
        )

    def _measure(self, precision: Mapping[int, str]) -> dict[str, Mapping[str, float]]:
        evidence = self._evidence
        damage = Damage(evidence.budget)
        for fold in evidence.folds:
            made = self._build(precision, fold.ranges)
            with _refused():
                session = self._open(made)
            for position in fold.judged:
                feeds = evidence.feeds[position]
                with _refused():
                    outputs = session.run(feeds)
                damage.add(feeds, evidence.expected[position], outputs)
        shares = damage.used()
        is_bad = max(shares.values(), default=0.0) > 1 and not evidence.budget.of(["latency"])
        is_same = self._is_plain and not precision
        measured, original = ({}, {}) if is_bad else self._latency(None if is_same else session)
        return {
            "shares": shares,
            "measured": {**damage.figures(), "size": size_of(made), **measured},
            "original": {**damage.original(), "size": self._size, **original},
        }

    def _latency(self, session: Session | None) -> tuple[dict[str, float], dict[str, float]]:
        """Of a program and of the model as it is, run in turn; nothing where it cannot run here.

        None is the program of the model as it is.
        """
        if self._plain is None:
            return {}, {}
        feeds = self._evidence.feeds[0]
        programs = {"full": partial(self._plain.run, feeds)}
        if session is not None:
            programs["tried"] = partial(session.run, feeds)
        timing = interleave(programs, seconds=_SECONDS)
        seconds = timing["full"].median
        ratio = timing["tried"].ratio if session is not None else 1.0
        return {"latency": seconds * ratio}, {"latency": seconds}

    def _build(self, precision: Mapping[int, str], ranges: Ranges) -> Module:
        made = self._module.clone()
        for position, node in enumerate(made.graph):
            node.metadata_props[_POSITION] = str(position)
            node.metadata_props[PRECISION] = precision.get(position, FULL)
        apart = silent(self._ctx)
        found = list(places(made, FULL, apart))
        quantise(made, found, ranges.range_of, "max", apart, ranges.tuning)
        return made

    def _open(self, module: Module) -> Session:
        session = self._target.open(equal_noise(module), self._ctx.threads)
        return session or Reference(module, self._ctx.threads, rounds=True)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except CompileError as error:
        raise Refused(error.what, at=error.at, hint=error.hint) from error


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def silent(ctx: Context) -> Context:
    """The same surroundings, in which nothing is said or counted."""
    return dataclasses.replace(
        ctx, remarks=[], rewrites=type(ctx.rewrites)(), limit=None, progress=lambda *_: None
    )


def size_of(module: Module) -> float:
    """Bytes of all weights, each counted once."""
    tensors = {id(slot.tensor): slot.tensor for slot in slots(module.model)}
    return float(sum(tensor.nbytes for tensor in tensors.values()))
