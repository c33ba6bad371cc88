"""Quantisation: Q/DQ nodes where a target's table wants them, so that its integer kernels run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from aigcc.analysis.budget import Budget
from aigcc.analysis.calibration.statistics import Channels
from aigcc.analysis.grids import Clip
from aigcc.errors import PipelineError
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.options import option
from aigcc.passes.quant.correct import correct_biases
from aigcc.passes.quant.exact import fault
from aigcc.passes.quant.merging import merged_outputs
from aigcc.passes.quant.migrate import Array, Group, migrate
from aigcc.passes.quant.placement import NARROW
from aigcc.passes.quant.quantise import (
    Method,
    Place,
    calibrated,
    channels_of,
    places,
    planned,
    quantise,
    ranges,
    samples_of,
)
from aigcc.passes.quant.raising import raise_for
from aigcc.passes.quant.region import Regions, Tuning
from aigcc.passes.quant.rounding import Rounding
from aigcc.passes.quant.scales import awq_scales, equal_scales, smooth_scales
from aigcc.passes.quant.summary import holders, summarise
from aigcc.passes.quant.terms import Key, Term, is_above, key_of, make_terms
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_LEAST = "sqnr>=10"  # with less the outputs are noise, and something is wrong
_MOST = 8  # one of so many channels may be an outlier: more would cost more than they save


@dataclasses.dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantise convolutions, matrix products and embeddings with constant weights.

    ```
    y = MatMul (x, w)
        →   <int8[64,64] wq, float[64] s>
            { q = QuantizeLinear (x, a, z); d = DequantizeLinear (q, a, z)
              wd = DequantizeLinear <axis = 1> (wq, s); y = MatMul (d, wd) }
    ```
    A node takes the scheme that `assign-precision` gave it, else `scheme`. Schemes, and where they
    want scales, zero points, whole biases and quantised outputs, are rows of the target's table
    (`aigcc targets NAME`); the ranges of activations are calibrated on the samples. Weights are
    rounded when the module is saved, one at a time.

    What makes quantised numbers better, each on the calibration samples: `weights=gptq` rounds a
    weight so that its product has the least error (Frantar et al., 2022), as far as one half of
    the samples bears out what was made of the other; `weights=awq` scales
    the input channels of weights whose activations stay float (Lin et al., 2023); `smooth` moves
    outliers of quantised activations into weights (Xiao et al., 2022); `outliers` leaves them in
    float (Dettmers et al., 2022); `equalise` gives channels between convolutions equal ranges, and
    `bias-correction` keeps the mean of outputs (both Nagel et al., 2019). Scales are divided out
    in the constants of what produces an activation, else in a Mul.
    """

    name: ClassVar[str] = "insert-qdq"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse", "legalize", "assign-precision")
    exact: ClassVar[bool] = False
    scheme: str = option("w8a8", "of nodes that no recipe names; full leaves these alone")
    calibration: Method = option("mse", "how the range of an activation is chosen")
    weights: Literal["nearest", "mse", "gptq", "awq"] = option(
        "nearest", "how weights are rounded; mse clips their range as well"
    )
    smooth: float = option(0.0, "the exponent of SmoothQuant, from 0 (off) to 1; 0.5 is usual")
    equalise: bool = option(False, "equal ranges of channels between convolutions")
    bias_correction: bool = option(False, "keep the mean of each output channel")
    outliers: float = option(
        0.0, "channels that reach so many times as far as the median stay float; 0 is off"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.smooth <= 1:
            raise PipelineError(f"smooth is from 0 to 1, not {self.smooth:g}")
        if self.outliers and self.outliers <= 1:
            raise PipelineError(f"outliers is more than 1, or 0 for none, not {self.outliers:g}")

    def run(self, module: Module, ctx: Context) -> None:
        """Move scales, calibrate what needs ranges, then rewrite node by node."""
        if ctx.budget is None:
            ctx.budget = Budget.parse(_LEAST, implied_by=self.name)
        raise_for(planned(module, self.scheme, ctx), module, ctx)
        self._move_scales(module, ctx)
        found = list(places(module, self.scheme, ctx))
        nodes = holders(module)
        for scheme in {place.scheme.name: place.scheme for place in found}.values():
            if reason := fault(scheme, ctx.target):
                ctx.note(None, f"{scheme.name} is written as asked: {reason}")
        calibration = calibrated(module, found, ctx, every=self._wants_channels)
        range_of = ranges(calibration, self.calibration)
        channels = channels_of(calibration)
        outliers = self._outliers(found, channels, ctx)
        merged = merged_outputs((place.node, place.scheme) for place in found)
        tuning = Tuning(channels, outliers, merged=merged)
        regions = Regions(
            module.graph, Names(module), ctx.maker, module.opset, range_of, self._clip, tuning
        )
        if self.weights == "gptq":
            rounding = Rounding(module, samples_of(ctx), regions.floor, tuning.split, ctx)
            inside = [(p.node, p.weight, p.scheme) for p in found if p.graph is module.graph]
            tuning = dataclasses.replace(tuning, rounded=rounding.run(inside))
        if self.bias_correction:
            tuning = self._correct(module, found, regions, tuning, ctx)
        done = {place.node for place in found}
        why = "as the recipe says" if ctx.recipe is not None else f"{self.scheme} was asked for"
        text = summarise(nodes, done, why, ctx.remarks)
        quantise(module, found, range_of, self._clip, ctx, tuning)
        ctx.note(None, text, quantised=len(found))

    @property
    def _clip(self) -> Clip:
        return "mse" if self.weights == "mse" else "max"

    @property
    def _wants_channels(self) -> bool:
        return bool(self.bias_correction or self.outliers)

    def _move_scales(self, module: Module, ctx: Context) -> None:
        """All that leaves the float model as it is; statistics of what was moved are dropped."""
        if self.equalise:
            found = list(places(module, self.scheme, ctx))
            scales = equal_scales(module, found)
            self._migrate(module, found, scales, "channels equalised across two layers", ctx)
        if self.smooth:
            found = list(places(module, self.scheme, ctx))
            calibration = calibrated(module, found, ctx, every=True)
            channels = channels_of(calibration)
            scales = smooth_scales(module, found, channels, self.smooth)
            self._migrate(module, found, scales, "outliers moved into weights", ctx)
        if self.weights == "awq":
            found = list(places(module, self.scheme, ctx))
            if found:
                scales = awq_scales(module, found, samples_of(ctx), ctx)
                self._migrate(module, found, scales, "weights of large activations scaled", ctx)

    def _migrate(
        self,
        module: Module,
        found: list[Place],
        scales: Mapping[str, Array],
        what: str,
        ctx: Context,
    ) -> None:
        def scale_of(group: Group) -> Array | None:
            data = group[0].node.inputs[0]
            return None if data is None else scales.get(data.name or "")

        if migrate(module, found, scale_of, what, ctx):
            ctx.calibration = None

    def _outliers(
        self, found: list[Place], channels: Mapping[str, Channels], ctx: Context
    ) -> dict[str, Array]:
        """By activation, the channels that reach far beyond the others."""
        made: dict[str, Array] = {}
        for place in found if self.outliers else ():
            data = place.node.inputs[0]
            name = "" if data is None else data.name or ""
            is_float = place.scheme.activation in (None, *NARROW)
            if name not in channels or name in made or is_float:
                continue
            reach = channels[name].absmax
            far = np.flatnonzero(reach > self.outliers * np.median(reach))
            if len(far) * _MOST > len(reach):
                ctx.decline(place.node, f"{len(far)} of {len(reach)} channels are outliers")
            elif len(far):
                made[name] = far
        return made

    def _correct(
        self,
        module: Module,
        found: list[Place],
        regions: Regions,
        tuning: Tuning,
        ctx: Context,
    ) -> Tuning:
        """Correct biases for the weights that nodes will have, which are settled by that."""
        settled: dict[Key, Term] = dict(tuning.rounded)

        def term_of(place: Place) -> Term:
            without = tuning.split(place.node, place.scheme)
            key = key_of(place.weight, place.scheme, without)
            floor = regions.floor(place.node, place.scheme)
            if key in settled and is_above(settled[key].scale, floor):
                return settled[key]
            term = make_terms(place.weight, place.scheme, self._clip, floor, without)[0]
            return settled.setdefault(key, term) if key not in settled else term

        inside = [place for place in found if place.graph is module.graph]
        correct_biases(module, inside, term_of, tuning.channels, tuning.split, ctx)
        return dataclasses.replace(tuning, rounded=settled)
