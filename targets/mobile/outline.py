"""A module without its weights: all that ONNX Runtime needs to choose its operators."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import is_small
from aigcc.passes.lift_constants import LiftConstants
from aigcc.pipeline.context import Context

_ZEROS = "zeros.bin"


def write_outline(module: Module, folder: Path) -> Path:
    """Write the module with zeros for large weights, which take no space on disk.

    Casts of stored weights are gone: they are folded when a model is loaded, which would take as
    much memory as the weights.

    Returns:
        The `.onnx` file in `folder`.
    """
    outline = module.clone()
    LiftConstants().run(outline, Context())
    largest = 0
    for graph in [outline.graph, *outline.graph.subgraphs()]:
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.dtype == ir.DataType.STRING or is_small(tensor):
                continue
            value.const_value = _zeros(value, tensor.dtype, folder)
            largest = max(largest, value.const_value.nbytes)
            for node in [user for user, _ in value.uses() if user.op_type == "Cast"]:
                largest = max(largest, _undo(node, folder))
    with (folder / _ZEROS).open("wb") as file:
        file.truncate(largest)
    path = folder / "outline.onnx"
    ir.save(outline.model, path)
    return path


def _zeros(value: ir.Value, dtype: ir.DataType, folder: Path) -> ir.ExternalTensor:
    assert value.const_value is not None
    shape = ir.Shape(value.const_value.shape.numpy())
    size = -(-value.const_value.size * dtype.bitwidth // 8)
    return ir.ExternalTensor(
        _ZEROS, 0, size, dtype, shape=shape, name=value.name or "", base_dir=folder
    )


def _undo(cast: ir.Node, folder: Path) -> int:
    """Make the result of a Cast an initializer; returns its size in bytes, or 0 if it must stay."""
    old, source, graph = cast.outputs[0], cast.inputs[0], cast.graph
    if source is None or old.dtype is None or old.is_graph_output():
        return 0
    assert isinstance(graph, ir.Graph)  # an initializer has no users in functions
    new = ir.Value(name=old.name, type=old.type, shape=source.shape)
    new.const_value = _zeros(source, old.dtype, folder)
    old.replace_all_uses_with(new)
    graph.remove(cast, safe=True)
    graph.register_initializer(new)
    return new.const_value.nbytes
