"""Sequences of known length become plain values: few runtimes have sequence kernels."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.weights import read, scalar
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder, remove_dead, replace_value


@dataclasses.dataclass(frozen=True)
class UnpackSequences(Pass):
    """Take sequences apart whose elements are known when compiling.

    ```
    s = SplitToSequence (x, sizes); a = SequenceAt (s, 0); b = SequenceAt (s, 1)
      →  a, b = Split (x, sizes)
    s = SequenceConstruct (a, b); y = ConcatFromSequence <axis = 1> (s)
      →  y = Concat <axis = 1> (a, b)
    ```
    """

    name: ClassVar[str] = "unpack-sequences"

    def run(self, module: Module, ctx: Context) -> None:
        """Unpack in every graph."""
        names = Names(module)
        for root, opset in module.roots():
            graphs: list[GraphLike] = [root, *root.subgraphs()]
            for graph in graphs:
                for node in graph:
                    if node.op_type not in ("SplitToSequence", "SequenceConstruct"):
                        continue
                    if not _unpack(graph, node, opset, names, ctx):
                        return


def _unpack(graph: GraphLike, node: ir.Node, opset: int, names: Names, ctx: Context) -> bool:
    """Take one sequence apart if that is possible; False once the run's limit is reached."""
    builder = Builder(graph, names, node.name or node.op_type, UnpackSequences.name, opset)
    elements, places = _elements(builder, node), _places(node)
    if places is None:
        reason = "the sequence is used by more than reads at known places"
    elif elements is None:
        reason = "the sizes of its parts are not known"
    elif not all(-len(elements) <= place < len(elements) for place in places):
        reason = f"an element is read that a sequence of {len(elements)} does not have"
    elif ctx.rewrite(node, f"sequence of {len(elements)} to plain values"):
        graph.insert_before(node, builder.made)
        for user in list(node.outputs[0].consumers()):
            _replace(user, opset, elements, names)
        remove_dead([node])
        return True
    else:
        builder.discard()
        return False
    builder.discard()
    ctx.decline(node, reason)
    return True


def _places(node: ir.Node) -> list[int] | None:
    """Where a sequence is read one by one; None where it is used in another way as well."""
    sequence = node.outputs[0]
    if sequence.is_graph_output():
        return None
    places = []
    for user in sequence.consumers():
        if user.op_type == "ConcatFromSequence":
            continue
        place = scalar(user.inputs[1]) if user.op_type == "SequenceAt" else None
        if place is None:
            return None
        places.append(int(place))
    return places


def _elements(builder: Builder, node: ir.Node) -> list[ir.Value] | None:
    if node.op_type == "SequenceConstruct":
        return [value for value in node.inputs if value is not None]
    x, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    dim = None if x is None or x.shape is None else x.shape[axis]
    if not isinstance(dim, int):
        return None
    squeeze = len(node.inputs) < 2 and not node.attributes.get_int("keepdims", 1)
    sizes = [1] * dim if len(node.inputs) < 2 else _sizes(node.inputs[1], dim)
    if not sizes or sum(sizes) != dim:
        return None
    made = builder.node("Split", (x, sizes), {"axis": axis, "_outputs": len(sizes)})
    parts = [made] if isinstance(made, ir.Value) else made
    return [builder.Squeeze(part, [axis]) for part in parts] if squeeze else parts


def _sizes(split: ir.Value | None, dim: int) -> list[int] | None:
    """The sizes of the parts: `split` is one size for all but a smaller last, or a list."""
    known = read(split)
    if known is None:
        return None
    if known.ndim:
        return [int(size) for size in known]
    size = int(known)
    if size < 1:
        return None
    whole = [size] * (dim // size)
    return whole if dim % size == 0 else [*whole, dim % size]


def _replace(user: ir.Node, opset: int, elements: list[ir.Value], names: Names) -> None:
    graph = user.graph
    assert graph is not None
    if user.op_type == "SequenceAt":
        place = int(scalar(user.inputs[1]) or 0)
        replace_value(graph, user.outputs[0], elements[place], names)
        remove_dead([user])
        return
    builder = Builder(graph, names, user.name or user.op_type, UnpackSequences.name, opset)
    axis, parts = user.attributes["axis"].as_int(), elements
    if user.attributes.get_int("new_axis", 0):
        parts = [builder.Unsqueeze(part, [axis]) for part in elements]
    joined = builder.node("Concat", parts, {"axis": axis})
    graph.insert_before(user, builder.made)
    replace_value(graph, user.outputs[0], joined, names, fresh=True)
    remove_dead([user])
