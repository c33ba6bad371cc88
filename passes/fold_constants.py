"""Constant folding: what depends on constants alone is computed now.

Small results come from ONNX Runtime with its optimisations off, so that folding and running agree
by construction. Large weights are not computed here: a lazy weight takes the node's place, and is
computed alone when it is saved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.errors import CompileError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.operators import is_deterministic
from aigcc.ir.shapes.inference import infer_node
from aigcc.ir.weights import constant, derive, read
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.pipeline.forms import has_constants
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder, remove_dead

LARGE = 1 << 16

_KEPT = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear"})
_NARROW = frozenset({ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8})
_GROWING = frozenset({"Expand", "ConstantOfShape", "Tile", "Range", "Resize", "Upsample", "OneHot"})


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their result.

    ```
    t = Transpose <perm = [1, 0]> (w); y = MatMul (x, t)      →      y = MatMul (x, t)
    ```
    A result larger than `limit` bytes is folded only when it is no larger than the constants that
    it comes from. Q/DQ pairs carry a precision decision and stay, and so does the Cast of a weight
    of integers, with what its scales go through before they multiply it.
    """

    name: ClassVar[str] = "fold-constants"
    limit: int = option(1 << 20, "bytes; larger results are folded only if they do not grow")

    def run(self, module: Module, ctx: Context) -> None:
        """Fold in every graph, outer graphs first, so that what they capture is known."""
        names = Names(module)
        for root, opset in module.roots():
            folder = _Folder(opset, names, self.limit, ctx)
            graphs: list[GraphLike] = [root, *root.subgraphs()]
            for graph in graphs:
                for node in graph:
                    if _may_fold(node) and not folder.fold(graph, node):
                        return


@dataclasses.dataclass
class _Folder:
    opset: int
    names: Names
    limit: int
    ctx: Context

    def fold(self, graph: GraphLike, node: ir.Node) -> bool:
        """Fold one node if that is wise; False once the run's limit is reached."""
        infer_node(node, self.opset)
        size, given = _result_bytes(node), sum(_bytes(value) for value in node.inputs)
        refusal = None
        if size is None or size > max(self.limit, given):
            refusal = "its result is larger than its inputs and the limit"
        elif size > LARGE and any(len(value.uses()) > 1 for value in node.inputs if value):
            refusal = "a weight would be stored twice, since it is used elsewhere too"
        if refusal is not None:
            self.ctx.decline(node, f"{node.op_type} not folded: {refusal}")
            return True
        large = max(size or 0, given) > LARGE
        tensors = self._compute(node, large=large)
        if tensors is None:
            return True
        kept = all(has_constants(tensor.dtype, self.opset) for tensor in tensors)
        if isinstance(graph, ir.Function) and not kept:
            self.ctx.decline(node, f"a Constant of opset {self.opset} holds floats alone")
            return True
        if not self.ctx.rewrite(node, f"{node.op_type} of constants"):
            return False
        builder = Builder(graph, self.names, node.name or node.op_type, self.name, self.opset)
        for old, tensor in zip(node.outputs, tensors, strict=True):
            if old.name and old.uses():
                new = builder.constant(tensor)
                name, old.name = old.name, None
                _rename(graph, new, name)
                new.metadata_props.update(old.metadata_props)
                old.replace_all_uses_with(new)
        graph.insert_before(node, builder.made)
        remove_dead([node])
        return True

    @property
    def name(self) -> str:
        return FoldConstants.name

    def _compute(self, node: ir.Node, *, large: bool) -> list[ir.TensorProtocol] | None:
        if not large:
            return _evaluate(node, self.opset)
        lazy = LAZY.get(node.op_type)
        (output, *others) = node.outputs
        if lazy is None or others or output.dtype is None or output.shape is None:
            self.ctx.decline(node, f"{node.op_type} of a large weight not folded")
            return None
        compute = lazy(node)
        if compute is None:
            return None
        sources = [tensor for tensor in map(constant, node.inputs) if tensor is not None]
        shape, name = tuple(output.shape.numpy()), str(output.name)
        return [derive(compute, *sources, dtype=output.dtype, shape=shape, name=name)]


def _rename(graph: GraphLike, value: ir.Value, name: str) -> None:
    if isinstance(graph, ir.Function):
        value.name = name
        return
    del graph.initializers[str(value.name)]
    value.name = name
    graph.register_initializer(value)


def _may_fold(node: ir.Node) -> bool:
    if node.op_type in _KEPT or node.domain not in ("", "ai.onnx") or not is_deterministic(node):
        return False
    if not node.inputs or any(value.is_graph_output() for value in node.outputs):
        return False
    if _widens(node) or _scales(node):
        return False
    kinds = {attribute.type for attribute in node.attributes.values()}
    if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return False
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    return all(value is None or constant(value) is not None for value in node.inputs)


def _widens(node: ir.Node | None) -> bool:
    """Whether a node makes floats of a weight that is stored in integers of 8 bits or fewer."""
    if node is None or node.op_type != "Cast":
        return False
    stored = constant(node.inputs[0])
    return stored is not None and len(stored.shape) > 1 and stored.dtype in _NARROW


def _scales(node: ir.Node) -> bool:
    """Whether all that a node makes are scales of such weights."""
    users = [user for output in node.outputs for user, _ in output.uses()]
    return bool(users) and all(
        user.op_type == "Mul" and any(value and _widens(value.producer()) for value in user.inputs)
        for user in users
    )


def _bytes(value: ir.Value | None) -> int:
    tensor = constant(value)
    return 0 if tensor is None else tensor.nbytes


def _result_bytes(node: ir.Node) -> float | None:
    """Bytes of a node's outputs; None where it may be large and only computing would tell."""
    total = 0.0
    for value in node.outputs:
        if value.shape is not None and value.dtype is not None and value.shape.is_static():
            total += math.prod(value.shape.numpy()) * value.dtype.itemsize
        elif node.op_type in _GROWING:
            return None
    return total


def _evaluate(node: ir.Node, opset: int) -> list[ir.TensorProtocol] | None:
    """The outputs of a node whose inputs are small constants, by ONNX Runtime.

    Returns None where ONNX Runtime has no kernel for it, or refuses the values.
    """
    from aigcc.runtime import evaluate

    unique = {value: _copy(value) for value in node.inputs if value is not None}
    inputs = [None if value is None else unique[value] for value in node.inputs]
    copy = ir.Node(
        "", node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs)
    )
    for index, (new, old) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
        new.name, new.type = f"result{index}" if old.name else "", old.type
    graph = ir.Graph(
        [],
        [value for value in copy.outputs if value.name],
        nodes=[copy],
        initializers=list({value.name: value for value in unique.values()}.values()),
        opset_imports={"": opset},
        name="fold",
    )
    try:
        results = evaluate(ir.Model(graph, ir_version=10))
    except CompileError:
        return None
    empty = np.empty(0, np.float32)
    return [ir.tensor(results.get(str(value.name), empty)) for value in copy.outputs]


def _copy(value: ir.Value) -> ir.Value:
    tensor = constant(value)
    assert tensor is not None
    return ir.Value(
        name=value.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        # Serialised inside the one-node model: a mapped tensor would become a file reference.
        const_value=ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name),
    )


Lazy = Callable[..., np.ndarray]


def _transpose(node: ir.Node) -> Lazy:
    perm = node.attributes.get_ints("perm", None)
    return lambda x: np.transpose(x, perm)


def _reshape(node: ir.Node) -> Lazy:
    shape = tuple(node.outputs[0].shape.numpy())  # type: ignore[union-attr]
    return lambda x, *_: x.reshape(shape)


def _cast(node: ir.Node) -> Lazy | None:
    source, goal = node.inputs[0], node.outputs[0].dtype
    floats = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    if source is None or source.dtype not in floats or goal not in floats:
        return None
    dtype: Any = goal.numpy()
    return lambda x: x.astype(dtype)


def _concat(node: ir.Node) -> Lazy:
    axis = node.attributes["axis"].as_int()
    return lambda *parts: np.concatenate(parts, axis)


def _gather(node: ir.Node) -> Lazy:
    axis = node.attributes.get_int("axis", 0)
    return lambda x, indices: np.take(x, indices, axis)


def _slice(node: ir.Node) -> Lazy | None:
    starts, ends, axes, steps = (
        read(node.inputs[i]) if i < len(node.inputs) else None for i in range(1, 5)
    )
    if starts is None or ends is None:
        return None
    where = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    if min(strides) < 1:
        return None
    rank = len(node.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    cut = [slice(None)] * rank
    for axis, start, end, step in zip(where, starts.tolist(), ends.tolist(), strides, strict=True):
        cut[axis] = slice(start, end, step)
    return lambda x, *_: x[tuple(cut)]


def _elementwise(function: Lazy) -> Callable[[ir.Node], Lazy | None]:
    floats = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16}
    return lambda node: function if node.outputs[0].dtype in floats else None


LAZY: dict[str, Callable[[ir.Node], Lazy | None]] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(np.divide),
    "Flatten": _reshape,
    "Gather": _gather,
    "Identity": lambda node: lambda x: x,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _reshape,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
