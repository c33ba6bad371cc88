"""Processes that are killed at any moment: the next one goes on, and nothing half-written lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.analysis.calibration.calibrate import Calibration
from aigcc.analysis.recipe import Recipe
from aigcc.artifact import MANIFEST, check_free, staged
from aigcc.errors import ArtifactError
from aigcc.ir.module import Module
from aigcc.ir.storage.atomic import replacing

WIDTH = 256
QDQ = {"passes": "canonicalize,insert-qdq(scheme=w8a8)"}
NET = f"""
<ir_version: 10, opset_import: ["" : 21]>
net (float[N,{WIDTH}] x, float[{WIDTH},{WIDTH}] v, float[{WIDTH},{WIDTH}] w) => (float[N,{WIDTH}] y)
{{
  [first] h = MatMul (x, v)
  [second] y = MatMul (h, w)
}}
"""
BUILD = """
import json
import os
import signal
import sys

import aigcc
from aigcc.passes.quant import trial

trial._SECONDS = 0.2
out, moment, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(text, fraction):
    if moment and moment in text:
        die()

if moment == "fsync":
    os.fsync = die
aigcc.build(
    "net.onnx", "mobile", out, samples="samples", threads=1, progress=progress, overwrite=True,
    **options,
)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, samples, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    module = Module.parse(NET)
    for value in list(module.graph.inputs)[1:]:
        array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        module.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        module.graph.register_initializer(value)
    module.save("net.onnx")
    Path("samples").mkdir()
    for index in range(2):
        x = random.standard_normal((64, WIDTH), np.float32)
        np.savez(f"samples/{index}.npz", x=x)
    return tmp_path


def build(out: str, moment: str = "", **options: object) -> None:
    """Build in a process that is killed at a moment, or never."""
    words = [sys.executable, "-c", BUILD, out, moment, json.dumps(options)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if moment else 0), done.stderr


def contents(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).iterdir())}


def rows() -> dict[str, dict[str, object]]:
    """What is remembered of measurements, by file; every calibration is whole."""
    for file in Path("cache").rglob("*.npz"):
        Calibration.load(file)
    return {file.name: json.loads(file.read_text()) for file in Path("cache").rglob("*.json")}


def test_a_search_goes_on_where_it_was_killed(here: Path) -> None:
    before: dict[str, dict[str, object]] = {}
    for moment in ("timing", "calibrating", "mixture 1", "lowering"):
        build("out", moment, budget="sqnr>=20")
        assert not (here / "out" / MANIFEST).exists()
        kept = rows()
        assert all(known.items() <= kept[name].items() for name, known in before.items())
        before = kept
    assert before
    calibrated = {file: file.read_bytes() for file in Path("cache").rglob("*.npz")}
    build("out", budget="sqnr>=20")
    assert all(file.read_bytes() == data for file, data in calibrated.items())
    assert all(known.items() <= rows()[name].items() for name, known in before.items())
    assert not [path for path in here.rglob(".*") if path.is_dir() or path.suffix == ".tmp"]
    assert set(Recipe.load("out/recipe.toml").precision) == {"first", "second"}


@pytest.mark.parametrize("kind", ["recipe", "insert-qdq"])
def test_what_is_not_searched_comes_to_the_same_bytes(here: Path, kind: str) -> None:
    Recipe({"first": "w8a8", "second": "w8"}, "mobile").save("recipe.toml")
    options = QDQ if kind == "insert-qdq" else {"recipe": "recipe.toml"}
    build("undisturbed", **options)
    for file in Path("cache").rglob("*.*"):
        file.write_bytes(file.read_bytes()[:-20])  # damaged, and so made again
    for moment in ("fsync", "lowering", "fsync"):  # in the calibration, behind it, and in lowering
        build("out", moment, **options)
    build("out", **options)
    assert contents("out") == contents("undisturbed")


def killed(work: Callable[[], object]) -> None:
    """Work in a process that kills itself."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write(folder: Path, text: str) -> None:
    for name in ("model.onnx", text):
        (folder / name).write_text(text)
    names = ["model.onnx", text]
    fields = dict.fromkeys(("entry", "pipeline", "source", "target"), "")
    lists: dict[str, list[str]] = {
        name: [] for name in ("device_files", "inputs", "outputs", "remarks")
    }
    tables: dict[str, dict[str, str]] = {
        name: {} for name in ("facts", "nodes", "rewrites", "versions")
    }
    files = {name: {"bytes": 1, "sha256": ""} for name in names}
    manifest = {"format": 1, **fields, **lists, **tables, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("number", range(8))
def test_an_exchange_is_ended_or_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out, "old")
    (out / "notes.txt").write_text("mine")
    calls = iter(range(99))
    rename = Path.rename

    def renaming(path: Path, target: Path) -> Path:
        if next(calls) == number:
            die()
        return rename(path, target)

    def exchange() -> None:
        monkeypatch.setattr(Path, "rename", renaming)
        with staged(out, overwrite=True) as folder:
            write(folder, "new")
        die()

    killed(exchange)
    with pytest.raises(ArtifactError, match="holds an artifact already"):
        check_free(out)
    text = "old" if number < 4 else "new"  # three of old, the turn, then three of new
    assert {path.name for path in out.iterdir()} == {"model.onnx", text, MANIFEST, "notes.txt"}
    assert (out / "model.onnx").read_text() == text


def test_a_draft_goes_with_the_next_one_unless_it_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"

    def half() -> None:
        with replacing(path) as (file,):
            file.write(b"half")
            file.flush()
            die()

    killed(half)
    assert [file.suffix for file in tmp_path.iterdir()] == [".tmp"]
    with replacing(path) as (slow,):
        slow.write(b"slow")
        with replacing(path) as (quick,):
            quick.write(b"quick")
        assert len(list(tmp_path.iterdir())) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"slow"
