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
from aigcc.models import digits, samples, trained, transcribe
from aigcc.target import Session

Feeds = Mapping[str, npt.NDArray[Any]]
Metric = Callable[[Sequence[Feeds], Sequence[Feeds], Sequence[Feeds]], str]
Drive = Callable[[Session], Sequence[Feeds]]

HERE = Path(__file__).parent
_BATCHES = 10  # of 100 digits
_MAPS = 8
_FACES = 32  # for calibration: one is 100 random numbers, and each layer sees few pixels of it
CALIBRATION = 4
"""How many samples every tool gets by default; those that results are measured on are others."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and what is asked of it.

    Attributes:
        source: The factory of a torch module, or a function that gives the path of a .onnx file.
        samples: Feeds; the first ones calibrate, the others evaluate.
        mobile: Budgets for aigcc's target `mobile`.
        cpu: Budgets for aigcc's target `cpu`.
        schemes: Schemes of `mobile` that all nodes shall take that can, with other options of
            `insert-qdq` behind them; and behind " + " a recipe in this folder for nodes that shall
            take another one.
        cpu_schemes: The same for `cpu`.
        metric: Its name, and what computes it from feeds, expected and given outputs.
        drive: What makes the outputs that the metric is computed from, and may ask the program
            whatever it likes, as a sampler does; None for the outputs of the feeds.
        calibration: How many samples calibrate.
        is_transformer: Whether NNCF's guide wants its `ModelType.TRANSFORMER`.
        note: What to know about its weights.
    """

    source: str | Callable[[], Path]
    samples: Callable[[], Iterable[Feeds]]
    mobile: tuple[str, ...]
    cpu: tuple[str, ...]
    schemes: tuple[str, ...] = ()
    cpu_schemes: tuple[str, ...] = ()
    metric: tuple[str, Metric] | None = None
    drive: Drive | None = None
    calibration: int = CALIBRATION
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
        _write(islice(feeds, model.calibration), made.calibration)
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


def _cosine(expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """The mean over vectors of the cosine."""
    found = []
    for a, b in zip(_rows(expected), _rows(given), strict=True):
        found.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)))
    return f"{sum(found) / len(found):.5f}"


def _retrieval(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """How often the nearest other passage is of the same document, and which it is the same."""
    nearest = []
    for outputs in (expected, given):
        vectors = np.array(_rows(outputs))
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -np.inf)
        nearest.append(likeness.argmax(axis=1))
    document = np.arange(len(nearest[0])) // samples.PASSAGES
    found = float((document == document[nearest[1]]).mean())
    same = float((nearest[0] == nearest[1]).mean())
    return f"{found:.1%}, {same:.1%}, {_cosine(expected, given)}"


def _words(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """How many words Whisper's decoder gets wrong, and the mean cosine of frames."""
    heard = transcribe.transcribe(np.concatenate([_only(output) for output in given]))
    wrong = sum(transcribe.word_errors(text, samples.SPOKEN) for text in heard)
    total = len(heard) * len(samples.SPOKEN.split())
    return f"{wrong / total:.1%} of {total}, {_cosine(expected, given)}"


def _draw_digits(session: Session) -> list[Feeds]:
    """Digits drawn in batches, labels in turns: [100, 4, 14, 14] samples at the end of the path."""

    def velocity(feed: Feeds) -> npt.NDArray[Any]:
        return _only(session.run(feed))

    labels = np.arange(100) % 10
    drawn = []
    for seed in range(1000, 1000 + _BATCHES):
        (*_, (_, last)) = digits.draw(velocity, labels, seed)
        drawn.append({"sample": last})
    return drawn


def _digits(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """How often real digits nearby have the label that was asked for, and the PSNR of pixels."""
    drawn = [digits.to_images(_only(output)) for output in given]
    found = digits.classify(np.concatenate(drawn))
    right = float((found == np.arange(len(found)) % 10).mean())
    return f"{right:.1%} of {len(found)}, {_psnr(2.0)((), expected, given)}"


def _draw_terrain(session: Session) -> list[Feeds]:
    """Finished maps, from easy to hard."""
    drawn = []
    for index in range(_MAPS):
        difficulty = index / (_MAPS - 1)
        (*_, (_, last)) = samples.terrain_path(session, difficulty, seed=1000 + index)
        drawn.append({"map": last})
    return drawn


def _terrain(_: Sequence[Feeds], expected: Sequence[Feeds], given: Sequence[Feeds]) -> str:
    """The mean over finished maps of the PSNR in dB, the range of a map being its peak."""
    found = []
    for a, b in zip(expected, given, strict=True):
        found.append(_agreement(a, b).psnr(float(np.ptp(_only(a)))))
    return f"{sum(found) / len(found):.1f}"


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
_SMOOTH = "w8a8,calibration=minmax,smooth=0.8"
MODELS = {
    "gpt2": Model(
        f"{_ZOO}.gpt2:full",
        lambda: _tokens(50257, 128),
        mobile=("sqnr>=33", "latency<=0.32x"),
        cpu=("sqnr>=33", "sqnr>=27"),
        is_transformer=True,
    ),
    "vae": Model(
        f"{_ZOO}.vae:full",
        lambda: _latents(32),
        mobile=("sqnr>=28",),
        cpu=("sqnr>=22", "sqnr>=17"),
        cpu_schemes=("w8a8-symmetric, rest bf16",),
    ),
    "unet_medium": Model(
        f"{_ZOO}.unet:medium",
        lambda: _noise(32, 77, 256),
        mobile=("sqnr>=30",),
        cpu=("sqnr>=30", "sqnr>=25"),
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
        lambda: samples.face_gan(_FACES + 16),
        mobile=("psnr>=35",),
        cpu=("psnr>=35",),
        schemes=(
            "w8",
            "w4",
            "w4,weights=gptq",
            "w4,weights=gptq + recipes/face_gan.toml",
            "full,weights=gptq + recipes/face_gan_first.toml",
        ),
        cpu_schemes=("w8a8", "w4,weights=gptq"),
        metric=("PSNR dB of faces", _psnr(2.0)),
        calibration=_FACES,
        note=f"{_REAL} (the noise that it was trained on)",
    ),
    "realesrgan_anime": Model(
        f"{_ZOO}.trained:realesrgan_anime",
        samples.photos,
        mobile=("psnr>=35",),
        cpu=("psnr>=35",),
        schemes=("w8a8", "w8", "w4", "w4,weights=gptq"),
        cpu_schemes=("w8a8",),
        metric=("PSNR dB of photos", _psnr(1.0)),
        note=f"{_REAL} (photos; it was trained on drawings)",
    ),
    "digits": Model(
        f"{_ZOO}.trained:digits",
        samples.digit_steps,
        mobile=("sqnr>=25",),
        cpu=("sqnr>=25",),
        schemes=("w8a8", "w8a8,weights=gptq,bias-correction=true"),
        cpu_schemes=("w8a8",),
        metric=("label found in drawn digits, PSNR dB", _digits),
        drive=_draw_digits,
        calibration=digits.STEPS,
        note=f"{_REAL} (every step of the sampler)",
    ),
    "terrain": Model(
        trained.terrain,
        samples.terrain_steps,
        mobile=("sqnr>=30",),
        cpu=("sqnr>=30",),
        schemes=("w8a8", "w8", "w8,weights=mse"),
        metric=("PSNR dB of finished maps", _terrain),
        drive=_draw_terrain,
        is_transformer=True,
        note=f"{_REAL} (its own outputs along a sampler's path)",
    ),
    "whisper_encoder": Model(
        f"{_ZOO}.trained:whisper_encoder",
        samples.speech,
        mobile=("cosine>=0.999",),
        cpu=("cosine>=0.999",),
        schemes=("w8a8", _SMOOTH, "w8a8-dynamic,smooth=0.8", "w4"),
        cpu_schemes=(_SMOOTH,),
        metric=("word errors, cosine of frames", _words),
        is_transformer=True,
        note=_REAL,
    ),
    "minilm": Model(
        f"{_ZOO}.trained:minilm",
        samples.passages,
        mobile=("cosine>=0.999",),
        cpu=("cosine>=0.999",),
        schemes=("w8a8", _SMOOTH, f"{_SMOOTH},weights=gptq", "w8a8-dynamic,smooth=0.8", "w4"),
        cpu_schemes=(_SMOOTH, f"{_SMOOTH},weights=gptq"),
        metric=("same document nearest, same passage nearest, cosine", _retrieval),
        is_transformer=True,
        note=_REAL,
    ),
    "smollm2": Model(
        f"{_ZOO}.trained:smollm2",
        samples.prose,
        mobile=("perplexity<=+1%",),
        cpu=("perplexity<=+1%",),
        schemes=("w8a8", "w8a8-dynamic", "w8a8-dynamic,smooth=0.65,outliers=3", "w8", "w4"),
        cpu_schemes=(_SMOOTH,),
        metric=("perplexity, same next token", _perplexity),
        is_transformer=True,
        note=f"{_REAL}; its weights lie on a 4-bit grid in blocks of 32, so int4 is no result",
    ),
}
