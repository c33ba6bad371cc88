"""Artifacts: written whole or not at all, and checked when opened."""

from pathlib import Path

import pytest

from aigcc.artifact import Artifact, describe_files, staged, write_manifest
from aigcc.errors import ArtifactError


def make(out: Path, *, overwrite: bool = False) -> None:
    with staged(out, overwrite=overwrite) as staging:
        (staging / "model.onnx").write_bytes(b"weights")
        signature = [{"name": "x", "dtype": "float", "shape": ["batch", 3]}]
        facts = {
            "entry": "model.onnx",
            "device_files": ["model.onnx"],
            "inputs": signature,
            "outputs": signature,
            "facts": {},
            "nodes": {"before": 2, "after": 1},
            "pipeline": "canonicalize",
            "remarks": [],
            "rewrites": {},
            "source": "net.onnx",
            "target": "mobile",
            "versions": {},
        }
        write_manifest(staging, {**facts, "files": describe_files(staging)})


def test_an_artifact_is_written_and_opened(tmp_path: Path) -> None:
    make(tmp_path / "out")
    artifact = Artifact.load(tmp_path / "out")
    assert artifact.entry == "model.onnx"
    (value,) = artifact.signature().inputs
    assert (value.name, str(value.shape)) == ("x", "[batch,3]")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out", overwrite=False) as staging:
        (staging / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_artifact_that_was_there(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", overwrite=True):
        raise RuntimeError
    Artifact.load(tmp_path / "out")


def test_a_folder_of_someone_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(ArtifactError, match="not empty"):
        make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"


def test_an_artifact_is_replaced_only_when_asked(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match="--overwrite"):
        make(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)


def test_an_altered_file_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"wrong")
    with pytest.raises(ArtifactError, match="altered"):
        Artifact.load(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Artifact.load(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\xff"])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "artifact.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        Artifact.load(tmp_path)
