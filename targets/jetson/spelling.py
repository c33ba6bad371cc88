"""A module as TVM's front end knows it: without functions, and with shapes as numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from aigcc.ir.edit import remove_node
from aigcc.ir.module import Module


def spelt(module: Module) -> Module:
    """A copy that means the same. The front end makes no tensors of shapes that are outputs."""
    made = module.clone()
    InlinePass()(made.model)
    for graph in [made.graph, *made.graph.subgraphs()]:
        for node in list(graph):
            sizes = _sizes(node)
            if sizes is not None:
                _become_constant(graph, node, sizes)
    return made


def _sizes(node: ir.Node) -> np.ndarray | None:
    """What a Shape or Size gives, where that is known."""
    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx"):
        return None
    source = node.inputs[0]
    dims = list(source.shape) if source is not None and source.shape is not None else [None]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    if node.op_type == "Size":
        return np.array(np.prod(np.array(dims, np.int64)), np.int64)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    return np.array(dims[start:end], np.int64)


def _become_constant(graph: ir.Graph, node: ir.Node, array: np.ndarray) -> None:
    name = node.outputs[0].name
    value = ir.AttrTensor("value", ir.tensor(array, name=name))
    constant = ir.Node("", "Constant", [], [value], num_outputs=1, name=node.name)
    made = constant.outputs[0]
    made.type, made.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(array.shape)
    graph.insert_before(node, constant)
    node.outputs[0].replace_all_uses_with(made, replace_graph_outputs=True)
    remove_node(node)
    made.name = name
