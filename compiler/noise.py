"""Equal noise: copies of modules that compute the same pseudo-random numbers wherever they draw.

Runtimes draw from generators of their own, so that two programs differ however right they are. In
the copies each draw reads a table instead, from a place that its name tells, and in a loop also the
number of the round; means, scales, bounds and probabilities are those of the node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from aigcc.errors import ModelError
from aigcc.ir.draws import DRAW, DRAWN, count_draws, is_draw, name_draws
from aigcc.ir.edit import held_graphs, remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.operators import is_random
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.noise_forms import FORMS, LENGTH, Counter, Noise
from aigcc.pipeline.context import Context
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder, replace_value

_WITHIN = "aigcc.within"
_SCAN = 9  # the opset from which on Scan is what it is
_RANGE = 11  # the opset that brought Range, which counts elements


def equal_noise(module: Module) -> Module:
    """The module, or where it draws random numbers a copy that makes the same ones in each run."""
    if not count_draws(module):
        return module
    made = _named(module)
    _replace(made)
    return made


def equal_noises(a: Module, b: Module) -> tuple[Module, Module]:
    """Both modules with equal noise; draws that have no namesake are paired in their order."""
    if not count_draws(a) or not count_draws(b):
        return equal_noise(a), equal_noise(b)
    first, second = _named(a), _named(b)
    theirs, ours = _draws(first), _draws(second)
    for op_type, draws in ours.items():
        known = [node.metadata_props[DRAW] for node in theirs[op_type]]
        own = {node.metadata_props[DRAW] for node in draws}
        free = iter([name for name in known if name not in own])
        for node in draws:
            if node.metadata_props[DRAW] not in known:
                node.metadata_props[DRAW] = next(free, node.metadata_props[DRAW])
    _replace(first)
    _replace(second)
    return first, second


def describe_noise(module: Module) -> str:
    """What figures that compare programs made of a module have to say of its noise, if it has any.

    One that has a draw for which no equal one can be made says so.
    """
    drawn = count_draws(module)
    if not drawn:
        return ""
    apart = min(drawn, count_draws(equal_noise(module)))
    found = [f"{_count(drawn - apart)}: compared with equal noise"] if drawn > apart else []
    if apart:
        found.append(f"{_count(apart)}: each program draws its own numbers, so figures show these")
    return "; ".join(found)


def _count(number: int) -> str:
    return f"{number} random operator{'s' if number > 1 else ''}"


def _draws(module: Module) -> defaultdict[str, list[ir.Node]]:
    found: defaultdict[str, list[ir.Node]] = defaultdict(list)
    for node in module.nodes():
        if is_draw(node):
            found[node.op_type].append(node)
    return found


def _named(module: Module) -> Module:
    """A copy that can count its elements, whose draws have names, and none of them in functions."""
    from aigcc.passes.convert_opset import convert
    from aigcc.passes.lift_constants import LiftConstants

    made = module.clone()
    name_draws(made)
    if 0 < made.opset < _RANGE:
        LiftConstants().run(made, Context())
        convert(made, _RANGE, Context(), runs=False)
    _inline(made)
    with contextlib.suppress(ModelError):  # what its types are is then not known everywhere
        infer_shapes(made.model, only_missing=True)
    return made


def _inline(module: Module) -> None:
    """Put functions that draw where they are called, since each call draws for itself.

    Callers go first. Those of another opset than the module's stay: their calls draw alike.
    """
    functions = module.model.functions
    waiting = [key for key, function in functions.items() if _draws_in(function, module)]
    while waiting:
        called = {n.op_identifier() for key in waiting for n in functions[key].all_nodes()}
        current = next(key for key in waiting if key not in called)
        waiting.remove(current)
        calls = [node for node in module.nodes() if node.op_identifier() == current]
        if _fits(functions[current], module) and not any(map(held_graphs, calls)):
            _inline_one(module, functions[current], calls)


def _inline_one(module: Module, function: ir.Function, calls: Sequence[ir.Node]) -> None:
    for node in calls:
        node.metadata_props[_WITHIN] = node.metadata_props.pop(DRAW)
    InlinePass(criteria=lambda each: each is function)(module.model)
    for node in module.nodes():
        within = node.metadata_props.pop(_WITHIN, None)
        if within is not None and DRAW in node.metadata_props:
            _prefix(node, f"{within}/")


def _draws_in(function: ir.Function, module: Module) -> bool:
    return any(is_random(node, module.model.functions) for node in function)


def _fits(function: ir.Function, module: Module) -> bool:
    imports = module.model.opset_imports
    return all(imports.get(key, own) == own for key, own in function.opset_imports.items())


def _prefix(node: ir.Node, text: str) -> None:
    node.metadata_props[DRAW] = f"{text}{node.metadata_props[DRAW]}"
    for graph in held_graphs(node):
        for inner in graph:
            if DRAW in inner.metadata_props:
                _prefix(inner, text)


def _replace(module: Module) -> None:
    """Let tables stand for the draws of a module; draws that have no form for it stay."""
    names = Names(module)
    for root, opset in module.roots():
        _Replacer(module, names, opset).visit(root, ())


@dataclasses.dataclass(frozen=True)
class _Replacer:
    module: Module
    names: Names
    opset: int

    def visit(self, graph: GraphLike, counters: Sequence[Counter]) -> None:
        """Replace the draws of a graph and of what it holds.

        Args:
            graph: The graph.
            counters: Of the loops around it.
        """
        for node in list(graph):
            if is_draw(node):
                self._replace(graph, node, counters)
            elif DRAW in node.metadata_props and held_graphs(node):
                name = node.metadata_props[DRAW]
                is_scan = node.op_type == "Scan" and self.opset >= _SCAN
                if is_scan:
                    node = self._counted(graph, node)
                own: list[Counter] = []
                for inner in held_graphs(node):
                    if is_scan or node.op_type == "Loop":
                        own = [(inner.inputs[0], 1 + place_of(name) % (LENGTH - 1))]
                    self.visit(inner, [*counters, *own])

    def _replace(self, graph: GraphLike, node: ir.Node, counters: Sequence[Counter]) -> None:
        name = node.metadata_props[DRAW]
        builder = Builder(graph, self.names, node.name or node.op_type, "noise", self.opset)
        try:
            noise = Noise(builder, place_of(name), counters)
            values = FORMS[node.op_type](node, noise)
        except NoMatch:
            builder.discard()
            return
        graph.insert_before(node, builder.made)
        for made in builder.made:
            made.metadata_props[DRAWN] = node.op_type
        for old, new in zip(node.outputs, values, strict=False):
            maker = new.producer()
            assert maker is not None
            maker.name, maker.metadata_props[DRAW] = node.name, name
            replace_value(graph, old, new, self.names, fresh=True)
        remove_node(node)

    def _counted(self, graph: GraphLike, node: ir.Node) -> ir.Node:
        """A Scan with the number of the round as its first state, in the place of one without."""
        body = node.attributes["body"].as_graph()
        builder = Builder(graph, self.names, node.name or "Scan", "noise", self.opset)
        start = builder.constant(np.asarray(0, np.int64))
        counter = ir.Value(
            name=self.names.fresh("round"),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([]),
        )
        inner = Builder(body, self.names, "round", "noise", self.opset)
        following = inner.Add(counter, np.asarray(1, np.int64))
        body.extend(inner.made)
        body.inputs.insert(0, counter)
        body.outputs.insert(0, following)
        inputs, attributes = list(node.inputs), list(node.attributes.values())
        node.attributes.clear()
        made = ir.Node(
            "",
            "Scan",
            [start, *inputs],
            attributes,
            num_outputs=len(node.outputs) + 1,
            name=node.name,
            metadata_props=dict(node.metadata_props),
        )
        made.outputs[0].name = self.names.fresh("rounds")
        graph.insert_before(node, [*builder.made, made])
        for old, new in zip(node.outputs, made.outputs[1:], strict=True):
            new.type, new.shape = old.type, old.shape
            new.name = self.names.fresh("scanned")
            replace_value(graph, old, new, self.names, fresh=True)
        graph.remove(node)
        return made


def place_of(name: str) -> int:
    """Where in the table a draw of some name begins."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % LENGTH
