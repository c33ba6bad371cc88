"""Scales of a value's channels, moved into the constants of what produces it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.weights import constant, derive
from aigcc.passes.quant.placement import CONVOLUTIONS, weight_of
from aigcc.pipeline.rules import Builder, remove_dead

Array = npt.NDArray[Any]

_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "Relu"})  # f(s x) = s f(x) for s > 0
_NORMS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
    }
)
_LAST_AXIS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


@dataclasses.dataclass(frozen=True)
class Edit:
    """An input of a node whose constant is to be multiplied.

    Attributes:
        node: The node.
        position: Of the input.
        tensor: The constant as the node reads it.
        axis: Of the channels in the constant, counted from its end.
    """

    node: ir.Node
    position: int
    tensor: ir.TensorProtocol
    axis: int


def plan_fold(
    value: ir.Value, axis: int, channels: int, readers: Collection[ir.Node]
) -> list[Edit] | None:
    """The constants to multiply so that a value's channels are; None where that cannot be.

    Normalisations, products and convolutions with a constant weight, additions of and
    multiplications by a constant end the way; Relu, LeakyRelu and sums of two such values pass it
    on. Nothing on the way may have another reader, or be read twice by one: in `x * x` the scale
    of `x` counts twice.

    Args:
        value: The value; all its readers are in `readers` and read it once, else there is no plan.
        axis: Of its channels: -1, or 1 with any rank.
        channels: How many.
        readers: Nodes that may read it.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or node.domain not in ("", "ai.onnx"):
        return None
    if node.outputs[0] is not value or value.shape is None:
        return None
    users = [user for user, _ in value.uses()]
    if len(set(users)) < len(users) or not set(users) <= set(readers):
        return None
    back = -1 if axis == -1 else 1 - len(value.shape)
    if node.op_type in _HOMOGENEOUS:
        return _onward(node, 0, axis, channels)
    if node.op_type in _NORMS:
        return _norm(node, axis, channels)
    if node.op_type in ("Add", "Sub", "Mul"):
        return _arithmetic(node, axis, back, channels)
    if node.op_type == "Div":
        return _onward(node, 0, axis, channels)
    return _product(node, axis)


def apply_fold(edits: Collection[Edit], factor: Array, builder: Builder) -> None:
    """Multiply the constants of a plan, [channels]; shared ones are copied."""
    for edit in edits:
        shape = list(edit.tensor.shape.numpy())
        wide = factor.reshape(-1, *[1] * (-edit.axis - 1))
        made = tuple(np.broadcast_shapes(shape, wide.shape))
        dtype = edit.tensor.dtype
        tensor = derive(
            lambda array, wide=wide, dtype=dtype: (array.astype(np.float32) * wide).astype(
                dtype.numpy()
            ),
            edit.tensor,
            dtype=dtype,
            shape=made,
            name=edit.tensor.name or "",
        )
        replace_constant(edit.node, edit.position, tensor, builder)


def replace_constant(
    node: ir.Node, position: int, tensor: ir.TensorProtocol, builder: Builder
) -> None:
    """Give an input of a node a new constant; the old one goes if nobody else reads it."""
    old = node.inputs[position]
    assert old is not None
    builder.stem = node.name or node.op_type
    new = builder.constant(tensor, "scaled")
    new.metadata_props.update(old.metadata_props)
    node.replace_input_with(position, new)
    producer = old.producer()
    if producer is not None:
        remove_dead([producer])
    elif not old.uses() and old.is_initializer() and not old.is_graph_output():
        assert old.graph is not None
        del old.graph.initializers[str(old.name)]


def _onward(node: ir.Node, position: int, axis: int, channels: int) -> list[Edit] | None:
    value = node.inputs[position]
    return None if value is None else plan_fold(value, axis, channels, {node})


def _norm(node: ir.Node, axis: int, channels: int) -> list[Edit] | None:
    if (node.op_type in _LAST_AXIS) != (axis == -1):
        return None
    edits = []
    for position in (1, 2):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            continue
        tensor = constant(value)
        if tensor is None or tuple(tensor.shape.numpy()) != (channels,):
            return None
        edits.append(Edit(node, position, tensor, -1))
    return edits


def _arithmetic(node: ir.Node, axis: int, back: int, channels: int) -> list[Edit] | None:
    sides: list[list[Edit] | None] = []
    for position in (0, 1):
        tensor = constant(node.inputs[position])
        if tensor is None:
            sides.append(_onward(node, position, axis, channels))
            continue
        shape = tensor.shape.numpy()
        fits = len(shape) < -back or shape[back] in (1, channels)
        edit = Edit(node, position, tensor, back)
        if node.op_type == "Mul":
            return [edit] if fits else None
        sides.append([edit] if fits else None)
    if node.op_type == "Mul":
        return sides[0] or sides[1]
    return None if sides[0] is None or sides[1] is None else sides[0] + sides[1]


def _product(node: ir.Node, axis: int) -> list[Edit] | None:
    weight = weight_of(node)
    if weight is None or (node.op_type in CONVOLUTIONS) != (axis == 1):
        return None
    weight_input = node.inputs[1]
    assert weight_input is not None
    if len(weight_input.uses()) > 1 or len(weight.value.uses()) > 1:
        return None
    tensor = weight.tensor
    edits = [Edit(node, 1, tensor, weight.out_axis - len(tensor.shape))]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        added = constant(bias)
        if added is None:
            return None
        edits.append(Edit(node, 2, added, -1))
    return edits
