"""One node as a module of its own, to be timed or examined alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import constant
from aigcc.passes.quant.placement import weight_of


def isolate(node: ir.Node, opset_imports: dict[str, int]) -> Module | None:
    """A module that computes one node; None where a shape is not static.

    Its constants are the node's, still on disk. Its inputs are the node's other inputs.
    """
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    values: list[ir.Value | None] = []
    weight = weight_of(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            values.append(None)
            continue
        tensor = weight.tensor if weight is not None and index == 1 else constant(value)
        shape = value.shape if tensor is None else ir.Shape(tensor.shape.numpy())
        if shape is None or not shape.is_static() or value.dtype is None:
            return None
        copy = ir.Value(
            name=value.name, type=ir.TensorType(value.dtype), shape=shape, const_value=tensor
        )
        (inputs if tensor is None else initializers).append(copy)
        values.append(copy)
    outputs = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs]
    alone = ir.Node(
        node.domain,
        node.op_type,
        values,
        list(node.attributes.values()),
        outputs=outputs,
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=[alone],
        initializers=initializers,
        opset_imports=dict(opset_imports),
        name=node.name or "node",
    )
    return Module(ir.Model(graph, ir_version=10))


def noise_for(module: Module, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Normal noise for the inputs of an isolated node."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in module.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None
        array = generator.standard_normal(value.shape.numpy(), np.float32)
        feeds[value.name] = array.astype(value.dtype.numpy())
    return feeds
