"""Which scales move between activations and weights: by SmoothQuant, AWQ, or equalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.awq import awq_scale
from aigcc.analysis.calibration.statistics import Channels
from aigcc.analysis.equalise import equal_scale
from aigcc.analysis.gptq import output_error
from aigcc.analysis.grids import SMALLEST_SCALE
from aigcc.analysis.smooth import smooth_scale
from aigcc.ir.module import Module
from aigcc.ir.weights import constant
from aigcc.passes.quant.migrate import Group, groups
from aigcc.passes.quant.placement import CONVOLUTIONS, NARROW, Weight, weight_of
from aigcc.passes.quant.probe import Reader, batches, measure
from aigcc.passes.quant.quantise import Place
from aigcc.passes.quant.terms import grid_of, release, storable
from aigcc.pipeline.context import Context
from aigcc.samples import Samples

Array = npt.NDArray[Any]

_ROUNDS = 20  # of equalisation along a chain, which moves less each time
_STILL = 0.01


def smooth_scales(
    module: Module, places: Sequence[Place], channels: Mapping[str, Channels], alpha: float
) -> dict[str, Array]:
    """By activation that is going to be quantised, the scales of SmoothQuant."""
    found = {}
    for group in groups(module, places):
        name = _name(group)
        if any(place.scheme.activation in (None, *NARROW) for place in group):
            continue
        if name in channels:
            reach = np.max([_input_reach(place.weight) for place in group], axis=0)
            found[name] = smooth_scale(channels[name].absmax, reach, alpha)
    return found


def awq_scales(
    module: Module, places: Sequence[Place], samples: Samples, ctx: Context
) -> dict[str, Array]:
    """By activation that stays float, the scales of AWQ."""
    jobs: dict[int, Group] = {}
    readers: list[list[Reader]] = []
    for group in groups(module, places):
        if any(place.scheme.activation is not None for place in group):
            reason = "AWQ is for schemes that leave activations alone; see smooth"
            ctx.decline(group[0].node, reason)
            continue
        readers.append([Reader(place.node, place.weight) for place in group])
        jobs[id(readers[-1])] = group
    found: dict[str, Array] = {}
    for batch in batches(readers):
        moments = measure(module, [r for job in batch for r in job], samples, ctx)
        for job in batch:
            group = jobs[id(job)]
            ctx.progress(f"scaling {_name(group)}", len(found) / len(jobs))
            found[_name(group)] = _awq(group, [moments[r.key] for r in job], job)
    return found


def _awq(group: Group, moments: list[list[Array]], readers: Sequence[Reader]) -> Array:
    weights = [np.asarray(place.weight.tensor.numpy(), np.float32) for place in group]
    magnitude = np.sqrt(readers[0].energy(moments[0]))

    def damage(scale: Array) -> float:
        total = 0.0
        for place, array, moment, reader in zip(group, weights, moments, readers, strict=True):
            wide, grid = place.weight.along_inputs(scale), grid_of(place.weight, place.scheme)
            moved = array * wide
            steps = storable(grid.scale(moved), place.weight.tensor.dtype)
            left = (grid.back(grid.round(moved, steps), steps) - moved) / wide
            matrix = place.weight.as_matrix(left)
            for part, each in zip(reader.parts, moment, strict=True):
                total += float(output_error(matrix[part.rows, part.columns], each).sum())
        return total

    scale = awq_scale(magnitude, damage)
    for place in group:
        release(place.weight.tensor)
    return scale


def equal_scales(module: Module, places: Sequence[Place]) -> dict[str, Array]:
    """By activation between two convolutions, the scales of cross-layer equalisation.

    Along a chain of convolutions one pair undoes a little of what its neighbour gained, so pairs
    are equalised in turns until nothing moves, on the largest magnitudes of kernels alone. But no
    channel is amplified until its bias is beyond all others': all that follows it would have the
    range of that one.
    """
    pairs = []
    for group in groups(module, places):
        first = _first_convolution(group)
        if first is not None:
            pairs.append((_name(group), first, group[0].node))
    kernels: dict[ir.Node, Array] = {}
    for _, *ends in pairs:
        for node in ends:
            if node not in kernels:
                kernels[node] = _kernel_reach(node)
    found = {name: np.ones(kernels[second].shape[1], np.float32) for name, _, second in pairs}
    for _ in range(_ROUNDS):
        moved = 0.0
        for name, first, second in pairs:
            scale = equal_scale(kernels[first].max(axis=1), kernels[second].max(axis=0))
            kernels[first] = kernels[first] / scale[:, None]
            kernels[second] = kernels[second] * scale
            found[name] = found[name] * scale
            moved = max(moved, float(np.abs(np.log2(scale)).max(initial=0.0)))
        if moved < _STILL:
            break
    return {name: np.maximum(found[name], _bias_reach(first)) for name, first, _ in pairs}


def _first_convolution(group: Group) -> ir.Node | None:
    """The convolution behind an activation that only one other convolution reads."""
    value = group[0].node.inputs[0]
    if len(group) > 1 or group[0].node.op_type not in CONVOLUTIONS:
        return None
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in CONVOLUTIONS:
            weight = weight_of(node)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            is_free = weight is not None and len(weight.value.uses()) == 1
            return node if is_free and (bias is None or constant(bias) is not None) else None
        if node.op_type not in ("Identity", "LeakyRelu", "Relu"):
            return None
        value = node.inputs[0]
    return None


def _bias_reach(node: ir.Node) -> Array:
    """How far the bias of each output channel is from 0, as a share of the farthest, float32."""
    tensor = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if tensor is None:
        return np.zeros(1, np.float32)
    reach = np.abs(np.asarray(tensor.numpy(), np.float32))
    return reach / max(float(reach.max(initial=0.0)), SMALLEST_SCALE)


def _kernel_reach(node: ir.Node) -> Array:
    weight = weight_of(node)
    assert weight is not None
    found = weight.reach(weight.tensor.numpy())
    release(weight.tensor)
    return found


def _input_reach(weight: Weight) -> Array:
    """The largest magnitude of a weight for each input channel, float32, [channels]."""
    tensor = weight.tensor
    array = tensor.numpy()
    if weight.groups > 1:
        reach = weight.reach(array).max(axis=0)
    else:
        axes = tuple(axis for axis in range(array.ndim) if axis != weight.in_axis)
        reach = np.maximum(array.max(axis=axes), -array.min(axis=axes))
    release(tensor)
    return np.asarray(reach, np.float32)


def _name(group: Group) -> str:
    data = group[0].node.inputs[0]
    assert data is not None and data.name is not None
    return data.name
