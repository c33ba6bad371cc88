"""What quantising costs a model: each node alone, and quality against bits as nodes add up."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.budget import Budget
from aigcc.analysis.damage import Damage
from aigcc.errors import CompileError
from aigcc.exact import open_exact
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.text.facts import module_path, source_line
from aigcc.ir.weights import is_float
from aigcc.passes.quant.placement import Scheme, schemes, weight_of
from aigcc.passes.quant.quantise import (
    FULL,
    PRECISION,
    Place,
    calibrated,
    places,
    quantise,
    ranges,
)
from aigcc.passes.quant.region import RangeOf
from aigcc.passes.quant.switch import Choice, Switch
from aigcc.pipeline.context import Context
from aigcc.samples import Feeds
from aigcc.target import node_label

Array = npt.NDArray[Any]

_POINTS = 8
_SAMPLES = 4
_SQNR = Budget.parse("sqnr>=0")  # of which relative noise uses up just its own amount
_HOPELESS = 1e30  # relative noise of what is NaN or infinite


@dataclasses.dataclass(frozen=True)
class Node:
    """A convolution or matrix product with a constant weight.

    Attributes:
        position: In the main graph.
        name: Of the node.
        op: Its operator.
        elements: Of its weight.
        bits: Of an element, as the model has it.
        sqnr: By scheme: SQNR in dB of the model's worst output with this node alone quantised, on
            the first sample.
        module: The torch module that it came from, if the exporter said.
        source: The line of the torch source.
    """

    position: int
    name: str
    op: str
    elements: int
    bits: float
    sqnr: Mapping[str, float]
    module: str | None
    source: str | None

    @property
    def worst(self) -> float:
        """The lowest SQNR of its schemes."""
        return min(self.sqnr.values(), default=math.inf)


@dataclasses.dataclass(frozen=True)
class Point:
    """A mixture of schemes, built and run as a whole.

    Attributes:
        bits: Mean bits of an element of the weights, with the scales of blocks.
        sqnr: In dB, of the worst output and sample.
        schemes: How many nodes are in each scheme, "full" among them.
    """

    bits: float
    sqnr: float
    schemes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Curve:
    """What was measured of a model.

    Attributes:
        nodes: The most sensitive first.
        points: From the model as it is to all nodes in their lowest schemes.
        schemes: Bits of a weight's element, by the schemes that were tried.
        skipped: Why other schemes were not, by their names.
        inside: Nodes in sub-graphs and functions, which stay as they are.
        samples: How many samples the points were measured on.
    """

    nodes: Sequence[Node]
    points: Sequence[Point]
    schemes: Mapping[str, float]
    skipped: Mapping[str, str]
    inside: int
    samples: int


@dataclasses.dataclass(frozen=True)
class _Move:
    """A node that goes from one scheme to the next lower one."""

    position: int
    scheme: str
    saved: float
    cost: float


def measure_curve(module: Module, ctx: Context) -> Curve:
    """Run a model with each node alone in each scheme, and as a whole along the curve.

    Nodes move to lower schemes in the order of least error per bit saved: for each node the schemes
    on the lower convex hull of error over bits, as for Pareto-optimal mixtures of independent
    errors (Shoham and Gersho, Efficient bit allocation, 1988). Eight mixtures, evenly spaced in
    bits, are built and measured on up to four samples.

    Args:
        module: As its nodes are to be quantised; not changed.
        ctx: Samples; the target whose table of schemes counts, if any; threads; progress.

    Raises:
        CompileError: there is nothing to quantise, no output is a float, or the model does not run.
    """
    module = module.clone()
    infer_shapes(module.model)  # Q/DQ nodes take the types of what they round
    # what stands in for another only matters on machines that clip, and here nothing is clipped
    known = {name: s for name, s in schemes(ctx.target).items() if not s.instead_of}
    if not known:
        name = "" if ctx.target is None else ctx.target.name
        raise CompileError(
            f"the table of {name} has no schemes",
            hint="leave --target out to try the portable ones",
        )
    choices = list(_choices(module, known))
    if not choices:
        raise CompileError(
            "the model has no convolution or matrix product with a constant weight that a scheme "
            "fits",
            at=str(module.path or "module"),
            hint="if its weights are computed, run aigcc opt with fold-constants first",
        )
    nodes = list(module.graph)
    everywhere = [
        Place(module.graph, nodes[choice.position], choice.weight, scheme)
        for choice in choices
        for scheme in choice.schemes
    ]
    exact = _Exact.run(module, ctx)
    range_of = ranges(calibrated(module, everywhere, ctx), "mse")
    noises, skipped = _alone(module, choices, known, range_of, exact.feeds[0], ctx)
    tried = set().union(*noises.values())
    if not tried:
        raise CompileError(
            f"ONNX Runtime runs none of the schemes {', '.join(skipped)}",
            hint=next(iter(skipped.values())),
        )
    bits = {name: scheme.bytes_of(1) * 8 for name, scheme in known.items() if name in tried}
    found = [_node(nodes[choice.position], choice, noises[choice.position]) for choice in choices]
    points = _measure_points(module, found, noises, bits, range_of, exact, ctx)
    inside = sum(
        weight_of(node) is not None
        for graph in module.graphs()
        if graph is not module.graph
        for node in graph
    )
    ranked = sorted(found, key=lambda node: node.worst)
    return Curve(ranked, points, bits, skipped, inside, len(exact.feeds))


@dataclasses.dataclass(frozen=True)
class _Exact:
    """Samples, and what the model as it is makes of them."""

    feeds: Sequence[Feeds]
    outputs: Sequence[Mapping[str, Array]]

    @classmethod
    def run(cls, module: Module, ctx: Context) -> _Exact:
        assert ctx.samples is not None
        session = open_exact(module, ctx.threads)
        feeds = list(ctx.samples.at(ctx.samples.spaced(_SAMPLES)))
        outputs = [ctx.samples.run(session, feed) for feed in feeds]
        if not any(is_float(array) for array in outputs[0].values()):
            raise CompileError("no output of the model is a float, so there is no SQNR of it")
        return cls(feeds, outputs)

    def noise_of(self, made: Module, ctx: Context) -> float:
        """Relative noise of another module, on the worst sample."""
        session = open_exact(made, ctx.threads)
        damage = Damage(_SQNR)
        for feeds, outputs in zip(self.feeds, self.outputs, strict=True):
            damage.add(feeds, outputs, session.run(feeds))
        return _noise(damage)


def _choices(module: Module, known: Mapping[str, Scheme]) -> Iterator[Choice]:
    for position, node in enumerate(module.graph):
        weight = weight_of(node)
        fitting = tuple(scheme for scheme in known.values() if node.op_type in scheme.kernels)
        if weight is not None and fitting:
            yield Choice(position, weight, fitting)


def _alone(
    module: Module,
    choices: Sequence[Choice],
    known: Mapping[str, Scheme],
    range_of: RangeOf,
    feeds: Feeds,
    ctx: Context,
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """Relative noise by position and scheme, and the schemes that do not run, with the reason."""
    noises: dict[int, dict[str, float]] = {choice.position: {} for choice in choices}
    skipped: dict[str, str] = {}
    for done, (name, scheme) in enumerate(known.items()):
        tried = [
            dataclasses.replace(choice, schemes=(scheme,))
            for choice in choices
            if scheme in choice.schemes
        ]
        if not tried:
            continue
        if module.opset < scheme.opset:
            skipped[name] = f"it needs opset {scheme.opset}, which convert-opset converts to"
            continue
        ctx.progress(f"measuring nodes alone in {name}", done / len(known))
        try:
            found = _alone_in(name, module, tried, range_of, feeds, ctx)
        except CompileError as error:
            skipped[name] = error.what
            continue
        for position, noise in found.items():
            noises[position][name] = noise
    return noises, skipped


def _alone_in(
    name: str,
    module: Module,
    tried: Sequence[Choice],
    range_of: RangeOf,
    feeds: Feeds,
    ctx: Context,
) -> dict[int, float]:
    """Relative noise by position, in one scheme."""
    switch = Switch(module, tried, range_of, threads=ctx.threads, integers=False)
    reference = switch.run(feeds, ())
    found = {}
    for choice in tried:
        damage = Damage(_SQNR)
        damage.add(feeds, reference, switch.run(feeds, {(choice.position, name)}))
        found[choice.position] = _noise(damage)
    return found


def _noise(damage: Damage) -> float:
    """Power of the error over power of the output, of the worst output."""
    noise = max(damage.used().values())
    return noise if noise < _HOPELESS else _HOPELESS  # NaN is not less


def _node(node: ir.Node, choice: Choice, noise: Mapping[str, float]) -> Node:
    tensor = choice.weight.tensor
    return Node(
        choice.position,
        node_label(node),
        node.op_type,
        tensor.size,
        tensor.dtype.bitwidth,
        {name: _decibel(share) for name, share in noise.items()},
        module_path(node.metadata_props),
        source_line(node.metadata_props),
    )


def _decibel(noise: float) -> float:
    if noise >= _HOPELESS:
        return -math.inf
    return -10 * math.log10(noise) if noise else math.inf


def _moves(node: Node, noise: Mapping[str, float], bits: Mapping[str, float]) -> Iterator[_Move]:
    """Down the lower convex hull of a node's noise over bits."""
    now, at, steepest = node.bits, 0.0, -math.inf
    while True:
        lower = {
            name: ((noise[name] - at) / ((now - bits[name]) * node.elements), bits[name])
            for name in noise
            if bits[name] < now
        }
        if not lower:
            return
        name = min(lower, key=lower.__getitem__)
        steepest = max(steepest, lower[name][0])
        yield _Move(node.position, name, (now - bits[name]) * node.elements, steepest)
        now, at = bits[name], noise[name]


def _measure_points(
    module: Module,
    nodes: Sequence[Node],
    noises: Mapping[int, Mapping[str, float]],
    bits: Mapping[str, float],
    range_of: RangeOf,
    exact: _Exact,
    ctx: Context,
) -> list[Point]:
    """Mixtures along the curve, as whole models."""
    moves = sorted(
        (move for node in nodes for move in _moves(node, noises[node.position], bits)),
        key=lambda move: move.cost,
    )
    elements = sum(node.elements for node in nodes)
    before = sum(node.bits * node.elements for node in nodes)
    left = [before - saved for saved in itertools.accumulate((m.saved for m in moves), initial=0)]
    points = [Point(before / elements, math.inf, {FULL: len(nodes)})]
    stops = _spread(left)
    for done, stop in enumerate(stops):
        ctx.progress(f"measuring mixture {done + 1} as a whole", done / len(stops))
        precision = {move.position: move.scheme for move in moves[:stop]}
        noise = exact.noise_of(_build(module, precision, range_of, ctx), ctx)
        counts = Counter(precision.get(node.position, FULL) for node in nodes)
        used = {name: counts[name] for name in (FULL, *bits) if name in counts}
        points.append(Point(left[stop] / elements, _decibel(noise), used))
    return points


def _spread(left: Sequence[float]) -> list[int]:
    """How many moves to make for each point, so that points are evenly spaced in bits."""
    step = (left[0] - left[-1]) / _POINTS
    wanted = [left[0] - step * (number + 1) for number in range(_POINTS)]
    nearest = [min(range(len(left)), key=lambda i: abs(left[i] - goal)) for goal in wanted]
    return sorted({*nearest, len(left) - 1} - {0})


def _build(module: Module, precision: Mapping[int, str], range_of: RangeOf, ctx: Context) -> Module:
    made = module.clone()
    for position, node in enumerate(made.graph):
        node.metadata_props[PRECISION] = precision.get(position, FULL)
    silent = dataclasses.replace(ctx, remarks=[], rewrites=Counter(), limit=None)
    quantise(made, list(places(made, FULL, silent)), range_of, "max", silent)
    return made
