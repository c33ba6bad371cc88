"""Random models for property tests: small graphs of the nodes that exporters really write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from aigcc.ir.module import Module

OPSET = 20
Draw = Callable[[st.SearchStrategy], object]


class Grower:
    """A graph under construction, with the float values made so far and their shapes."""

    def __init__(self, draw: Draw, graph: ir.Graph, prefix: str = "") -> None:
        self.draw = draw
        self.graph = graph
        self.prefix = prefix
        self.values: list[tuple[ir.Value, tuple[int, ...]]] = []
        self.count = 0

    def node(self, op: str, inputs: list, **attributes: object) -> ir.Value:
        self.count += 1
        name = f"{self.prefix}{op.lower()}{self.count}"
        made = ir.node(op, inputs, attributes, name=f"n_{name}")
        made.outputs[0].name = name
        self.graph.append(made)
        return made.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant as an initializer or as a Constant node."""
        if self.draw(st.booleans()):
            return self.node("Constant", [], value=ir.tensor(array))
        self.count += 1
        value = ir.Value(name=f"{self.prefix}c{self.count}", const_value=ir.tensor(array))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def floats(self, *shape: int) -> ir.Value:
        seed = self.draw(st.integers(0, 3))
        array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return self.constant(self.draw(st.sampled_from([array, np.ones_like(array), array * 0])))

    def keep(self, value: ir.Value, shape: tuple[int, ...]) -> None:
        self.values.append((value, shape))

    def grow(self) -> None:
        """Add one random step."""
        value, shape = self.draw(st.sampled_from(self.values))
        step = self.draw(st.sampled_from(STEPS))
        step(self, value, shape)


def unary(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    g.keep(
        g.node(g.draw(st.sampled_from(["Relu", "Sigmoid", "Neg", "Identity", "Erf"])), [x]), shape
    )


def binary(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    op = g.draw(st.sampled_from(["Add", "Sub", "Mul"]))
    same = [v for v, s in g.values if s == shape]
    other = g.draw(st.sampled_from(same)) if g.draw(st.booleans()) else g.floats(*shape[-1:])
    g.keep(g.node(op, [x, other] if g.draw(st.booleans()) else [other, x]), shape)


def neutral(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    op, number = g.draw(
        st.sampled_from([("Add", 0), ("Mul", 1), ("Div", 1), ("Sub", 0), ("Pow", 1)])
    )
    rank = g.draw(st.integers(0, len(shape) + 1))
    wider = (1,) * (rank - len(shape)) + shape
    g.keep(g.node(op, [x, g.constant(np.full((1,) * rank, number, np.float32))]), wider)


def transpose(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    perm = g.draw(st.permutations(range(len(shape))))
    g.keep(g.node("Transpose", [x], perm=list(perm)), tuple(shape[axis] for axis in perm))


def reshape(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    total = int(np.prod(shape))
    goals = [(total,), (1, total), (*shape, 1), shape, (shape[0], total // shape[0])]
    goal = g.draw(st.sampled_from(goals))
    written = list(goal)
    if g.draw(st.booleans()):
        written[g.draw(st.integers(0, len(goal) - 1))] = -1
    g.keep(g.node("Reshape", [x, g.constant(np.array(written, np.int64))]), goal)


def reshape_back(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    """A shape computed at run time, as older exporters write it."""
    flat = g.node("Reshape", [x, g.constant(np.array([-1], np.int64))])
    g.keep(g.node("Reshape", [flat, g.node("Shape", [x])]), shape)


def unsqueeze(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    axis = g.draw(st.integers(0, len(shape)))
    axes = g.constant(np.array([axis], np.int64))
    made = g.node("Unsqueeze", [x, axes])
    if g.draw(st.booleans()):
        g.keep(g.node("Squeeze", [made, axes]), shape)
    else:
        g.keep(made, (*shape[:axis], 1, *shape[axis:]))


def cast(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    through = g.draw(st.sampled_from([ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16]))
    g.keep(g.node("Cast", [g.node("Cast", [x], to=int(through))], to=int(ir.DataType.FLOAT)), shape)


def cut(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    axis = g.draw(st.integers(0, len(shape) - 1))
    start = g.draw(st.integers(0, shape[axis] - 1))
    end = g.draw(st.sampled_from([shape[axis], 2**63 - 1]))
    bounds = [g.constant(np.array([n], np.int64)) for n in (start, end, axis)]
    shape = (*shape[:axis], shape[axis] - start, *shape[axis + 1 :])
    g.keep(g.node("Slice", [x, *bounds]), shape)


def join(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    parts = [x] * g.draw(st.integers(1, 2))
    g.keep(g.node("Concat", parts, axis=0), (shape[0] * len(parts), *shape[1:]))


def select(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    condition = g.constant(np.array(g.draw(st.lists(st.booleans(), min_size=1, max_size=1))))
    g.keep(g.node("Where", [condition, x, g.node("Neg", [x])]), shape)


def expand(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    bias = g.node("Expand", [g.floats(1), g.node("Shape", [x])])
    g.keep(g.node("Add", [x, bias]), shape)


def matmul(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    weight = g.node("Transpose", [g.floats(3, shape[-1])], perm=[1, 0])
    g.keep(g.node("MatMul", [x, weight]), (*shape[:-1], 3))


def twice(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    g.keep(g.node("Add", [g.node("Exp", [x]), g.node("Exp", [x])]), shape)


def branch(g: Grower, x: ir.Value, shape: tuple[int, ...]) -> None:
    """An If whose branches capture `x`; its condition is known only at run time."""
    producer = x.producer()
    if producer is not None and producer.op_type == "Cast":
        return  # ONNX Runtime 1.31 loses a Cast that only a sub-graph reads
    condition = g.node("Greater", [g.node("ReduceSum", [x], keepdims=0), g.floats()])
    branches = []
    for side in ("then", "else"):
        inner = ir.Graph([], [], nodes=[], name=side)
        grower = Grower(g.draw, inner, f"{g.prefix}{side}{g.count}_")
        grower.keep(x, shape)
        unary(grower, x, shape)
        binary(grower, *grower.values[-1])
        inner.outputs.append(grower.values[-1][0])
        branches.append(inner)
    made = g.node("If", [condition], then_branch=branches[0], else_branch=branches[1])
    g.keep(made, shape)


STEPS = [
    unary, binary, neutral, transpose, reshape, reshape_back, unsqueeze,
    cast, cut, join, select, expand, matmul, twice, branch,
]  # fmt: skip


@st.composite
def modules(draw: Draw, steps: int = 12) -> Module:
    """A module with one float32 input `x` of a random shape, and one or two outputs."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name="random")
    grower = Grower(draw, graph)
    grower.keep(x, shape)
    for _ in range(draw(st.integers(1, steps))):
        grower.grow()
    made = grower.values[1:]
    for value in {id(v): v for v, _ in [made[-1], draw(st.sampled_from(made))]}.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    return Module(ir.Model(graph, ir_version=10))


def feeds(module: Module) -> dict[str, np.ndarray]:
    """The one input, random but the same every time."""
    (x,) = module.inputs
    shape = x.shape.numpy()
    return {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}
