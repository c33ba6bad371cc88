"""The models that `quantise.py` compares tools on: where they are from, samples, aims, metrics."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.budget import Budget
from aigcc.analysis.damage import Damage
from aigcc.analysis.metrics import Agreement
from aigcc.models import samples, trained

Feeds = Mapping[str, npt.NDArray[Any]]
Metric = Callable[[Sequence[Feeds], Sequence[Feeds], Sequence[Feeds]], str]

HERE = Path(__file__).parent
CALIBRATION = 4
"""How many samples every tool gets; those that results are measured on are others."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and what is asked of it.

    Attributes:
        source: The factory of a torch module, or a function that gives the path of a .onnx file.
        samples: Feeds; the first ones calibrate, the others evaluate.
        mobile: Budgets for aigcc's target `mobile`.
        cpu: Budgets for aigcc's target `cpu`.
        schemes: Schemes of `mobile` that all nodes shall take that can.
        metric: Its name, and what computes it from feeds, expected and given outputs.
        is_transformer: Whether NNCF's guide wants its `ModelType.TRANSFORMER`.
        note: What to know about its weights.
    """

    source: str | Callable[[], Path]
    samples: Callable[[], Iterable[Feeds]]
    mobile: tuple[str, ...]
    cpu: tuple[str, ...]
    schemes: tuple[str, ...] = ()
    metric: tuple[str, Metric] | None = None
    is_transformer: bool = False
    note: str = "random weights, synthetic inputs"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model on disk: the file, and folders of .npz samples."""

    path: Path
    calibration: Path
    evaluation: Path

    def feeds(self) -> list[Feeds]:
        """The samples that results are measured on."""
        return [dict(np.load(file)) for file in sorted(self.evaluation.glob("*.npz"))]


def prepare(name: str, model: Model, cache: Path) -> Prepared:
    """Export a model as torch does by default and write its samples, unless that is done already.

    Raises:
        CompileError: a package that it needs has not been fetched.
    """
    folder = cache / "bench" / name
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    if callable(model.source):
        path = model.source()
    elif not path.exists():
        subprocess.run([sys.executable, HERE / "export.py", model.source, path], check=True)
    made = Prepared(path, folder / "calibration", folder / "evaluation")
    if not made.evaluation.exists():
        feeds = iter(model.samples())
        _write(islice(feeds, CALIBRATION), made.calibration)
        _write(feeds, made.evaluation)
    return made


def _write(feeds: Iterable[Feeds], folder: Path) -> None:
    scratch = folder.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for index, feed in enumerate(feeds):
        np.savez(scratch / f"{index:03}.npz", **feed)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _latents(size: int) -> Iterator[Feeds]:
    random = np.random.default_rng(0)
    for _ in range(2 * CALIBRATION):
        yield {"latents": random.standard_normal((1, 4, size, size), np.float32)}


def _tokens(vocabulary: int, length: int) -> Iterator[Feeds]:
    random = np.random.default_rng(0)
    for _ in range(2 * CALIBRATION):
        yield {"input_ids": random.integers(vocabulary, size=(1, length))}


def _noise(size: int, tokens: int, width: int) -> Iterator[Feeds]:
    random = np.random.default_rng(0)
    for step in np.linspace(20, 980, 2 * CALIBRATION).astype(np.int64)[[1, 3, 5, 7, 0, 2, 4, 6]]:
        yield {
            "sample": random.standard_normal((1, 4, size, size), np.float32),
            "timestep": np.array([step]),
            "encoder_hidden_states": random.standard_normal((1, tokens, width), np.float32),
        }


def _psnr(peak: float) -> Metric:
    """The mean over images of the PSNR in dB."""

    def measure(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
        found = [_agreement(a, b).psnr(peak) for a, b in zip(expected, given, strict=True)]
        return f"{sum(found) / len(found):.1f}"

    return measure


def _cosine(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """The mean over vectors of the cosine."""
    found = []
    for a, b in zip(_rows(expected), _rows(given), strict=True):
        found.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)))
    return f"{sum(found) / len(found):.5f}"


def _retrieval(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """How often the nearest other sentence stays the same, and the mean cosine."""
    nearest = []
    for outputs in (expected, given):
        likeness = np.array(_rows(outputs)) @ np.array(_rows(outputs)).T
        np.fill_diagonal(likeness, -np.inf)
        nearest.append(likeness.argmax(axis=1))
    same = float((nearest[0] == nearest[1]).mean())
    return f"{same:.1%}, {_cosine((), expected, given)}"


def _perplexity(feeds: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """Of all tokens, and how often the likeliest next token stays the same."""
    damage = Damage(Budget.parse("perplexity<=+1%"))
    same = []
    for feed, a, b in zip(feeds, expected, given, strict=True):
        damage.add(feed, a, b)
        same += [_only(a).argmax(-1) == _only(b).argmax(-1)]
    return f"{damage.figures()['perplexity']:.2f}, {float(np.mean(same)):.1%}"


def _agreement(expected: Feeds, given: Feeds) -> Agreement:
    found = Agreement()
    found.add(_only(expected), _only(given))
    return found


def _rows(outputs: Sequence[Feeds]) -> list[npt.NDArray[Any]]:
    return [row for output in outputs for row in _only(output).reshape(-1, _only(output).shape[-1])]


def _only(outputs: Feeds) -> npt.NDArray[Any]:
    (array,) = outputs.values()
    return array


def sqnr(expected: Sequence[Feeds], given: Sequence[Feeds]) -> float:
    """Signal to quantisation noise in dB, of the worst output of the worst sample."""
    damage = Damage(Budget(()))
    for a, b in zip(expected, given, strict=True):
        damage.add({}, a, b)
    return damage.figures().get("sqnr", math.nan)


_REAL = "trained, real data"
_ZOO = "aigcc.models"
MODELS = {
    "gpt2": Model(
        f"{_ZOO}.gpt2:full",
        lambda: _tokens(50257, 128),
        mobile=("sqnr>=33", "latency<=0.5x"),
        cpu=("sqnr>=33", "latency<=0.25x"),
        is_transformer=True,
    ),
    "vae": Model(
        f"{_ZOO}.vae:full",
        lambda: _latents(32),
        mobile=("sqnr>=27", "latency<=0.75x"),
        cpu=("sqnr>=27", "latency<=0.15x"),
    ),
    "unet_medium": Model(
        f"{_ZOO}.unet:medium",
        lambda: _noise(32, 77, 256),
        mobile=("sqnr>=30", "latency<=0.95x"),
        cpu=("sqnr>=30", "latency<=0.3x"),
        is_transformer=True,
    ),
    "gpt2_tiny": Model(
        f"{_ZOO}.gpt2:tiny",
        lambda: _tokens(256, 64),
        mobile=("sqnr>=33", "latency<=0.9x"),
        cpu=("sqnr>=33",),
        is_transformer=True,
    ),
    "vae_tiny": Model(
        f"{_ZOO}.vae:tiny",
        lambda: _latents(16),
        mobile=("sqnr>=27", "latency<=0.9x"),
        cpu=("sqnr>=27",),
    ),
    "unet_tiny": Model(
        f"{_ZOO}.unet:tiny",
        lambda: _noise(16, 8, 32),
        mobile=("sqnr>=30", "latency<=0.9x"),
        cpu=("sqnr>=30",),
        is_transformer=True,
    ),
    "face_gan": Model(
        f"{_ZOO}.trained:face_gan",
        lambda: samples.face_gan(20),
        mobile=("psnr>=35",),
        cpu=("psnr>=35",),
        schemes=("w8a8", "w4"),
        metric=("PSNR dB of faces", _psnr(2.0)),
        note=f"{_REAL} (the noise that it was trained on)",
    ),
    "realesrgan_anime": Model(
        f"{_ZOO}.trained:realesrgan_anime",
        samples.photos,
        mobile=("psnr>=35",),
        cpu=("psnr>=35",),
        schemes=("w8a8", "w4"),
        metric=("PSNR dB of photos", _psnr(1.0)),
        note=f"{_REAL} (photos; it was trained on drawings)",
    ),
    "terrain": Model(
        trained.terrain,
        samples.terrain_steps,
        mobile=("sqnr>=30",),
        cpu=("sqnr>=30",),
        schemes=("w8a8",),
        is_transformer=True,
        note=f"{_REAL} (its own outputs along a sampler's path)",
    ),
    "whisper_encoder": Model(
        f"{_ZOO}.trained:whisper_encoder",
        samples.speech,
        mobile=("cosine>=0.999",),
        cpu=("cosine>=0.999",),
        schemes=("w8a8", "w4"),
        metric=("cosine of frames", _cosine),
        is_transformer=True,
        note=_REAL,
    ),
    "minilm": Model(
        f"{_ZOO}.trained:minilm",
        lambda: samples.sentences(12),
        mobile=("cosine>=0.999",),
        cpu=("cosine>=0.999",),
        schemes=("w8a8", "w4"),
        metric=("same nearest sentence, cosine", _retrieval),
        is_transformer=True,
        note=_REAL,
    ),
    "smollm2": Model(
        f"{_ZOO}.trained:smollm2",
        samples.prose,
        mobile=("perplexity<=+1%",),
        cpu=("perplexity<=+1%",),
        schemes=("w8", "w4"),
        metric=("perplexity, same next token", _perplexity),
        is_transformer=True,
        note=f"{_REAL}; its weights lie on a 4-bit grid in blocks of 32, so int4 is no result",
    ),
}
