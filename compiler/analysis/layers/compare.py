"""Which nodes of a rewritten module make its error, and how much of it has arrived where."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.layers.match import Segment, describe, match, nodes_of, segments_of, typed
from aigcc.analysis.layers.spill import Spill
from aigcc.analysis.layers.splice import splice
from aigcc.analysis.metrics import Agreement
from aigcc.analysis.streaming.plan import value_bytes
from aigcc.analysis.streaming.stream import LIMIT, Stream
from aigcc.dims import sample_sizes
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.noise import equal_noises
from aigcc.synthetic import choose_dims

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[str, float], None]

SPILL = 4 << 30
"""Bytes of the original's values that may lie in a temporary file at a time."""

_UNKNOWN = 16 << 20  # bytes that a value of unknown shape is taken to have


@dataclasses.dataclass(frozen=True)
class Layer:
    """A value that both modules make, and the node of the rewritten one that it comes from.

    Attributes:
        value: Its name.
        order: Its place among all matched values, in the order in which the rewritten module runs.
        node: The node.
        op: Its operator.
        precision: The dtypes that it computes in, and its scheme where it keeps one.
        own: SQNR in dB of what the nodes since the matched values before it make of the
            original's own numbers; infinite where they are exact.
        arriving: SQNR in dB in the whole rewritten module.
        own_broken: Elements that are NaN or infinite in one of both only, from exact inputs.
        arriving_broken: The same in the whole module.
        nodes: How many nodes lie between the matched values before it and itself.
        module: The torch module that it came from, if the exporter said.
        source: The line of the torch source.
    """

    value: str
    order: int
    node: str
    op: str
    precision: str
    own: float
    arriving: float
    own_broken: int
    arriving_broken: int
    nodes: int
    module: str | None
    source: str | None


@dataclasses.dataclass(frozen=True)
class Layers:
    """The matched values of two modules, in the order in which the rewritten one runs.

    Attributes:
        rows: One a value.
        nodes: Nodes of the rewritten module's main graph, constants left out.
        matched: How many of them make a matched value.
        unlike: Values with the same name that are of other types or shapes.
    """

    rows: Sequence[Layer]
    nodes: int
    matched: int
    unlike: Sequence[str]

    @property
    def first_broken(self) -> Layer | None:
        """Where NaN or infinity appears first that the original does not have."""
        return next((row for row in self.rows if row.arriving_broken or row.own_broken), None)


def compare_layers(
    original: Module,
    other: Module,
    samples: Iterable[Feeds],
    *,
    limit: int = LIMIT,
    spill: int = SPILL,
    progress: Progress = lambda text, fraction: None,
) -> Layers:
    """Compare what two modules compute on the way, value by value.

    Values of the main graphs are matched by name. The original's are written to a temporary file,
    as many as `spill` allows at a time; for the next ones the modules run again.

    Args:
        original: What is right; not changed.
        other: What a pipeline made of it, with the same inputs; not changed.
        samples: Inputs of both; walked once for every `spill` bytes.
        limit: Bytes of memory that the values of a segment may take, as for `Stream`.
        spill: Bytes of the temporary file.
        progress: Told what is being done.

    Raises:
        CompileError: nothing matches, a module does not run, or the file cannot be written.
    """
    original, other = equal_noises(typed(original), typed(other))
    matched = match(original, other)
    if not matched.names:
        raise CompileError(
            "no node makes a value with the name and the type of one in the original",
            at=str(other.path or "module"),
            hint="compare a model with what aigcc opt or aigcc build made of it: passes keep names",
        )
    first = next(iter(samples))
    sizes = value_bytes(original, {**choose_dims(original), **sample_sizes(original, first)})
    run = _Run(original, other, matched.names, limit)
    windows = _windows(segments_of(other, matched.names), sizes, spill)
    for index, window in enumerate(windows):
        progress("running both models, layer by layer", index / len(windows))
        run.window(window, samples)
    return _summary(original, other, run, matched.unlike)


def _windows(
    segments: Mapping[str, Segment], sizes: Mapping[str, int], spill: int
) -> list[list[str]]:
    """Names in their order, cut where they and what their segments read exceed `spill` bytes."""
    windows: list[list[str]] = []
    held: set[str] = set()
    total = 0
    for name, segment in segments.items():
        new = {name, *segment.reads} - held
        size = sum(sizes.get(read, _UNKNOWN) for read in new)
        if not windows or total + size > spill:
            windows.append([])
            new = {name, *segment.reads}
            held, total = set(), 0
            size = sum(sizes.get(read, _UNKNOWN) for read in new)
        windows[-1].append(name)
        held |= new
        total += size
    return windows


class _Run:
    """The sums over samples, window after window."""

    def __init__(self, original: Module, other: Module, names: Collection[str], limit: int) -> None:
        self.original = original
        self.other = other
        self.names = dict.fromkeys(names)
        self.limit = limit
        self.own = {name: Agreement() for name in names}
        self.arriving = {name: Agreement() for name in names}
        self.unlike: dict[str, None] = {}
        self._dtypes: dict[str, ir.DataType] = {}

    def window(self, window: Sequence[str], samples: Iterable[Feeds]) -> None:
        """Take in some values, on all samples."""
        segments = segments_of(self.other, self.names)
        window = [name for name in window if name in self.names]
        reads = {read for name in window for read in segments[name].reads}
        with contextlib.ExitStack() as stack:
            exact = stack.enter_context(
                Stream(self.original, [*{*window, *reads}], limit=self.limit)
            )
            whole = stack.enter_context(Stream(self.other, window, limit=self.limit))
            alone: _Alone | None = None
            for feeds in samples:
                with Spill() as spill:
                    exact.run(feeds, spill.put)
                    whole.run(feeds, functools.partial(self._add, spill))
                    if alone is None:
                        alone = stack.enter_context(self._alone(window, spill))
                    alone.run(feeds, spill, self.own)

    def _add(self, spill: Spill, name: str, array: Array) -> None:
        """Take in a value of the whole module."""
        expected = spill.get(name)
        self._dtypes[name] = ir.DataType.from_numpy(array.dtype)
        if expected.shape != array.shape:
            self.unlike[name] = None
            self.names.pop(name, None)
        elif name in self.names:
            self.arriving[name].add(expected, array)

    def _alone(self, window: Sequence[str], spill: Spill) -> _Alone:
        given = {name: spill.get(name) for name in spill.names if name in self.names}
        wanted = [name for name in window if name in self.names]
        return _Alone(self.other, given, self._dtypes, wanted, self.limit)


class _Alone:
    """Every segment of a module on exact inputs, all in one stream."""

    def __init__(
        self,
        other: Module,
        given: Mapping[str, Array],
        dtypes: Mapping[str, ir.DataType],
        wanted: Sequence[str],
        limit: int,
    ) -> None:
        made, self._fed = splice(other, given, dtypes, wanted)
        self._inputs = {value.name or "" for value in made.graph.inputs}
        self._stream = Stream(made, wanted, limit=limit)

    def __enter__(self) -> _Alone:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def run(self, feeds: Feeds, spill: Spill, sums: Mapping[str, Agreement]) -> None:
        """Take in one sample."""
        exact = {given: spill.get(name) for given, name in self._fed.items()}
        plain = {name: array for name, array in feeds.items() if name in self._inputs}
        self._stream.run(
            {**plain, **exact}, lambda name, array: sums[name].add(spill.get(name), array)
        )


def _summary(original: Module, other: Module, run: _Run, unlike: Collection[str]) -> Layers:
    origins = {value.name: node for node in original.graph for value in node.outputs}
    rows = []
    made_by = set()
    for order, (name, segment) in enumerate(segments_of(other, run.names).items()):
        facts = describe(segment, origins[name])
        own, arriving = run.own[name], run.arriving[name]
        made_by.add(segment.nodes[-1])
        rows.append(
            Layer(
                value=name,
                order=order,
                **facts,
                own=own.sqnr,
                arriving=arriving.sqnr,
                own_broken=own.broken,
                arriving_broken=arriving.broken,
                nodes=len(segment.nodes),
            )
        )
    return Layers(rows, len(nodes_of(other)), len(made_by), [*unlike, *run.unlike])
