"""Quantising nodes of a module in place, each in the scheme that was chosen for it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import onnx.defs
import onnx_ir as ir

from aigcc.analysis.calibration.calibrate import Calibration, calibrate
from aigcc.analysis.calibration.statistics import Channels
from aigcc.analysis.grids import Clip, limits
from aigcc.cache import cache_folder
from aigcc.errors import CompileError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.weights import constant
from aigcc.passes.quant.merging import merged_outputs
from aigcc.passes.quant.placement import (
    NARROW,
    Scheme,
    Weight,
    find_scheme,
    schemes,
    table_of,
    weight_of,
)
from aigcc.passes.quant.refusals import refusal
from aigcc.passes.quant.region import PLAIN, RangeOf, Regions, Tuning
from aigcc.passes.quant.summary import INSIDE, NO_KERNEL
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import remove_dead, replace_value
from aigcc.samples import Samples

Method = Literal["minmax", "percentile", "entropy", "mse"]

PRECISION = "aigcc.precision"
"""Where a node keeps the scheme that it shall run in, as assign-precision leaves it."""

FULL = "full"
"""The scheme of a node that stays as it is."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A node that is going to be quantised, and how."""

    graph: GraphLike
    node: ir.Node
    weight: Weight
    scheme: Scheme


def places(module: Module, default: str, ctx: Context) -> Iterator[Place]:
    """The nodes to quantise: in the scheme that each keeps, or in the default one.

    Raises:
        CompileError: a node keeps a scheme that the target does not have, or no types are known.
    """
    known = schemes(ctx.target)
    if default != FULL:
        find_scheme(default, ctx.target)
    found: list[Place] = []
    untyped = False
    for graph in module.graphs():
        for node in graph:
            weight = weight_of(node) or table_of(node)
            name = node.metadata_props.get(PRECISION, default)
            if name == FULL:
                continue
            if weight is None:
                if reason := refusal(node):
                    ctx.decline(node, reason, why=NO_KERNEL)
                continue
            scheme = known.get(name) or find_scheme(name, ctx.target)
            if node.op_type not in scheme.kernels:
                reason = obstacle(node, weight, scheme, module.opset)
                ctx.decline(node, reason, why=NO_KERNEL)
            elif node.outputs[0].dtype is None or _activation(node).dtype is None:
                ctx.decline(node, "the types of its values are not known: see infer-shapes")
                untyped = True
            elif graph is not module.graph and scheme.is_calibrated:
                reason = "in a sub-graph or function, where no range is calibrated"
                ctx.decline(node, reason, why=INSIDE)
            elif reason := obstacle(node, weight, scheme, module.opset):
                ctx.decline(node, reason, why=NO_KERNEL)
            else:
                found.append(Place(graph, node, weight, scheme))
    if untyped and not found:
        raise CompileError(
            "the types of values are not known, so nothing can be quantised",
            hint="run infer-shapes or canonicalize first",
        )
    yield from _with_tables(found, ctx)


def planned(module: Module, default: str, ctx: Context) -> Iterator[tuple[ir.Node, Scheme]]:
    """The nodes that are to be quantised, and how, whether they can be or not."""
    known = schemes(ctx.target)
    for node in module.nodes():
        scheme = known.get(node.metadata_props.get(PRECISION, default))
        if scheme is not None and (weight_of(node) or table_of(node)) is not None:
            yield node, scheme


def obstacle(node: ir.Node, weight: Weight, scheme: Scheme, opset: int) -> str:
    """Why a node cannot take a scheme; empty where it can.

    Args:
        node: Its values have types.
        weight: Its weight, or its table.
        scheme: What it shall take.
        opset: The version of the default operator set.
    """
    kernel = scheme.kernels.get(node.op_type)
    if kernel is None:
        return f"{scheme.name} has no kernel for {node.op_type}"
    if kernel.group_inputs > _group_inputs(weight):
        least = kernel.group_inputs
        return f"{scheme.name} takes longer than float with less than {least} channels in a group"
    data = _activation(node)
    if constant(data) is not None:
        return "what it reads is the same in each run: see fold-constants"
    if scheme.dynamic and data.dtype != ir.DataType.FLOAT:
        return f"{scheme.name} finds ranges of float32 alone"
    least = least_opset(node, scheme)
    return f"{scheme.name} needs opset {least}: see convert-opset" if opset < least else ""


def _group_inputs(weight: Weight) -> float:
    """Input channels in a group of a convolution; of one group as many as anybody wants."""
    shape = weight.tensor.shape.numpy()
    return shape[weight.in_axis] if weight.groups > 1 else math.inf


def least_opset(node: ir.Node, scheme: Scheme) -> int:
    """From which opset a node's scales may have its own type, and all else is legal, too."""
    narrow = _first_with(node.op_type, scheme.weight) if scheme.weight in NARROW else 13
    return max(scheme.opset, narrow, 19 if node.outputs[0].dtype in NARROW else 13)


@functools.cache
def _first_with(op: str, dtype: ir.DataType) -> int:
    """The first opset in which an operator takes a type; one past the last where none does."""
    last = onnx.defs.onnx_opset_version()
    wanted = f"tensor({dtype.name.lower()})"
    versions = range(13, last + 1)
    found = (v for v in versions if wanted in onnx.defs.get_schema(op, v, "").inputs[0].types)
    return next(found, last + 1)


def _activation(node: ir.Node) -> ir.Value:
    """What a product multiplies with its weight, or what a Gather looks up."""
    value = node.inputs[1 if node.op_type == "Gather" else 0]
    assert value is not None
    return value


def _turn(place: Place) -> ir.Node | None:
    """The Transpose between a product and its weight, if any."""
    read = place.node.inputs[1]
    return None if read is None or not place.weight.turned else read.producer()


def _with_tables(found: Sequence[Place], ctx: Context) -> Iterator[Place]:
    """Tables share the numbers of a product that reads the same weight; other readers keep them."""
    products: dict[ir.Value, list[Place]] = {}
    for place in found:
        if place.node.op_type != "Gather" and place.weight.is_by_rows:
            products.setdefault(place.weight.value, []).append(place)
    gathers = {place.node for place in found if place.node.op_type == "Gather"}
    for place in found:
        node, value = place.node, place.weight.value
        if node not in gathers:
            yield place
            continue
        tied = products.get(value, [])
        known = gathers | {other.node for other in tied}
        known |= {turn for other in tied if (turn := _turn(other)) is not None}
        ids = node.inputs[1]
        if any(user not in known for user, _ in value.uses()):
            ctx.decline(node, f"its table {value.name} is read otherwise elsewhere")
        elif place.scheme.weight.bitwidth < 8:
            ctx.decline(node, "Gather takes no numbers of less than 8 bits")
        elif tied and (ids is None or ids.shape is None or tied[0].scheme != place.scheme):
            ctx.decline(node, f"it cannot share the numbers of {tied[0].node.name}")
        else:
            yield dataclasses.replace(place, weight=tied[0].weight) if tied else place


def wanted_ranges(places: Iterable[Place], every: GraphLike | None = None) -> dict[str, int | None]:
    """The activations whose ranges are needed, with the axis of their channels.

    Of one that is read or written along several axes no channels are told apart.

    Args:
        places: The nodes that will be quantised.
        every: The main graph: its activations that stay float, or get ranges at run time, too.
    """
    wanted: dict[str, int | None] = {}

    def want(value: ir.Value | None, axis: int) -> None:
        assert value is not None and value.name is not None
        same = wanted.get(value.name, axis) == axis
        wanted[value.name] = axis if same else None

    for place in places:
        if not place.scheme.is_calibrated:
            data = place.node.inputs[0]
            if place.graph is every and place.node.op_type != "Gather":
                want(data, place.weight.channel_axis)
            continue
        want(place.node.inputs[0], place.weight.channel_axis)
        if place.scheme.kernels[place.node.op_type].output:
            want(place.node.outputs[0], place.weight.channel_axis)
    return wanted


def samples_of(ctx: Context) -> Samples:
    """The samples to calibrate on.

    Raises:
        CompileError: there are none.
    """
    samples = ctx.calibration_samples or ctx.samples
    if samples is None:
        raise CompileError(
            "there are no samples to calibrate activations on",
            hint="give --samples, or take a scheme and options that leave activations alone",
        )
    return samples


def calibrated(
    module: Module, places: Iterable[Place], ctx: Context, every: bool = False
) -> Calibration | None:
    """Statistics of the activations that need ranges: those of an earlier pass where they are.

    Args:
        module: Whose activations.
        places: The nodes that will be quantised.
        ctx: Has samples; keeps the calibration.
        every: Also the activations of the main graph that stay float, or get ranges at run time.

    Raises:
        CompileError: there are no samples to calibrate on.
    """
    wanted = wanted_ranges(places, module.graph if every else None)
    if not wanted:
        return None
    if ctx.calibration is None or not wanted.keys() <= ctx.calibration.tensors.keys():
        ctx.calibration = calibrate(
            module,
            samples_of(ctx),
            wanted,
            cache=cache_folder() / "calibration",
            progress=ctx.progress,
        )
    return ctx.calibration


def ranges(calibration: Calibration | None, method: Method) -> RangeOf:
    """The range of an activation for a scheme, by a method."""

    def range_of(value: ir.Value, scheme: Scheme) -> tuple[float, float]:
        assert calibration is not None and scheme.activation is not None and value.name is not None
        low, high = limits(scheme.activation)
        # what is clipped is lost to all terms of an activation
        how = "minmax" if scheme.activation_terms > 1 else method
        return calibration.range(value.name, how, int(high - low) + 1, scheme.symmetric)

    return range_of


def channels_of(calibration: Calibration | None) -> dict[str, Channels]:
    """Statistics by channel, of the values that have them."""
    known = {} if calibration is None else calibration.tensors
    return {name: s.channels for name, s in known.items() if s.channels is not None}


def quantise(
    module: Module,
    places: Iterable[Place],
    range_of: RangeOf,
    clip: Clip,
    ctx: Context,
    tuning: Tuning = PLAIN,
) -> None:
    """Rewrite node by node; weights are rounded when the module is saved.

    Raises:
        CompileError: a weight holds NaN or infinity.
    """
    names = Names(module)
    regions: dict[GraphLike, Regions] = {}
    places = list(places)
    merged = merged_outputs((place.node, place.scheme) for place in places)
    tuning = dataclasses.replace(tuning, merged=merged)
    for place in places:
        ctx.progress(f"quantising {place.node.name}", 0.0)
        if not ctx.rewrite(place.node, f"{place.node.op_type} as {place.scheme.name}"):
            return
        graph = place.graph
        if graph not in regions:
            regions[graph] = Regions(graph, names, ctx.maker, module.opset, range_of, clip, tuning)
        region = regions[graph].make(place.node, place.weight, place.scheme)
        graph.insert_before(place.node, [*region.shared, *region.made])
        for node in region.made:
            for key, fact in place.node.metadata_props.items():
                node.metadata_props.setdefault(key, fact)
            node.metadata_props[PRECISION] = place.scheme.name
        replace_value(graph, place.node.outputs[0], region.result, names, fresh=True)
        remove_dead([place.node])
        _hand_on_name(place.node, region.made)


def _hand_on_name(old: ir.Node, made: Iterable[ir.Node]) -> None:
    """Let the first product that stands for a node have its name: messages and recipes go by it."""
    for node in made:
        if node.op_type in (old.op_type, f"{old.op_type}Integer"):
            node.name = old.name
            return
