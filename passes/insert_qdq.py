"""Quantisation: Q/DQ nodes where a target's table wants them, so that its integer kernels run."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from aigcc.analysis.budget import Budget
from aigcc.analysis.grids import Clip
from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.passes.quant.quantise import Method, calibrated, places, quantise, ranges
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_LEAST = "sqnr>=10"  # with less the outputs are noise, and something is wrong


@dataclasses.dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantise convolutions and matrix products with constant weights.

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
    """

    name: ClassVar[str] = "insert-qdq"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse", "legalize", "assign-precision")
    exact: ClassVar[bool] = False
    scheme: str = option("w8a8", "of nodes that no recipe names; full leaves these alone")
    calibration: Method = option("mse", "how the range of an activation is chosen")
    clip: Clip = option("max", "how the range of a weight is chosen")

    def run(self, module: Module, ctx: Context) -> None:
        """Calibrate what needs ranges, then rewrite node by node."""
        found = list(places(module, self.scheme, ctx))
        if ctx.budget is None:
            ctx.budget = Budget.parse(_LEAST)
        calibration = calibrated(module, found, ctx)
        quantise(module, found, ranges(calibration, self.calibration), self.clip, ctx)
