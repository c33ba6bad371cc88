"""Whether a rewritten module does at the edges of its inputs what the original does there."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.metrics import OutputError, compare_outputs
from aigcc.apart import STOPPED, run_apart
from aigcc.edge_probes import hiding, probing
from aigcc.edges import Edge, edges, is_number
from aigcc.errors import CompileError
from aigcc.exact import exact
from aigcc.ir.draws import count_draws
from aigcc.ir.module import Module
from aigcc.reference import Reference, explains, rounded_otherwise
from aigcc.runtime import OrtSession

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

SECONDS = 10.0
"""What all edges of a module may take together."""


# Operators that take no empty dims in ONNX Runtime, and those that it spells as others, which have
# no names.
_NEVER_EMPTY = frozenset({"Attention"})
_SPELLED = frozenset({"GroupNormalization"})


@dataclasses.dataclass(frozen=True)
class EdgeFault:
    """An edge at which a module does something else than the original.

    Attributes:
        edge: Its name and its inputs.
        what: What is wrong, in a sentence that follows its name.
    """

    edge: Edge
    what: str


@dataclasses.dataclass
class EdgeReport:
    """What came of all edges.

    Attributes:
        same: Names of those where both do the same.
        refused: Of those that the original does not run with.
        rounded: Of those where the original's own outputs are a matter of rounding or overflow.
        spread: Of those where NaN or infinities of the inputs reach more of the outputs.
        unsupported: Of those for which ONNX Runtime has no kernel afterwards.
        faults: Where the module does something else.
        left_out: Why not all were tried; empty where all were.
    """

    same: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    rounded: list[str] = dataclasses.field(default_factory=list)
    spread: list[str] = dataclasses.field(default_factory=list)
    unsupported: list[str] = dataclasses.field(default_factory=list)
    faults: list[EdgeFault] = dataclasses.field(default_factory=list)
    left_out: str = ""

    def joined(self, later: EdgeReport) -> EdgeReport:
        """What came of two parts of a pipeline: an edge is the same where it is so in both."""
        kinds = ("refused", "rounded", "spread", "unsupported")
        made = {k: list(dict.fromkeys([*getattr(self, k), *getattr(later, k)])) for k in kinds}
        other = {name for names in made.values() for name in names}
        return EdgeReport(
            same=[name for name in dict.fromkeys([*self.same, *later.same]) if name not in other],
            faults=[*self.faults, *later.faults],
            left_out=self.left_out or later.left_out,
            **made,
        )

    def describe(self) -> dict[str, Any]:
        """The facts that the manifest keeps."""
        return {key: fact for key, fact in vars(self).items() if key != "faults"}


class EdgeCheck:
    """Compares modules with their original at edges.

    Args:
        original: The module that is right.
        sample: An ordinary set of inputs.
        tolerance: The largest max|a-b| / max|a| that rounding explains.
        threads: As for `OrtSession`.

    Raises:
        CompileError: the original does not run with the sample.
    """

    def __init__(
        self, original: Module, sample: Outputs, tolerance: float, threads: int | None = None
    ) -> None:
        self._original = original
        self._sample = sample
        self._tolerance = tolerance
        self._threads = threads
        self._off: frozenset[str] = frozenset()
        self._reference = Reference(original, threads)
        started = time.perf_counter()
        self._usual = self._reference.run(sample)
        self.seconds = time.perf_counter() - started

    def compare(self, module: Module, *, far: bool = True) -> EdgeReport:
        """Run a module beside the original, as long as that is quick.

        Args:
            module: The module that is judged.
            far: Whether with huge and tiny numbers, too.

        Raises:
            CompileError: it does not run with the sample.
        """
        report = EdgeReport()
        if count_draws(exact(self._original)):
            report.left_out = "each program draws its own random numbers"
            return report
        session = Reference(module, self._threads, rounds=True)
        self._off = self._wrong_usually(session)
        started, empty = time.perf_counter(), []
        for edge in edges(self._original, self._sample):
            if time.perf_counter() - started + 2 * self.seconds > SECONDS:
                report.left_out = f"together they take more than {SECONDS:.0f} s"
                return report
            if edge.kind == "empty":
                empty.append(edge)
            elif far or edge.kind != "far":
                self._add(edge, session, report)
        self._add_empty(empty, module, report)
        return report

    def error(self, edge: Edge, module: Module) -> float:
        """1 if a module does something else at an edge, and 0 if it does not."""
        report = EdgeReport()
        if edge.kind == "empty":
            self._add_empty([edge], module, report)
        else:
            session = Reference(module, self._threads, rounds=True)
            self._off = self._wrong_usually(session)
            self._add(edge, session, report)
        return float(bool(report.faults))

    def _add(self, edge: Edge, session: Reference, report: EdgeReport) -> None:
        try:
            expected = self._reference.run(edge.feeds)
        except CompileError:
            report.refused.append(edge.name)
            return
        try:
            given = session.run(edge.feeds)
            wrong = self._wrong(edge, expected, given)
        except CompileError as error:
            report.faults.append(EdgeFault(edge, f"it fails: {error.what}"))
            return
        if not wrong:
            report.same.append(edge.name)
        elif edge.kind == "special" and not any(_vanishes(row, expected, given) for row in wrong):
            report.spread.append(edge.name)
        elif self._is_explained(edge, expected, wrong):
            report.rounded.append(edge.name)
        else:
            report.faults.append(EdgeFault(edge, self._in_words(wrong[0], expected)))

    def _add_empty(self, empty: Sequence[Edge], module: Module, report: EdgeReport) -> None:
        """Empty dims, which some kernels of ONNX Runtime divide by, in a process of its own."""
        values = (*self._original.graph.inputs, *self._original.outputs)
        if not empty or not all(map(_is_plain, values)):
            return
        models = [exact(each) for each in (self._original, module)]
        outcomes = run_apart(models, [edge.feeds for edge in empty], self._threads)
        for edge, (expected, given) in zip(empty, outcomes, strict=True):
            if isinstance(expected, str):
                report.refused.append(edge.name)
            elif isinstance(given, str):
                if given == STOPPED or _has_no_kernel(given, module):
                    report.unsupported.append(edge.name)
                else:
                    report.faults.append(EdgeFault(edge, f"it fails: {given}"))
            else:
                self._judge_empty(edge, expected, given, report)

    def _judge_empty(
        self, edge: Edge, expected: Outputs, given: Outputs, report: EdgeReport
    ) -> None:
        try:
            wrong = self._wrong(edge, expected, given)
        except CompileError as error:
            report.faults.append(EdgeFault(edge, str(error)))
            return
        if wrong:
            report.faults.append(EdgeFault(edge, self._in_words(wrong[0], expected)))
        else:
            report.same.append(edge.name)

    def _wrong(self, edge: Edge, expected: Outputs, given: Outputs) -> list[OutputError]:
        """The outputs that differ by more than rounding of ordinary numbers makes of them."""
        rows = [row for row in compare_outputs(expected, given) if row.name not in self._off]
        if edge.kind == "loose":
            return [row for row in rows if row.broken]
        return [
            row for row in rows if row.broken or self._relative(row, expected) > self._tolerance
        ]

    def _wrong_usually(self, session: Reference) -> frozenset[str]:
        """Outputs that rounding puts off for ordinary inputs already: of them nothing is known."""
        rows = compare_outputs(self._usual, session.run(self._sample))
        return frozenset(row.name for row in rows if not row.relative <= self._tolerance)

    def _relative(self, row: OutputError, expected: Outputs) -> float:
        """The error of an output, relative to its largest number here and ordinarily."""
        largest = max(map(_largest, (expected[row.name], self._usual.get(row.name, np.zeros(0)))))
        return row.max_abs / largest if row.max_abs and largest else row.relative

    def _in_words(self, row: OutputError, expected: Outputs) -> str:
        if row.broken:
            broken = (
                f"{row.broken} of {row.elements} values are NaN or infinite in one program only"
            )
            return f"output {row.name!r} is wrong: {broken}"
        return (
            f"output {row.name!r} is wrong: its relative error is "
            f"{self._relative(row, expected):.2g}, and {self._tolerance:.2g} is allowed"
        )

    def _is_explained(self, edge: Edge, expected: Outputs, wrong: Sequence[OutputError]) -> bool:
        """Whether the original itself comes out as differently when it is computed otherwise."""
        if edge.kind == "far" and self._overflows(edge):
            return True
        if any(row.broken for row in wrong) and edge.kind != "far":
            return False
        others = (self._noisy, self._optimised, self._hidden)
        return all(any(self._moves(row, expected, edge, o) for o in others) for row in wrong)

    def _moves(
        self, row: OutputError, expected: Outputs, edge: Edge, other: Callable[[Edge], Outputs]
    ) -> bool:
        """Whether an output of the original moves about as far as that of the module."""
        try:
            outputs = other(edge)
            (found,) = compare_outputs(
                {row.name: expected[row.name]}, {row.name: outputs[row.name]}
            )
        except CompileError:  # it does not run so, and tells nothing
            return False
        moved, error = (self._relative(each, expected) for each in (found, row))
        return explains(moved, error, self._tolerance)

    def _noisy(self, edge: Edge) -> Outputs:
        """The original's outputs where the digits that rounding takes are others."""
        random = np.random.default_rng(0)
        feeds = {
            name: _noisy(array, random) if is_number(array) else array
            for name, array in edge.feeds.items()
        }
        return self._reference.run(feeds)

    def _optimised(self, edge: Edge) -> Outputs:
        return self._other.run(edge.feeds)

    def _hidden(self, edge: Edge) -> Outputs:
        """The original's outputs where scores are hidden whatever their size."""
        return self._deeper.run(edge.feeds)

    @functools.cached_property
    def _deeper(self) -> OrtSession:
        return OrtSession(hiding(exact(self._original)), optimise=False, threads=self._threads)

    @functools.cached_property
    def _other(self) -> OrtSession:
        return rounded_otherwise(self._original)

    def _overflows(self, edge: Edge) -> bool:
        """Whether numbers overflow on their way through the original, or come to nothing."""
        try:
            usual, found = (self._probe.run(feeds) for feeds in (self._sample, edge.feeds))
        except CompileError:  # what cannot be looked at proves nothing
            return True
        return any(_state(found[name]) != _state(usual[name]) for name in found)

    @functools.cached_property
    def _probe(self) -> OrtSession:
        return OrtSession(probing(exact(self._original)), optimise=False, threads=self._threads)


def _state(array: Array) -> tuple[bool, bool]:
    return bool(np.isfinite(array).all()), bool((array == 0).all())


def _largest(array: Array) -> float:
    if array.dtype.kind in "OSU" or not array.size:
        return 0.0
    size = np.abs(array if array.dtype.kind != "V" else array.astype(np.float64))
    return float(size[np.isfinite(size)].max(initial=0.0))


def _noisy(array: Array, random: np.random.Generator) -> Array:
    """An array with other last digits, where those are not all of the largest numbers."""
    kind = ml_dtypes.finfo(array.dtype)
    wide = array.astype(np.float64)
    factors = 1 + random.standard_normal(array.shape) * float(kind.eps)
    return np.where(np.abs(wide) < float(kind.max) / 2, wide * factors, wide).astype(array.dtype)


def _vanishes(row: OutputError, expected: Outputs, given: Outputs) -> bool:
    """Whether a NaN or an infinity of the original is a number, or numbers are other ones."""
    old, new = expected[row.name], given[row.name]
    if not row.broken or old.dtype.kind in "OSU":
        return True
    return bool(
        (~np.isfinite(old) & np.isfinite(new)).any()
        or (np.isinf(new) & np.isinf(old) & (old != new)).any()
    )


def _has_no_kernel(message: str, module: Module) -> bool:
    """Whether a module fails in an operator that takes no empty dims."""
    if any(f" {name} node" in message for name in _NEVER_EMPTY):
        return True
    return "Name:''" in message and any(node.op_type in _SPELLED for node in module.nodes())


def _is_plain(value: ir.Value) -> bool:
    """Whether a file of numpy can hold a value."""
    dtype = value.dtype
    is_tensor = isinstance(value.type, ir.TensorType)
    return is_tensor and dtype is not None and dtype.numpy().kind in "biufc"
