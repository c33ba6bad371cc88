"""Equal ranges: of the channels between two layers, and of the channels of an output."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.channel_scales import tamed
from aigcc.analysis.grids import Affine

Array = npt.NDArray[Any]


def equal_scale(outputs: Array, inputs: Array) -> Array:
    """The scale between two layers that gives both equal ranges in each channel (equalisation).

    Nagel et al., 2019: with `s = sqrt(r1 / r2)` both have `sqrt(r1 r2)`.

    Args:
        outputs: Largest magnitude of the first weight for each of its outputs, [channels].
        inputs: The same of the second weight for each of its inputs, [channels].

    Returns:
        What the second weight is multiplied by, and the first divided by.
    """
    outputs, inputs = outputs.astype(np.float64), inputs.astype(np.float64)
    live = (outputs > 0) & (inputs > 0)
    return tamed(np.sqrt(np.where(live, outputs, 1.0) / np.where(live, inputs, 1.0)), live)


def channel_grids(
    low: Array, high: Array, dtype: ir.DataType, symmetric: bool
) -> tuple[Array, Array]:
    """A grid for each channel of an output: scales, float32, and zero points, both [channels].

    A kernel that writes quantised numbers has one grid. With weights and bias divided by the scale
    of their channel, and its zero point in the bias, that one grid serves them all (the idea of
    Nagel et al., 2019, without a second layer): only the DequantizeLinear behind it tells channels
    apart. Exact, and free wherever weights have scales by channel.

    Args:
        low: Smallest number of each channel, [channels].
        high: Largest number of each channel, [channels].
        dtype: Of the numbers.
        symmetric: Whether zero points have to be in the middle of the grid.
    """
    grids = [
        Affine.over(a, b, dtype, symmetric)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    ]
    scale = np.array([grid.scale for grid in grids], np.float32)
    return scale, np.array([grid.zero for grid in grids], dtype.numpy())
