"""What a module holds and what it costs: operators, weights, zeros, operations, memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from aigcc.analysis.flops import Sizes, flops, trip_count
from aigcc.analysis.liveness import Peak, activation_peak
from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant, raw_bytes
from aigcc.synthetic import choose_dims, input_shape

_CHUNK = 16 << 20  # bytes of a weight that are looked at together

# Types of shapes, indices and masks; tensors of others count as parameters.
_BOOKKEEPING = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


@dataclasses.dataclass(frozen=True)
class Weights:
    """All constant tensors of one dtype.

    Attributes:
        dtype: ONNX name in lower case.
        tensors: How many; a tensor that several nodes share counts once.
        elements: In all of them.
        bytes: As stored.
        zeros: Elements that are exactly zero.
    """

    dtype: str
    tensors: int
    elements: int
    bytes: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of elements that are exactly zero, 0 to 1."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of one run: two for each multiply-add, estimates for the rest.

    Attributes:
        flops: All that is known.
        by_op: The same, by operator, largest first.
        unknown: Nodes that are not in `flops`, by operator: a shape or the operator is unknown.
            A loop whose trip count depends on data is here too, with its body counted once.
    """

    flops: int
    by_op: Mapping[str, int]
    unknown: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The facts that `aigcc inspect` shows.

    Attributes:
        opset: Of the default domain.
        nodes: In all graphs, sub-graphs and functions.
        ops: How often each operator occurs, most frequent first.
        parameters: Elements of all weights that are not shapes, indices or masks.
        weights: One entry a dtype, largest first.
        sizes: The sizes of symbolic dims that `work` and `peak` hold for.
        work: Operations of one run.
        peak: Memory of activations.
    """

    opset: int
    nodes: int
    ops: Mapping[str, int]
    parameters: int
    weights: tuple[Weights, ...]
    sizes: Mapping[str, int]
    work: Work
    peak: Peak


def summarize(module: Module, sizes: Mapping[str, int] | None = None) -> Summary:
    """The facts about a module. Reads every weight once, in chunks; changes nothing.

    Args:
        module: Its shapes are inferred on a copy, for the given sizes.
        sizes: Sizes of symbolic dims; the others are chosen by `choose_dims`.
    """
    sizes = {**choose_dims(module), **(sizes or {})}
    weights = tuple(count_weights(module))
    ops = Counter(op_name(node) for node in module.nodes())
    bookkeeping = {dtype.name.lower() for dtype in _BOOKKEEPING}
    sized = with_sizes(module, sizes)
    return Summary(
        opset=module.opset,
        nodes=ops.total(),
        ops=dict(ops.most_common()),
        parameters=sum(w.elements for w in weights if w.dtype not in bookkeeping),
        weights=weights,
        sizes=sizes,
        work=count_work(sized, sizes),
        peak=activation_peak(sized.graph, sizes),
    )


def op_name(node: ir.Node) -> str:
    """`Op` for the default domain, `domain::Op` for others."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def count_weights(module: Module) -> list[Weights]:
    """Tensors, elements, bytes and zeros of each dtype, most bytes first."""
    rows: dict[ir.DataType, list[int]] = {}
    for _, tensor in constants(module):
        row = rows.setdefault(tensor.dtype, [0, 0, 0, 0])
        text = tensor.dtype == ir.DataType.STRING
        facts = (1, tensor.size, 0 if text else tensor.nbytes, 0 if text else count_zeros(tensor))
        rows[tensor.dtype] = [a + b for a, b in zip(row, facts, strict=True)]
    found = [Weights(dtype.name.lower(), *row) for dtype, row in rows.items()]
    return sorted(found, key=lambda weights: (-weights.bytes, weights.dtype))


def count_zeros(tensor: ir.TensorProtocol) -> int:
    """Elements of a tensor that are exactly zero; mapped weights are read in chunks."""
    data = raw_bytes(tensor)
    zeros = 0
    for start in range(0, len(data), _CHUNK):
        chunk = np.frombuffer(data[start : start + _CHUNK], np.uint8)
        zeros += _zeros_in(chunk, tensor.dtype)
    if isinstance(tensor, MappedTensor):
        tensor.release()
    elements_per_byte = max(8 // tensor.dtype.bitwidth, 1)
    padding = len(data) * elements_per_byte - tensor.size if elements_per_byte > 1 else 0
    return zeros - padding


def count_work(module: Module, sizes: Sizes) -> Work:
    """The operations of the main graph, with sub-graphs and functions as often as they run."""
    counter = _Counter(module.model.functions, sizes)
    counter.add(module.graph, 1)
    by_op = dict(counter.flops.most_common())
    return Work(sum(by_op.values()), by_op, dict(counter.unknown.most_common()))


class _Counter:
    def __init__(
        self,
        functions: Mapping[ir.OperatorIdentifier, ir.Function],
        sizes: Sizes,
        bodies: dict[ir.OperatorIdentifier, _Counter] | None = None,
    ) -> None:
        self.functions = functions
        self.bodies = {} if bodies is None else bodies
        self.sizes = sizes
        self.flops: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def add(self, nodes: Iterable[ir.Node], times: int) -> None:
        for node in nodes:
            if node.op_identifier() in self.functions:
                self._add_call(node.op_identifier(), times)
            elif node.op_type == "If":
                self._add_larger_branch(node, times)
            elif node.op_type in ("Loop", "Scan"):
                self._add_body(node, times)
            else:
                self._add_node(node, times)

    def _add_call(self, function: ir.OperatorIdentifier, times: int) -> None:
        """Add a function's body, which is counted once however often it is called."""
        if function not in self.bodies:
            body = _Counter(self.functions, self.sizes, self.bodies)
            body.add(self.functions[function], 1)
            self.bodies[function] = body
        for name, count in self.bodies[function].flops.items():
            self.flops[name] += count * times
        self.unknown += self.bodies[function].unknown

    def _add_node(self, node: ir.Node, times: int) -> None:
        count = flops(node, self.sizes)
        if count is None:
            self.unknown[op_name(node)] += 1
        elif count:
            self.flops[op_name(node)] += count * times

    def _add_body(self, node: ir.Node, times: int) -> None:
        trips = trip_count(node, self.sizes)
        if trips is None:
            self.unknown[op_name(node)] += 1
        body = node.attributes["body"].as_graph()
        self.add(body, times * (1 if trips is None else trips))

    def _add_larger_branch(self, node: ir.Node, times: int) -> None:
        branches = []
        for name in ("then_branch", "else_branch"):
            branches.append(_Counter(self.functions, self.sizes, self.bodies))
            branches[-1].add(node.attributes[name].as_graph(), times)
        larger = max(branches, key=lambda branch: branch.flops.total())
        self.flops += larger.flops
        self.unknown += larger.unknown


def with_sizes(module: Module, sizes: Sizes) -> Module:
    """A copy whose inputs have static shapes, and whose other shapes follow from them.

    Where that contradicts the module, the shapes are those that it declares.
    """
    sized = module.clone()
    for value in sized.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(input_shape(value, sizes))
    try:
        infer_shapes(sized.model)
    except ModelError:
        return module
    return sized


def constants(module: Module) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every constant tensor once, with a value that has it; none is read."""
    seen: dict[int, ir.TensorProtocol] = {}  # holds them, so that no two get the same id
    for graph in module.graphs():
        stored = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
        made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
        for value in (*stored, *made):
            tensor = value.const_value if value.is_initializer() else constant(value)
            if tensor is not None and id(tensor) not in seen:
                seen[id(tensor)] = tensor
                yield value, tensor


def _zeros_in(chunk: np.ndarray, dtype: ir.DataType) -> int:
    width = dtype.bitwidth
    if width >= 8:
        return int((chunk.view(dtype.numpy()) == 0).sum())
    mask = (1 << width) - 1
    return sum(int(((chunk >> shift) & mask == 0).sum()) for shift in range(0, 8, width))
