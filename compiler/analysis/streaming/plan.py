"""Where to cut a graph so that what is wanted of a piece, and what leaves it, fits in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from aigcc.analysis.cost import with_sizes
from aigcc.analysis.flops import dims_of
from aigcc.analysis.liveness import used_values
from aigcc.ir.module import Module
from aigcc.ir.weights import constant

_UNKNOWN = 16
"""A piece holds at most so many values of unknown size."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of nodes that one ONNX Runtime session executes.

    Attributes:
        nodes: In graph order; an If, a Loop or a Scan is one of them, with all it holds.
        inputs: Names of what is computed or fed before.
        constants: Names of the weights that the nodes read.
        outputs: Names of what is wanted or needed later, in graph order.
        dead: Names of what nothing needs after this segment and its consumers.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...]


def constants_of(module: Module) -> dict[str, ir.TensorProtocol]:
    """The tensors of the main graph that no feed can change: initializers and Constant nodes."""
    made = [node.outputs[0] for node in module.graph if node.op_type == "Constant"]
    found = {}
    for value in (*module.graph.initializers.values(), *made):
        tensor = constant(value)
        if tensor is not None and value.name:
            found[value.name] = tensor
    return found


def value_bytes(module: Module, sizes: Mapping[str, int]) -> dict[str, int]:
    """The bytes of the main graph's values whose shapes are known, for sizes of symbolic dims."""
    found = {}
    for node in with_sizes(module, sizes).graph:
        for value in node.outputs:
            dims = dims_of(value, sizes)
            if not value.name or dims is None or value.dtype in (None, ir.DataType.STRING):
                continue
            found[value.name] = math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)
    return found


def cut(
    module: Module,
    constants: Collection[str],
    wanted: Collection[str],
    sizes: Mapping[str, int],
    limit: int,
) -> list[Segment]:
    """The segments that compute the graph's outputs and what is wanted.

    Each is as long as it can be while its wanted values and those that leave it take no more than
    `limit` bytes together; a node that exceeds it alone is a segment of its own.

    Args:
        module: The graph; its nodes must be sorted.
        constants: Names of values that are not computed.
        wanted: Names of values to hand out.
        sizes: Bytes of values, by name.
        limit: Bytes.
    """
    return _Cut(module, constants, wanted, sizes, limit).segments()


class _Cut:
    def __init__(
        self,
        module: Module,
        constants: Collection[str],
        wanted: Collection[str],
        sizes: Mapping[str, int],
        limit: int,
    ) -> None:
        self.constants = constants
        self.kept = {value.name or "" for value in module.outputs}
        self.wanted = set(wanted)
        self.sizes = sizes
        self.limit = limit
        self.nodes = list(_needed(module.graph, constants, self.kept | self.wanted))
        self.last_use: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in _reads(node):
                self.last_use[name] = index
        self.last_use.update(dict.fromkeys(self.kept, len(self.nodes)))

    def segments(self) -> list[Segment]:
        found = []
        start = 0
        while start < len(self.nodes):
            end = self._end(start)
            found.append(self._segment(start, end))
            start = end
        return found

    def _end(self, start: int) -> int:
        """Where the longest segment from `start` ends that fits the limit."""
        best, held, leaving = start + 1, 0, 0
        ends: dict[int, int] = {}
        for index in range(start, len(self.nodes)):
            leaving -= ends.pop(index, 0)
            for name in _writes(self.nodes[index]):
                size = self.sizes.get(name, self.limit // _UNKNOWN)
                last = self.last_use.get(name, index)
                if name in self.wanted:
                    held += size
                elif last > index:
                    leaving += size
                    ends[last] = ends.get(last, 0) + size
            if held > self.limit:
                break
            if held + leaving <= self.limit:
                best = index + 1
        return best

    def _segment(self, start: int, end: int) -> Segment:
        nodes = self.nodes[start:end]
        made = [name for node in nodes for name in _writes(node)]
        own = set(made)
        read = list(dict.fromkeys(name for node in nodes for name in _reads(node)))
        inputs = [name for name in read if name not in own and name not in self.constants]
        outputs = [n for n in made if n in self.wanted or self.last_use.get(n, start) >= end]
        return Segment(
            tuple(nodes),
            tuple(inputs),
            tuple(name for name in read if name in self.constants),
            tuple(outputs),
            tuple(n for n in (*inputs, *outputs) if self.last_use.get(n, start) < end),
        )


def _needed(
    graph: ir.Graph, constants: Collection[str], wanted: Collection[str]
) -> Sequence[ir.Node]:
    """The nodes that something wanted depends on, in graph order."""
    needed = set(wanted)
    found = []
    for node in reversed(list(graph)):
        names = set(_writes(node))
        if not names.isdisjoint(needed) and names.isdisjoint(constants):
            needed.update(_reads(node))
            found.append(node)
    return found[::-1]


def _reads(node: ir.Node) -> Iterator[str]:
    """Names of the main graph's values that a node reads, inside of its sub-graphs too."""
    return (v.name for v in used_values(node) if v.name and v.graph is node.graph)


def _writes(node: ir.Node) -> Iterator[str]:
    return (value.name for value in node.outputs if value.name)
