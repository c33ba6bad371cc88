"""Quantising nodes of a module in place, each in the scheme that was chosen for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import onnx_ir as ir

from aigcc.analysis.calibrate import Calibration, calibrate
from aigcc.analysis.grids import Clip, limits
from aigcc.cache import cache_folder
from aigcc.errors import CompileError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import Scheme, Weight, find_scheme, schemes, weight_of
from aigcc.passes.quant.region import RangeOf, Regions
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import remove_dead, replace_value

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
        CompileError: a node keeps a scheme that the target does not have.
    """
    known = schemes(ctx.target)
    for graph in module.graphs():
        for node in graph:
            weight = weight_of(node)
            name = node.metadata_props.get(PRECISION, default)
            if weight is None or name == FULL:
                continue
            scheme = known.get(name) or find_scheme(name, ctx.target)
            if node.op_type not in scheme.kernels:
                if PRECISION in node.metadata_props:
                    ctx.decline(node, f"{scheme.name} has no kernel for {node.op_type}")
            elif graph is not module.graph and scheme.is_calibrated:
                ctx.decline(node, "in a sub-graph or function, where no range is calibrated")
            else:
                yield Place(graph, node, weight, scheme)


def wanted_ranges(places: Iterable[Place]) -> dict[str, int | None]:
    """The activations whose ranges are needed, with the axis of their channels."""
    wanted: dict[str, int | None] = {}
    for place in places:
        if not place.scheme.is_calibrated:
            continue
        data, output = place.node.inputs[0], place.node.outputs[0]
        assert data is not None and data.name is not None and output.name is not None
        wanted[data.name] = place.weight.channel_axis
        if place.scheme.kernels[place.node.op_type].output:
            wanted.setdefault(output.name, 1)
    return wanted


def calibrated(module: Module, places: Iterable[Place], ctx: Context) -> Calibration | None:
    """Statistics of the activations that need ranges: those of an earlier pass where they are.

    Raises:
        CompileError: there are no samples to calibrate on.
    """
    wanted = wanted_ranges(places)
    if not wanted:
        return None
    if ctx.calibration is None or not wanted.keys() <= ctx.calibration.tensors.keys():
        samples = ctx.calibration_samples or ctx.samples
        if samples is None:
            raise CompileError(
                "there are no samples to calibrate activations on",
                hint="give --samples, or take a scheme that leaves activations alone",
            )
        ctx.calibration = calibrate(
            module,
            samples,
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


def quantise(
    module: Module, places: Iterable[Place], range_of: RangeOf, clip: Clip, ctx: Context
) -> None:
    """Rewrite node by node; weights are rounded when the module is saved."""
    names = Names(module)
    regions: dict[GraphLike, Regions] = {}
    for place in places:
        ctx.progress(f"quantising {place.node.name}", 0.0)
        if not ctx.rewrite(place.node, f"{place.node.op_type} as {place.scheme.name}"):
            return
        graph = place.graph
        if graph not in regions:
            regions[graph] = Regions(graph, names, ctx.maker, module.opset, range_of, clip)
        region = regions[graph].make(place.node, place.weight, place.scheme)
        graph.insert_before(place.node, [*region.shared, *region.made])
        for node in region.made:
            node.metadata_props[PRECISION] = place.scheme.name
        replace_value(graph, place.node.outputs[0], region.result, names, fresh=True)
        remove_dead([place.node])
