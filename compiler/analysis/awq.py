"""AWQ: scales that protect the weights which meet large activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aigcc.analysis.channel_scales import tamed

Array = npt.NDArray[Any]

ALPHAS = tuple(n / 20 for n in range(20))
"""The exponents that are tried; 0 leaves all as it is."""


class Damage(Protocol):
    """The error of all products of one activation, with its channels divided by scales."""

    def __call__(self, scale: Array) -> float:
        """The summed squared error of outputs.

        Args:
            scale: What weights are multiplied by, [inputs].
        """
        ...


def awq_scale(magnitude: Array, damage: Damage, alphas: Sequence[float] = ALPHAS) -> Array:
    """The scale of each input channel that protects the weights of large activations (AWQ).

    Lin et al., 2023: `s = magnitude ** alpha`, with the alpha that leaves the least error. Weights
    are multiplied by `s` and activations divided by it, so the product stays what it is.

    Args:
        magnitude: A typical magnitude of each channel, [inputs]. The paper takes mean|x|; the root
            of the mean square serves as well, and is at hand.
        damage: The error of a scale. Zero for the exponent means that all are 1, so what comes out
            is never worse than nothing.
        alphas: The exponents to try.
    """
    best, least = np.ones(len(magnitude), np.float32), np.inf
    for alpha in alphas:
        scale = tamed(np.power(magnitude, alpha, dtype=np.float64), magnitude > 0)
        error = damage(scale)
        if error < least:
            best, least = scale, error
    return best
