"""Computing in float16: weights and values narrowed, with few casts where float32 has to stay."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import constant, derive, is_small
from aigcc.options import option
from aigcc.passes.fp16_fit import Fit, find_misfits
from aigcc.passes.fp16_plan import (
    FLOAT,
    HALF,
    HEAVY,
    TYPED_BY_ATTRIBUTE,
    Plan,
    is_float,
    make_plan,
)
from aigcc.passes.fp16_sensitive import Sensitive
from aigcc.passes.hiding import hides, narrow
from aigcc.passes.masks import FINITE
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder

_SUFFIX = {FLOAT: "fp32", HALF: "fp16"}


def _typed(module: Module) -> None:
    for node in module.graph:
        for value in node.outputs:
            if value.name and value.type is None:
                raise ModelError(
                    f"the type of {value.name!r} is not known",
                    at=f"node {node.name!r} ({node.op_type})",
                    hint="run infer-shapes first",
                )


@dataclasses.dataclass(frozen=True)
class ToFp16(Pass):
    """Let float32 nodes of the main graph compute in float16.

    ```
    y = MatMul (x, w)      →      h = Cast <to = 10> (x); g = MatMul (h, w16); y = Cast <to = 1> (g)
    ```
    Convolutions and matrix products become float16. What leaves the range or the precision of
    float16 stays float32: `Range`, powers, exponentials, logarithms, square roots, sums, cumulative
    sums, trigonometric functions, casts to whole numbers, products of positions with frequencies,
    sub-graphs, calls of functions, inputs that ONNX wants in float32 (the scales of `Resize`),
    nodes with a constant that float16 cannot hold, nodes whose activations come near its largest
    number on the samples or are too small for its digits, norms whose squares overflow or whose
    mean takes the digits of the deviation, and the products without which the outputs are further
    off on the samples than the target allows. All other operators go along with their neighbours,
    so that few casts remain. Numbers from 1e9 on that hide scores from a softmax, and the largest
    float32 anywhere, become large ones of float16. Weights are narrowed when they are saved, and
    stay mapped until then.
    """

    name: ClassVar[str] = "to-fp16"
    requires = (_typed,)
    after: ClassVar[tuple[str, ...]] = ("fuse", "legalize")
    exact: ClassVar[bool] = False
    keep_io: bool = option(True, "inputs and outputs of the graph stay float32")
    measure: int = option(2, "samples to see what float16 cannot hold; 0 trusts that it holds all")

    def run(self, module: Module, ctx: Context) -> None:
        """Plan for the whole graph, then convert node by node."""
        border = FLOAT if self.keep_io else HALF
        fit = find_misfits(module, ctx, self.measure)
        if self.measure:
            fit.nodes.update(_find_sensitive(module, fit, ctx))
        plan = make_plan(module, border, fit.values, fit.nodes)
        for node, reason in plan.pinned.items():
            if reason:
                ctx.decline(node, f"kept float32: {reason}")
        for node in module.graph:
            if node in plan.half and not ctx.rewrite(node, f"{node.op_type} in float16"):
                plan.half.discard(node)
        if border == HALF and not ctx.rewrite(None, "inputs and outputs in float16"):
            plan.border = FLOAT
        _Conversion(module, plan, Names(module), fit.hidden).run()


def _find_sensitive(module: Module, fit: Fit, ctx: Context) -> dict[ir.Node, str]:
    """The products whose float16 puts the outputs further off than the target allows."""
    nodes = list(module.graph)
    plan = make_plan(module, FLOAT, fit.values, fit.nodes)
    heavy = [at for at, node in enumerate(nodes) if node in plan.half and node.op_type in HEAVY]

    def make(wanted: Sequence[int]) -> Module:
        made = module.clone()
        copies = list(made.graph)
        kept = set(heavy).difference(wanted) | {nodes.index(node) for node in fit.nodes}
        names = {value.name: value for value in _values(made.graph)}
        reads = {names[v.name]: why for v, why in fit.values.items() if v.name in names}
        hidden = {names[v.name] for v in fit.hidden}
        trial = make_plan(made, FLOAT, reads, {copies[at]: "kept" for at in kept})
        _Conversion(made, trial, Names(made), hidden).run()
        return made

    search = Sensitive(module, make, ctx)
    kept = search.find(heavy)
    reason = (
        f"in float16 the outputs would be {search.error:.2g} off on the samples, "
        f"where {search.allowed:.2g} is allowed"
    )
    return {nodes[at]: reason for at in kept}


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


@dataclasses.dataclass
class _Conversion:
    """Carries out a plan: retypes values, narrows constants, inserts one cast a value."""

    module: Module
    plan: Plan
    names: Names
    hidden: set[ir.Value]
    casts: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    narrowed: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        graph = self.module.graph
        computed = [v for v in graph.inputs if is_float(v)]
        computed += [v for node in graph for v in node.outputs if is_float(v)]
        constants = {
            v: None
            for node in self.plan.places
            for v in node.inputs
            if is_float(v) and constant(v) is not None
        }
        types = {value: self.plan.makes(value) for value in computed}
        for value in constants:
            self._narrow_constant(value)
        for value in computed:
            if constant(value) is None:
                self._join(value, types[value])
        for node in self.plan.half:
            self._retype_attribute(node)

    def _narrow_constant(self, value: ir.Value | None) -> None:
        """Give the readers in float16 a narrowed copy, under the same name where all are."""
        assert value is not None and value.name is not None
        tensor, graph = constant(value), self.module.graph
        assert tensor is not None
        users = [(n, i) for n, i in value.uses() if self.plan.wants(n, i) == HALF]
        if not users:
            return
        only = len(users) == len(value.uses()) and not value.is_graph_output()
        initializer = value.is_initializer()
        name = value.name if only and initializer else self.names.fresh(f"{value.name}_fp16")
        if only and initializer:
            del graph.initializers[value.name]
        shape, is_mask = tuple(tensor.shape.numpy()), hides(value)
        if is_small(tensor):
            new_tensor: ir.TensorProtocol = ir.tensor(narrow(tensor.numpy(), is_mask), name=name)
        else:
            new_tensor = derive(
                functools.partial(narrow, is_mask=is_mask),
                tensor,
                dtype=HALF,
                shape=shape,
                name=name,
            )
        new = ir.Value(
            name=name,
            type=ir.TensorType(HALF),
            shape=ir.Shape(shape),
            const_value=new_tensor,
            metadata_props=dict(value.metadata_props),
        )
        for node, index in users:
            node.replace_input_with(index, new)
        graph.register_initializer(new)

    def _join(self, value: ir.Value, made: ir.DataType) -> None:
        """Retype a computed value, and put a cast between it and those who want the other type."""
        graph, output = self.module.graph, value.is_graph_output()
        others = [(n, i) for n, i in value.uses() if self.plan.wants(n, i) != made]
        value.type = ir.TensorType(made)
        shown_otherwise = output and self.plan.border != made
        if not others and not shown_otherwise:
            return
        wanted = FLOAT if made == HALF else HALF
        cast = self._cast(value, wanted)
        for node, index in others:
            node.replace_input_with(index, cast)
        if shown_otherwise:
            name = value.name
            value.name = self.names.fresh(f"{name}_{_SUFFIX[made]}")
            cast.name = name
            for index, shown in enumerate(graph.outputs):
                if shown is value:
                    graph.outputs[index] = cast

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        stem = f"{value.name}_{_SUFFIX[to]}"
        node = ir.Node(
            "",
            "Cast",
            [value],
            [ir.AttrInt64("to", int(to))],
            num_outputs=1,
            name=self.names.fresh(f"{value.name}/Cast"),
            metadata_props={"aigcc.made_by": ToFp16.name},
        )
        cast = node.outputs[0]
        cast.name = self.names.fresh(stem)
        cast.type, cast.shape = ir.TensorType(to), value.shape
        clamp = self._clamped(node) if to == HALF and value in self.hidden else []
        graph, producer = self.module.graph, value.producer()
        if producer is not None:
            graph.insert_after(producer, [*clamp, node])
        elif len(graph):
            graph.insert_before(graph[0], [*clamp, node])
        else:
            graph.extend([*clamp, node])
        return cast

    def _clamped(self, cast: ir.Node) -> list[ir.Node]:
        """Nodes that keep the finite numbers of a mask finite, and -inf what it is."""
        value = cast.inputs[0]
        stem, maker = str(value.name if value else cast.name), ToFp16.name
        op = Builder(self.module.graph, self.names, stem, maker, self.module.opset)
        near = op.Max(value, np.array(FINITE[HALF], np.float32))
        is_hidden = op.Equal(value, np.array(-math.inf, np.float32))
        cast.replace_input_with(0, op.Where(is_hidden, value, near))
        for node in op.made:
            node.metadata_props["aigcc.made_by"] = maker
        return op.made

    def _retype_attribute(self, node: ir.Node) -> None:
        name = TYPED_BY_ATTRIBUTE.get(node.op_type)
        if name is None or not self.plan.places[node].outputs:
            return
        if name != "value":
            node.attributes[name] = ir.AttrInt64(name, int(HALF))
            return
        old = node.attributes.get("value")
        filling = np.zeros(1, np.float32) if old is None else old.as_tensor().numpy()
        filled = narrow(filling, hides(node.outputs[0]))
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
