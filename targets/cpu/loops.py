"""Loops that may run no round at all, whose stacked outputs OpenVINO then leaves as they were."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import scalar

_FIXED = 2  # inputs of a Loop before its states, and what its body gives before them: one less


def may_be_empty(module: Module) -> Iterator[ir.Node]:
    """The loops that stack outputs, and are not known to run once at least."""
    for node in module.nodes():
        if node.op_type != "Loop" or node.domain or len(node.outputs) <= _states(node):
            continue
        trips, going = (node.inputs[place] for place in range(_FIXED))
        runs = trips is None or (scalar(trips) or 0) >= 1
        if not runs or (going is not None and not scalar(going)):
            yield node


def count_rounds(module: Module) -> None:
    """Let such loops count their rounds, and take as many of what they stacked.

    ```
    s, y = Loop (n, c, s0)    →    s, count, all = Loop (n, c, s0, 0); y = Slice (all, 0, count)
    ```
    """
    names = Names(module)
    for node in list(may_be_empty(module)):
        graph = node.graph
        assert graph is not None
        zero, one = (_constant(module, number, names) for number in (0, 1))
        _count_in(node, one, names)
        states = _states(node)
        counted = _with_count(node, zero, names)
        count = counted.outputs[states]
        slices = []
        for old, stacked in zip(node.outputs[states:], counted.outputs[states + 1 :], strict=True):
            made = ir.node("Slice", [stacked, zero, count, zero], name=names.fresh("rounds"))
            made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
            slices.append(made)
        graph.insert_before(node, [counted, *slices])
        news = [*counted.outputs[:states], *(each.outputs[0] for each in slices)]
        for old, new in zip(node.outputs, news, strict=True):
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = None, name
        graph.remove(node, safe=True)


def _states(loop: ir.Node) -> int:
    return len(loop.inputs) - _FIXED


def _constant(module: Module, number: int, names: Names) -> ir.Value:
    tensor = ir.tensor(np.array([number], np.int64), name=names.fresh(f"rounds_{number}"))
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor
    )
    module.graph.initializers[str(value.name)] = value
    return value


def _count_in(loop: ir.Node, one: ir.Value, names: Names) -> None:
    """Give the body a state that grows by one in each round, after its other states."""
    body, states = loop.attributes["body"].as_graph(), _states(loop)
    count = _whole(names)
    body.inputs.append(count)
    following = ir.node("Add", [count, one], outputs=[_whole(names)], name=names.fresh("rounds"))
    body.append(following)
    body.outputs.insert(_FIXED - 1 + states, following.outputs[0])


def _with_count(loop: ir.Node, zero: ir.Value, names: Names) -> ir.Node:
    """The loop with a state more, whose outputs are new but for their types."""
    states = _states(loop)
    made = [_like(output, names) for output in loop.outputs]
    made.insert(states, _whole(names))
    for output in made[states + 1 :]:
        output.shape = None if output.shape is None else ir.Shape([None, *output.shape[1:]])
    return ir.Node(
        "",
        "Loop",
        [*loop.inputs, zero],
        list(loop.attributes.values()),
        outputs=made,
        name=loop.name,
        metadata_props=dict(loop.metadata_props),
    )


def _like(value: ir.Value, names: Names) -> ir.Value:
    return ir.Value(name=names.fresh(f"{value.name}/all"), type=value.type, shape=value.shape)


def _whole(names: Names) -> ir.Value:
    return ir.Value(
        name=names.fresh("rounds"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1])
    )
