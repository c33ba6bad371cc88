"""How much memory activations need at the same time, from when each value is last used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import onnx_ir as ir

from aigcc.analysis.flops import Sizes, dims_of

# Operators whose output is the input's memory under another shape.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most memory that activations take at one time, weights not counted.

    Attributes:
        bytes: Inputs, outputs and everything between that is alive at once.
        node: While this node runs.
        unknown: Values that are not in `bytes`, since their shape is unknown.
    """

    bytes: int
    node: str
    unknown: int


def activation_peak(graph: ir.Graph, sizes: Sizes) -> Peak:
    """The peak when nodes run in graph order and a value is freed after its last use.

    Reshapes share memory with their input, nothing else does; a sub-graph's own peak is added
    while its node runs.

    Args:
        graph: The graph, with shapes.
        sizes: Sizes of symbolic dims.
    """
    return _Walk(graph, sizes).peak()


class _Walk:
    def __init__(self, graph: ir.Graph, sizes: Sizes) -> None:
        self.graph = graph
        self.sizes = sizes
        self.unknown = 0
        self.storage: dict[ir.Value, ir.Value] = {}
        self.last_use: dict[ir.Value, int] = {}
        for index, node in enumerate(graph):
            for value in node.outputs:
                self.storage[value] = self._storage_of(node, value)
                self.last_use[self.storage[value]] = index
            for value in used_values(node):
                self.last_use[self.storage.get(value, value)] = index
        for value in graph.outputs:
            self.last_use[self.storage.get(value, value)] = len(graph)

    def _storage_of(self, node: ir.Node, value: ir.Value) -> ir.Value:
        source = node.inputs[0] if node.op_type in _VIEWS and node.inputs else None
        if source is None or node.domain not in ("", "ai.onnx"):
            return value
        return self.storage.get(source, source)

    def peak(self) -> Peak:
        """Walk the nodes once, allocating and freeing."""
        alive: dict[ir.Value, int] = {}
        inputs = [value for value in self.graph.inputs if not value.is_initializer()]
        now = most = sum(self._bytes(value) for value in inputs)  # the caller's, so never freed
        at = ""
        ends: dict[int, list[ir.Value]] = {}
        for value, index in self.last_use.items():
            ends.setdefault(index, []).append(value)
        for index, node in enumerate(self.graph):
            for value in node.outputs:
                if self.storage[value] is value and node.op_type != "Constant":
                    alive[value] = self._bytes(value)
                    now += alive[value]
            inner = max((self._inner(graph) for graph in _subgraphs(node)), default=0)
            if now + inner > most:
                most, at = now + inner, node.name or node.op_type
            for value in ends.get(index, ()):
                now -= alive.pop(value, 0)
        return Peak(most, at, self.unknown)

    def _inner(self, graph: ir.Graph) -> int:
        inner = activation_peak(graph, self.sizes)
        self.unknown += inner.unknown
        return inner.bytes

    def _bytes(self, value: ir.Value) -> int:
        dims = dims_of(value, self.sizes)
        if dims is None or value.dtype is None or value.dtype == ir.DataType.STRING:
            self.unknown += 1
            return 0
        return math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def used_values(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, inside of its sub-graphs too."""
    yield from (value for value in node.inputs if value is not None)
    for graph in _subgraphs(node):
        for inner in graph:
            yield from used_values(inner)
        yield from graph.outputs
