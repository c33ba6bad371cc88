"""Copies that compute in float32 what a module computes in narrow floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Builder

NARROW = frozenset({ir.DataType.BFLOAT16, ir.DataType.FLOAT16})
_BFLOAT16 = ir.DataType.BFLOAT16
TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name the type of a result."""


def computes_in_bfloat16(module: Module) -> bool:
    """Whether nodes other than Casts read or make bfloat16: ONNX Runtime has no kernels for most.

    The types of values need not be known.
    """
    if not any(map(_names_bfloat16, module.graphs())):
        return False
    made = module.clone()
    infer_shapes(made.model)
    return any(
        value is not None and value.dtype == _BFLOAT16
        for node in made.nodes()
        if node.op_type != "Cast"
        for value in (*node.inputs, *node.outputs)
    )


def has_narrow(module: Module) -> bool:
    """Whether there are narrow floats that nodes make; the types of values need not be known."""
    made = module.clone()
    infer_shapes(made.model)
    return bool(_made_narrow(made))


def in_float32(module: Module, *, rounds: bool = False) -> Module:
    """A copy in float32, with the same names for inputs, outputs and what nodes make.

    Args:
        module: It is left as it is.
        rounds: Whether what each node makes is rounded to the type that it had.

    Raises:
        PassError: narrow floats are in sequences.
    """
    from aigcc.passes.to_fp32 import ToFp32

    made = module.clone()
    infer_shapes(made.model)
    narrow = _made_narrow(made) if rounds else {}
    ToFp32().run(made, Context())
    for graph in made.graphs():
        _round(graph, narrow, Names(made), made.opset)
    return made


def _names_bfloat16(graph: ir.Graph | ir.Function) -> bool:
    weights = () if isinstance(graph, ir.Function) else graph.initializers.values()
    if any(value.dtype == _BFLOAT16 for value in (*graph.inputs, *weights)):
        return True
    return any(dtype == _BFLOAT16 for node in graph for dtype in _named(node))


def _named(node: ir.Node) -> Iterator[int]:
    """The types that the attributes of a node name."""
    for name in TYPES:
        yield node.attributes.get_int(name, 0)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            yield attribute.as_tensor().dtype


def _made_narrow(module: Module) -> dict[str, ir.DataType]:
    return {
        value.name: value.dtype
        for node in module.nodes()
        for value in node.outputs
        if value.name and value.dtype is not None and value.dtype in NARROW
    }


def _round(
    graph: ir.Graph | ir.Function, narrow: Mapping[str, ir.DataType], names: Names, opset: int
) -> None:
    """Round what nodes make in float32 to the types that these values had before."""
    for node in list(graph):
        builder = Builder(graph, names, node.name or node.op_type, "rounded", opset)
        for value in node.outputs:
            dtype, readers = narrow.get(value.name or ""), list(value.uses())
            if dtype is None or value.dtype != ir.DataType.FLOAT or not readers:
                continue
            rounded = builder.Cast(builder.Cast(value, to=int(dtype)), to=int(ir.DataType.FLOAT))
            for reader, position in readers:
                reader.replace_input_with(position, rounded)
        graph.insert_after(node, builder.made)
