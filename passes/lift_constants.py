"""Constant nodes become initializers, so that every pass finds constants in one place."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_ALL_ARE_INPUTS = 3

_SCALARS: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@dataclasses.dataclass(frozen=True)
class LiftConstants(Pass):
    """Turn Constant nodes of graphs into initializers; functions keep theirs, having no others.

    ```
    w = Constant <value = float[2] {1, 2}> ()      →      <float[2] w = {1, 2}>
    ```
    Up to IR version 3 every initializer had to be an input as well; those inputs go, too.
    """

    name: ClassVar[str] = "lift-constants"

    def run(self, module: Module, ctx: Context) -> None:
        """Lift every Constant node, in sub-graphs too."""
        if module.model.ir_version <= _ALL_ARE_INPUTS:
            _close_inputs(module, ctx)
        for graph in module.graphs():
            if isinstance(graph, ir.Function):
                continue
            for node in graph:
                if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                    _lift(graph, node, ctx)


def _close_inputs(module: Module, ctx: Context) -> None:
    for value in list(module.graph.inputs):
        if value.is_initializer():
            if not ctx.rewrite(None, f"initializer {value.name} is no input", by="input"):
                return
            module.graph.inputs.remove(value)
    module.model.ir_version = _ALL_ARE_INPUTS + 1


def _lift(graph: ir.Graph, node: ir.Node, ctx: Context) -> None:
    old = node.outputs[0]
    tensor = _tensor(node)
    if tensor is None or old.is_graph_output():
        return
    if not ctx.rewrite(node, "Constant node to initializer"):
        return
    value = ir.Value(
        name=old.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
        metadata_props=dict(old.metadata_props),
    )
    old.replace_all_uses_with(value)
    graph.remove(node)
    graph.register_initializer(value)


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    ((name, attribute),) = node.attributes.items()
    if attribute.is_ref():
        return None
    if name == "value":
        return attribute.as_tensor()
    if name in _SCALARS:
        return ir.tensor(np.array(attribute.value, _SCALARS[name]))
    if name == "value_string":
        return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
    if name == "value_strings":
        strings = [text.encode() for text in attribute.as_strings()]
        return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
    return None
