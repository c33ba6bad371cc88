"""Some nodes as a module of their own, to be timed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import constant
from aigcc.passes.quant.placement import weight_of


def isolate(nodes: Sequence[ir.Node], opset_imports: dict[str, int]) -> Module | None:
    """A module that computes some nodes; None where a shape is not static.

    Its constants are the nodes', still on disk. Its inputs are the nodes' other inputs.
    """
    made: dict[ir.Value, ir.Value] = {}
    copies = []
    for node in nodes:
        values: list[ir.Value | None] = []
        weight = weight_of(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value not in made:
                held = weight is not None and index == 1
                copy = _copy(value, weight.tensor if weight and held else constant(value))
                if copy is None:
                    return None
                made[value] = copy
            values.append(None if value is None else made[value])
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                values,
                list(node.attributes.values()),
                outputs=[ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs],
                name=node.name,
                metadata_props=dict(node.metadata_props),
            )
        )
    graph = ir.Graph(
        [copy for copy in made.values() if copy.const_value is None],
        [output for copy in copies for output in copy.outputs],
        nodes=copies,
        initializers=[copy for copy in made.values() if copy.const_value is not None],
        opset_imports=dict(opset_imports),
        name=nodes[0].name or "node",
    )
    return Module(ir.Model(graph, ir_version=10))


def _copy(value: ir.Value, tensor: ir.TensorProtocol | None) -> ir.Value | None:
    """An input, or a constant if there is a tensor; None where the shape is not static."""
    shape = value.shape if tensor is None else ir.Shape(tensor.shape.numpy())
    if shape is None or not shape.is_static() or value.dtype is None:
        return None
    kind = ir.TensorType(value.dtype)
    return ir.Value(name=value.name, type=kind, shape=shape, const_value=tensor)


def noise_for(module: Module, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Normal noise for the inputs of isolated nodes."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in module.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None
        array = generator.standard_normal(value.shape.numpy(), np.float32)
        feeds[value.name] = array.astype(value.dtype.numpy())
    return feeds
