"""A module cut at values, so that each piece computes from what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.pipeline.rules import remove_dead

Array = npt.NDArray[Any]


def splice(
    module: Module,
    given: Mapping[str, Array],
    dtypes: Mapping[str, ir.DataType],
    wanted: Sequence[str],
) -> tuple[Module, dict[str, str]]:
    """A module that makes the wanted values, each from given ones in the place of its own.

    Args:
        module: Left as it is.
        given: Values of the main graph that are fed, with arrays of the dtypes and shapes that
            they are going to have.
        dtypes: What the module's own values are of; given ones of other types are cast.
        wanted: Names of values of the main graph, which keep them.

    Returns:
        The module, which has no outputs, and for each of its new inputs the value that it stands
        for.
    """
    made = module.clone()
    graph, names = made.graph, Names(made)
    own = {value.name or "": value for node in graph for value in node.outputs}
    graph.outputs.clear()
    first = graph[0]
    stands_for: dict[ir.Value, str] = {}
    for name, array in given.items():
        dtype = ir.DataType.from_numpy(array.dtype)
        value = ir.Value(
            name=names.fresh(f"{name}/given"),
            type=ir.TensorType(dtype),
            shape=ir.Shape(array.shape),
        )
        stands_for[value] = name
        if dtype != dtypes[name]:
            to = ir.AttrInt64("to", int(dtypes[name]))
            cast = ir.Node("", "Cast", [value], [to], num_outputs=1, name=names.fresh("given"))
            cast.outputs[0].name = names.fresh(f"{name}/cast")
            graph.insert_before(first, cast)
            value = cast.outputs[0]
        own[name].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.outputs.extend(own[name] for name in wanted)
    remove_dead(list(graph))
    graph.outputs.clear()
    graph.inputs[:] = [value for value in (*graph.inputs, *stands_for) if any(value.uses())]
    for name, weight in list(graph.initializers.items()):
        if not weight.uses():
            del graph.initializers[name]
    return made, {value.name or "": name for value, name in stands_for.items() if value.uses()}
