"""Loops that run a few times, as often as is known, become as many copies of their bodies."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from aigcc.ir.edit import remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.operators import is_random
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.options import option
from aigcc.passes.rounds import LOOPS, Rounds
from aigcc.passes.splice import Splicer
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder, replace_value


@dataclasses.dataclass(frozen=True)
class UnrollLoops(Pass):
    """Replace a Loop or a Scan that runs as often as is known by its rounds.

    ```
    y = Loop (2, true, x) <body = (i, c, a) => (c, b) { b = Neg (a) }>
        →      b = Neg (x); y = Neg (b)
    ```
    """

    name: ClassVar[str] = "unroll-loops"
    rounds: int = option(8, "unroll no more rounds than this; 0 and 1 always are")
    nodes: int = option(256, "make no more nodes of a loop than this")

    def run(self, module: Module, ctx: Context) -> None:
        """Unroll in every graph; inner loops first, so that outer ones are seen as they become."""
        splicer, before = Splicer(module), ctx.total
        for root, opset in module.roots():
            graphs: list[GraphLike] = [root, *root.subgraphs()]
            for graph in reversed(graphs):
                for node in list(graph):
                    if node.domain not in ("", "ai.onnx") or node.op_type not in LOOPS:
                        continue
                    op = Builder(graph, splicer.names, node.name or node.op_type, ctx.maker, opset)
                    try:
                        self._unroll(module, node, op, splicer, ctx)
                    except NoMatch as reason:
                        op.discard()
                        ctx.decline(node, f"not unrolled: {reason}")
        if ctx.total > before:
            infer_shapes(module.model)

    def _unroll(
        self, module: Module, node: ir.Node, op: Builder, splicer: Splicer, ctx: Context
    ) -> None:
        """Unroll one loop, as far as the run's limit allows it.

        Raises:
            NoMatch: it stays; says why.
        """
        rounds = LOOPS[node.op_type](node, op)
        inside = list(rounds.body.all_nodes())
        if rounds.count > 1:
            if rounds.count > self.rounds or rounds.count * len(inside) > self.nodes:
                raise NoMatch(f"it has {rounds.count} rounds of {len(inside)} nodes")
            if any(is_random(inner, module.model.functions) for inner in inside):
                raise NoMatch("it draws random numbers, which copies of a node might draw alike")
        if not ctx.rewrite(node, f"{node.op_type} of {rounds.count} rounds"):
            op.discard()
            return
        results = _copied(rounds, splicer)
        for old, new in zip(node.outputs, results, strict=True):
            is_new = new.producer() in rounds.made and not new.is_graph_output()
            replace_value(op.graph, old, new, splicer.names, fresh=is_new)
            if is_new:
                rounds.made.discard(new.producer())
        remove_node(node)


def _copied(rounds: Rounds, splicer: Splicer) -> list[ir.Value]:
    """Put all rounds before the loop's node; returns what its outputs are."""
    body, node, op = rounds.body, rounds.node, rounds.op
    outputs = list(body.outputs)
    splicer.hoist(body, op.graph, node, outputs)
    body.outputs.clear()
    body.outputs.extend(outputs)
    state, length = list(rounds.state), len(rounds.state)
    given: list[list[ir.Value]] = [[] for _ in node.outputs[length:]]
    for number in range(rounds.count):
        inputs = rounds.inputs(number, state)
        rounds.insert()
        made = splicer.copy(body, inputs, op.graph, node)[rounds.skipped :]
        rounds.made.update(value.producer() for value in made if value not in inputs)
        state = made[:length]
        for values, value in zip(given, made[length:], strict=True):
            values.append(value)
    results = [*state, *(rounds.stacked(place, values) for place, values in enumerate(given))]
    rounds.insert()
    return results
