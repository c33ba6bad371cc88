"""Every architecture, from the torch model to the artifact: built for mobile, and right."""

from pathlib import Path

import pytest

import aigcc
from aigcc.errors import CompileError

TINY = [
    "clip_text:tiny",
    "dit:tiny",
    "face_gan:tiny",
    "gpt2:tiny",
    "gpt2:tiny_cache",
    "llama:tiny",
    "mmdit:tiny_flux",
    "mmdit:tiny_sd3",
    "rrdb:tiny",
    "srvgg:tiny",
    "stylegan2:tiny",
    "taesd:tiny",
    "unet:tiny",
    "vae:tiny",
]
TRAINED = [
    ("terrain", "terrain"),
    ("face_gan", "face_gan"),
    ("realesrgan_anime", "faces"),
    ("ocr_recognise", None),
    ("minilm", None),
    ("whisper_encoder", None),
]


@pytest.mark.parametrize("name", TINY)
def test_an_architecture_builds_for_mobile(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers" if name.partition(":")[0] in TEXT else "diffusers")
    made = aigcc.build(f"aigcc.models.{name}", "mobile", tmp_path / "out")
    check(made)


TEXT = ("clip_text", "gpt2", "llama")


@pytest.mark.parametrize(("name", "samples"), TRAINED)
def test_a_trained_model_builds_for_mobile(name: str, samples: str | None, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    reference = None if samples is None else f"aigcc.models.samples:{samples}"
    try:
        made = aigcc.build(
            f"aigcc.models.trained:{name}", "mobile", tmp_path / "out", samples=reference
        )
    except CompileError as error:
        if "aigcc.models.fetch" in (error.hint or ""):
            pytest.skip(f"{error.what}: {error.hint}")
        raise
    check(made)


def check(made: aigcc.Build) -> None:
    manifest = made.artifact.manifest
    assert manifest["nodes"]["after"] <= manifest["nodes"]["before"]
    for output in manifest["quality"]["outputs"]:
        assert output["relative"] < 1e-4 or output["rounding"] is not None, output
