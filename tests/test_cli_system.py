"""The command line as a process: full disks, closed pipes, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aigcc.ir.module import Module

TINY = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (float[N,4] x) => (float[N,4] y) { h = Identity (x)  y = Relu (h) }
"""
LARGE = """
<ir_version: 10, opset_import: ["" : 20]>
large (float[N] x) => (float[40000] y) <float[40000] w = {WEIGHTS}> { y = Add (x, w) }
"""
SLOW = """
import pathlib
import time

import numpy

def wait(name):
    pathlib.Path(name).touch()
    time.sleep(60)

def loading():
    wait("loading")

def running():
    if pathlib.Path("seen").exists():
        wait("running")
    pathlib.Path("seen").touch()
    yield {"x": numpy.ones((1, 4), numpy.float32)}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with a model in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    Module.parse(TINY).save("tiny.onnx")
    return tmp_path


def start(words: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aigcc", *words.split()]
    return subprocess.Popen(command, text=True, stdout=stdout, stderr=subprocess.PIPE)


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "words",
    [
        "build large.onnx -t mobile -o disk/out --no-latency",
        "opt large.onnx -p simplify -o disk/a.onnx",
        "run large.onnx -o disk/out",
    ],
)
def test_a_full_disk_is_named_and_left_as_it_was(here: Path, small_disk: Path, words: str) -> None:
    weights = ",".join(map(str, np.random.default_rng(0).standard_normal(40_000)))
    Module.parse(LARGE.replace("WEIGHTS", weights)).save("large.onnx")
    process = start(words)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "No space left" in err) == (1, True)
    assert ".partial" not in err
    assert entries(small_disk) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["loading", "running"])
def test_a_signal_ends_a_build_and_leaves_nothing(
    here: Path, number: signal.Signals, moment: str
) -> None:
    Path("slow.py").write_text(SLOW)  # says when it runs, so that the signal comes at that moment
    before = entries(here)
    source = "slow:loading" if moment == "loading" else "tiny.onnx -s slow:running"
    process = start(f"build {source} -t mobile -o new/out")
    while not Path(moment).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == "\nstopped; nothing half-written was left behind\n"
    assert entries(here) - before <= {moment, "seen"}


@pytest.mark.parametrize("milliseconds", [20, 60, 200])
@pytest.mark.parametrize(
    "begin",
    [
        # as the installed script does
        "from aigcc.__main__ import main; print(flush=True); main()",
        # as python -m does
        "import aigcc, runpy; print(flush=True); runpy.run_module('aigcc', run_name='__main__')",
    ],
)
def test_ctrl_c_ends_aigcc_while_it_starts(here: Path, begin: str, milliseconds: int) -> None:
    words = ["build", "tiny.onnx", "-t", "mobile", "-o", "out"]
    command = [sys.executable, "-c", begin, *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here
    )
    assert process.stdout is not None
    process.stdout.readline()  # Python runs; until then Ctrl-C is its own affair
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "\nstopped; nothing half-written was left behind\n"
    assert not Path("out").exists()


def test_nothing_is_left_in_the_home_or_the_temporary_folder(here: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    folders = {"HOME": "home", "XDG_CACHE_HOME": "home/cache", "TMPDIR": "scratch"}
    for name in folders.values():
        Path(name).mkdir()
    before = entries(here)
    command = [sys.executable, "-m", "aigcc", "build", "tiny.onnx", "-t", "mobile", "-o", "out"]
    places = {variable: str(here / name) for variable, name in folders.items()}
    subprocess.run(command, env=kept | places, cwd=here, check=True, capture_output=True)
    assert {path for path in entries(here) - before if not path.startswith("out")} == set()


def test_a_closed_pipe_ends_a_command_quietly(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("opt tiny.onnx -p simplify -o a.onnx --print-after simplify", writing)
    os.close(writing)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")
    assert not Path("a.onnx").exists()
