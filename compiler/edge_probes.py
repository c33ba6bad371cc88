"""Copies of a module that tell how its numbers overflow, or hide scores whatever their size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.weights import constant
from aigcc.passes.hiding import hides

_HIDES = -1e3  # a score that is lower by so much has no part in a softmax
_LARGEST = 1 << 24  # bytes of a constant that is looked at

# Operators that square numbers inside.
_SQUARES = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
     "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "ReduceL2"}
)  # fmt: skip
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def probing(module: Module) -> Module:
    """A copy whose outputs tell of each value between whether it is finite, and whether it is 0."""
    made = module.clone()
    infer_shapes(made.model)
    names, graph = Names(made), made.graph
    graph.outputs.clear()

    def add(kind: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=names.fresh(kind))
        node.outputs[0].name = names.fresh(f"{inputs[0].name}_{kind}")
        node.outputs[0].type = ir.TensorType(inputs[0].dtype or ir.DataType.UNDEFINED)
        graph.append(node)
        return node.outputs[0]

    for node in list(graph):
        values = list(node.outputs)
        if node.op_type in _SQUARES and node.inputs[0] is not None:
            x = node.inputs[0]
            values += [add("Mul", [x, x])]
        for value in values:
            if isinstance(value.type, ir.TensorType) and value.dtype in _FLOATS:
                for kind in ("ReduceMax", "ReduceMin"):
                    reduced = add(kind, [value], keepdims=0)
                    reduced.shape = ir.Shape(())
                    graph.outputs.append(reduced)
    return made


def hiding(module: Module) -> Module:
    """A copy in which numbers that hide scores from a softmax are -inf."""
    made = module.clone()
    infer_shapes(made.model)
    graph = made.graph
    constants = [*graph.initializers.values(), *(o for n in graph for o in n.outputs)]
    for value in constants:
        tensor = constant(value)
        if tensor is None or value.dtype not in _FLOATS or not hides(value):
            continue
        if tensor.nbytes > _LARGEST or not (tensor.numpy() <= _HIDES).any():
            continue
        array = tensor.numpy()
        hidden = ir.Tensor(
            np.where(array <= _HIDES, array.dtype.type(-np.inf), array), name=value.name
        )
        node = value.producer()
        if node is None:
            value.const_value = hidden
        else:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", hidden)
    return made
