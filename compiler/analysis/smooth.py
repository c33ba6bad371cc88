"""SmoothQuant: scales that move the outliers of activations into the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.channel_scales import tamed

Array = npt.NDArray[Any]


def smooth_scale(activation: Array, weight: Array, alpha: float) -> Array:
    """The scale that moves the outliers of activations into the weights (SmoothQuant).

    Xiao et al., 2022: `s = max|x| ** alpha / max|w| ** (1 - alpha)`. A channel that reaches less
    far than the median counts as if it reached so far: what a few samples leave quiet, as behind
    GELU, may be loud in the next one, and would be clipped there.

    Args:
        activation: Largest magnitude of each channel, [inputs].
        weight: The same of the weights that it meets, [inputs].
        alpha: From 0, all is left to the activation, to 1, all to the weights.
    """
    activation, weight = activation.astype(np.float64), weight.astype(np.float64)
    live = (activation > 0) & (weight > 0)
    if live.any():
        activation = np.maximum(activation, np.median(activation[live]))
    x, w = np.where(live, activation, 1.0), np.where(live, weight, 1.0)
    return tamed(x**alpha / w ** (1 - alpha), live)
