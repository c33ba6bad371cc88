"""Samples for the trained models: each callable yields feeds, from input name to array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]


def face_gan(count: int = 32) -> Iterator[Feed]:
    """`latent`: normal noise, which is what the generator was trained on; one face a feed."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield {"latent": generator.standard_normal((1, 100, 1, 1), dtype=np.float32)}


def terrain(count: int = 4) -> Iterator[Feed]:
    """Pure noise at the highest level, from the easiest terrain to the hardest; one map a feed."""
    generator = np.random.default_rng(0)
    sigma = np.array([80.0], np.float32)
    for difficulty in np.linspace(0.0, 1.0, count, dtype=np.float32):
        yield {
            "noisy": sigma * generator.standard_normal((1, 1, 128, 128), dtype=np.float32),
            "sigma": sigma,
            "difficulty": difficulty[None],
        }


def faces(count: int = 16) -> Iterator[Feed]:
    """`image`: 64 px faces in [0, 1] that the face GAN draws, to upscale.

    Raises:
        CompileError: The face GAN has not been fetched.
    """
    import torch

    from aigcc.models import trained

    generator = trained.face_gan().module
    for feed in face_gan(count):
        image: NDArray[np.float32] = generator(torch.from_numpy(feed["latent"])).numpy()
        yield {"image": image * np.float32(0.5) + np.float32(0.5)}
