"""Samples for denoise.onnxtxt: what the sampler of a diffusion model feeds it."""

import numpy as np


def steps():
    """From pure noise to a clean image in four steps."""
    random = np.random.default_rng(0)
    for sigma in (80.0, 8.0, 0.8, 0.08):
        noisy = sigma * random.standard_normal((1, 4))
        yield {"noisy": noisy.astype("float32"), "sigma": np.array([[sigma]], "float32")}
