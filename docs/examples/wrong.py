"""Samples that do not fit denoise.onnxtxt, to see what is said about them."""

import numpy as np


def shaped():
    """Without the axis for the batch."""
    yield {"noisy": np.ones(4, "float32"), "sigma": np.ones(1, "float32")}
