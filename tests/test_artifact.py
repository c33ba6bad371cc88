"""Artifacts: written whole or not at all, and checked when opened."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aigcc
from aigcc.artifact import MANIFEST, Artifact, describe_files, staged, write_manifest
from aigcc.cli.show import explain
from aigcc.errors import ArtifactError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real artifact, with remarks and measured quality."""
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[2,4] x) => (float[2,4] y) <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}>
        { h = MatMul (x, w)  s = Sigmoid (h)  y = Mul (h, s) }
    """
    folder = tmp_path_factory.mktemp("built") / "out"
    aigcc.build(aigcc.Module.parse(text), "mobile", folder)
    return folder


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


def test_two_builds_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    with staged(tmp_path / "out", overwrite=False) as staging:
        (staging / "model.onnx").write_bytes(b"first")
        with pytest.raises(ArtifactError, match="another build is writing"):
            make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"first"


DAMAGE = st.sampled_from([None, -5, "x", [], {}, [1], {"a": 1}, [[{}]], True])


@given(place=st.data(), value=DAMAGE)
def test_a_damaged_manifest_is_named(built: Path, place: st.DataObject, value: object) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    inner: Any = manifest
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = place.draw(st.sampled_from(keys))
        nested = isinstance(inner[key], dict | list) and inner[key]
        if not nested or place.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_text(json.dumps(manifest))
        with contextlib.suppress(ArtifactError):
            artifact = Artifact.load(folder, check=False)
            explain(Path(folder))
            artifact.signature()
