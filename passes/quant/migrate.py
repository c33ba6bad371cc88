"""Scales that move between activations and weights before anything is rounded; outputs stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import derive
from aigcc.passes.quant.fold import apply_fold, plan_fold, replace_constant
from aigcc.passes.quant.placement import NARROW
from aigcc.passes.quant.quantise import Place
from aigcc.passes.quant.region import MIGRATED
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Builder

Array = npt.NDArray[Any]
Group = Sequence[Place]
ScaleOf = Callable[[Group], Array | None]


def groups(module: Module, places: Sequence[Place]) -> list[Group]:
    """Places of the main graph that read the same activation, and whose weights nobody else reads.

    Products with a table, and those that compute in narrow floats, are left out.
    """
    found: dict[tuple[ir.Value, int], list[Place]] = defaultdict(list)
    for place in places:
        data = place.node.inputs[0]
        if place.graph is not module.graph or place.node.op_type == "Gather":
            continue
        if data is None or place.scheme.weight in NARROW:
            continue
        found[data, place.weight.channel_axis].append(place)
    return [group for group in found.values() if _is_alone(group)]


def _is_alone(group: Group) -> bool:
    nodes = {place.node for place in group}
    for place in group:
        read = place.node.inputs[1]
        users = {user for user, _ in place.weight.value.uses()}
        if read is not place.weight.value:
            assert read is not None
            users = {user for user, _ in read.uses()} if len(users) == 1 else users
        if not users <= nodes:
            return False
    return True


def migrate(
    module: Module, places: Sequence[Place], scale_of: ScaleOf, what: str, ctx: Context
) -> bool:
    """Multiply weights by scales of their input channels, and divide what they meet by them.

    The division goes into the constants of what produces the activation where it has no other
    reader (see `plan_fold`), else into a Mul. Places hold old weights afterwards.

    Args:
        module: Changed in place.
        places: The nodes to help.
        scale_of: The scales for nodes that read one activation, [channels]; None for none.
        what: For remarks.
        ctx: Asked before each change.

    Returns:
        Whether anything changed.
    """
    names, is_changed = Names(module), False
    for group in groups(module, places):
        scale = scale_of(group)
        node = group[0].node
        if scale is None or (scale == 1).all():
            continue
        if not ctx.rewrite(node, what):
            break
        is_changed = True
        builder = Builder(module.graph, names, "", ctx.maker, module.opset)
        _divide(group, scale, builder, module)
        for place in group:
            _multiply(place, scale, builder)
        for made in builder.made:
            made.metadata_props["aigcc.made_by"] = ctx.maker
    return is_changed


def _multiply(place: Place, scale: Array, builder: Builder) -> None:
    weight, tensor = place.weight, place.weight.tensor
    wide, dtype = weight.along_inputs(scale), tensor.dtype

    def scaled(array: Array) -> Array:
        return (array.astype(np.float32) * wide).astype(dtype.numpy())

    shape = tuple(tensor.shape.numpy())
    made = derive(scaled, tensor, dtype=dtype, shape=shape, name=tensor.name or "")
    replace_constant(place.node, 1, made, builder)


def _divide(group: Group, scale: Array, builder: Builder, module: Module) -> None:
    data, axis = group[0].node.inputs[0], group[0].weight.channel_axis
    assert data is not None and data.dtype is not None
    factor = 1 / scale
    readers = {place.node for place in group}
    edits = plan_fold(data, axis, len(scale), readers)
    if edits is not None:
        apply_fold(edits, factor, builder)
        return
    rank = len(group[0].weight.tensor.shape) if axis == 1 else 0
    wide = factor.reshape(-1, *[1] * (rank - 2)) if axis == 1 else factor
    builder.stem = data.name or "activation"
    divided = builder.Mul(data, wide.astype(data.dtype.numpy()), _like=data)
    divided.producer().metadata_props[MIGRATED] = "1"
    module.graph.insert_before(group[0].node, divided.producer())
    for place in group:
        place.node.replace_input_with(0, divided)
