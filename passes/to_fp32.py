"""Computing in float32 what a module computes in float16 or bfloat16."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from aigcc.errors import PassError
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import derive, is_small
from aigcc.narrow import NARROW, TYPES
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_FLOAT = ir.DataType.FLOAT


@dataclasses.dataclass(frozen=True)
class ToFp32(Pass):
    """Compute in float32 what is float16 or bfloat16; inputs, outputs and weights keep their type.

    ```
    y = MatMul (x, w)    →    a = Cast <to = 1> (x); b = Cast <to = 1> (w);
                              c = MatMul (a, b); y = Cast <to = 10> (c)
    ```
    For runtimes without kernels for narrow floats. Results are rounded less often than before, and
    overflow later: where a value was infinite in float16, it may be finite.
    """

    name: ClassVar[str] = "to-fp32"
    exact: ClassVar[bool] = False

    def run(self, module: Module, ctx: Context) -> None:
        """Widen all values; calls of functions are inlined where there is something to widen."""
        values = [value for graph in module.graphs() for value in _values(graph)]
        if not any(map(_is_narrow, values)):
            return
        for value in values:
            if value.dtype in NARROW and not _is_narrow(value):
                raise PassError(
                    f"{value.name!r} holds narrow floats, and is no tensor",
                    hint="run unpack-sequences first",
                )
        if module.model.functions:
            InlinePass()(module.model)
        if not ctx.rewrite(None, "narrow floats computed in float32"):
            return
        names = Names(module)
        shown = [(i, v, v.dtype) for i, v in enumerate(module.graph.outputs) if _is_narrow(v)]
        for graph in [module.graph, *module.graph.subgraphs()]:
            for value in graph.inputs:
                if not _is_narrow(value):
                    continue
                if graph is module.graph:
                    _widen_at(graph, value, names)
                else:
                    value.type = ir.TensorType(_FLOAT)
            for value in list(graph.initializers.values()):
                if _is_narrow(value) and not value.is_graph_input():
                    _widen_weight(graph, value, names)
            for node in list(graph):
                _widen_node(node)
        for index, value, dtype in shown:
            if value.producer() is not None and dtype is not None:
                _narrow_output(module.graph, index, dtype, names)


def _values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    inner = [value for node in graph for value in node.outputs]
    weights = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    return [*graph.inputs, *weights, *inner]


def _is_narrow(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in NARROW


def _cast(value: ir.Value, to: ir.DataType, name: str, names: Names) -> ir.Node:
    node = ir.Node(
        "",
        "Cast",
        [value],
        [ir.AttrInt64("to", int(to))],
        num_outputs=1,
        name=names.fresh(f"{value.name}/Cast"),
        metadata_props={"aigcc.made_by": ToFp32.name},
    )
    made = node.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
    return node


def _widen_at(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    """Let all readers of an input or a weight read its wide form."""
    readers = list(value.uses())
    if not readers:
        return
    node = _cast(value, _FLOAT, names.fresh(f"{value.name}_fp32"), names)
    for user, position in readers:
        user.replace_input_with(position, node.outputs[0])
    graph.insert_before(graph[0], node)


def _widen_weight(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    """Large float16 weights stay behind a Cast; others become float32 when they are read."""
    tensor = value.const_value
    is_stored = tensor is not None and tensor.dtype == ir.DataType.FLOAT16 and not is_small(tensor)
    if tensor is None or is_stored or value.is_graph_output():
        _widen_at(graph, value, names)
        return
    shape = tuple(tensor.shape.numpy())
    value.const_value = (
        ir.tensor(_wide(tensor.numpy()), name=value.name)
        if is_small(tensor)
        else derive(_wide, tensor, dtype=_FLOAT, shape=shape, name=str(value.name))
    )
    value.type = ir.TensorType(_FLOAT)


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float32)


def _widen_node(node: ir.Node) -> None:
    """Retype what a node makes, and the attributes that say so."""
    for value in node.outputs:
        if _is_narrow(value):
            value.type = ir.TensorType(_FLOAT)
            if node.op_type == "Cast" and not node.domain:
                node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))
    for name in TYPES:
        if node.attributes.get_int(name, 0) in {int(dtype) for dtype in NARROW}:
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    tensor = node.attributes.get("value")
    if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
        array = tensor.as_tensor()
        if array.dtype in NARROW:
            wide = ir.tensor(_wide(array.numpy()), name=array.name)
            node.attributes["value"] = ir.AttrTensor("value", wide)
            node.outputs[0].const_value = wide if node.op_type == "Constant" else None


def _narrow_output(graph: ir.Graph, index: int, dtype: ir.DataType, names: Names) -> None:
    """Let an output have the type again that it had."""
    value = graph.outputs[index]
    if value.dtype == dtype:
        return
    name, value.name = str(value.name), names.fresh(f"{value.name}_fp32")
    node = _cast(value, dtype, name, names)
    graph.append(node)
    for place, shown in enumerate(graph.outputs):
        if shown is value:
            graph.outputs[place] = node.outputs[0]
