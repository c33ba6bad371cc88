"""The ONNX Runtime side: sessions from files and modules, odd types, errors."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from aigcc.benchmark import interleave
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.runtime import OrtSession, save_optimised


def module(text: str, opset: int = 21) -> Module:
    return Module.parse(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def write(path: Path, text: str, opset: int = 21) -> Path:
    """A file that aigcc's own checks have not seen."""
    made = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    path.write_bytes(made.SerializeToString())
    return path


ADD = "g (float[n] x, float[n] y) => (float[n] z) { z = Add (x, y) }"


@pytest.mark.parametrize("optimise", [False, True])
def test_runs_a_module_and_a_file(tmp_path: Path, optimise: bool) -> None:
    feeds = {"x": np.array([1, 2], np.float32), "y": np.array([3, 4], np.float32)}
    path = tmp_path / "add.onnx"
    module(ADD).save(path)
    for source in (module(ADD), path, str(path)):
        np.testing.assert_array_equal(OrtSession(source, optimise=optimise).run(feeds)["z"], [4, 6])


def test_a_module_leaves_no_scratch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = OrtSession(module(ADD), optimise=False, threads=1)
    assert list(tmp_path.iterdir()) == []
    one = np.ones(1, np.float32)
    np.testing.assert_array_equal(session.run({"x": one, "y": one})["z"], [2])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float16", np.float16),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (), (0, 2)])
def test_types_that_numpy_lacks(name: str, dtype: type, shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, shape))
    kind = f"{name}[{dims}]" if shape else name
    session = OrtSession(module(f"g ({kind} x) => ({kind} y) {{ y = Identity (x) }}"))
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))


def test_types_of_less_than_a_byte() -> None:
    text = """g (int4[3] x, float scale) => (float[3] y, int4[3] z)
    <int4 zero = {0}> {
      y = DequantizeLinear (x, scale)
      z = QuantizeLinear (y, scale, zero)
    }"""
    x = np.array([1, -2, 3], ml_dtypes.int4)
    outputs = OrtSession(module(text)).run({"x": x, "scale": np.array(0.5, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [0.5, -1, 1.5])
    assert outputs["z"].dtype == ml_dtypes.int4
    np.testing.assert_array_equal(outputs["z"].astype(int), [1, -2, 3])


def test_a_sequence_output_is_counted_out(tmp_path: Path) -> None:
    text = "g (float[2] x) => (seq(float[2]) s) { s = SequenceConstruct (x, x) }"
    outputs = OrtSession(write(tmp_path / "s.onnx", text)).run({"x": np.ones(2, np.float32)})
    assert list(outputs) == ["s[0]", "s[1]"]


def test_text_passes_through() -> None:
    session = OrtSession(module("g (string[2] x) => (string[2] y) { y = Identity (x) }"))
    assert list(session.run({"x": np.array(["a", "b"])})["y"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.ones(2, np.float32)}, "no value for the input 'y'"),
        ({"xx": np.ones(2, np.float32)}, "did you mean 'x'"),
        ({"x": np.ones(2), "y": np.ones(2)}, "Unexpected input data type"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        OrtSession(module(ADD)).run(feeds)


def test_a_raw_feed_of_the_wrong_type() -> None:
    session = OrtSession(module("g (bfloat16[1] x) => (bfloat16[1] y) { y = Identity (x) }"))
    with pytest.raises(CompileError, match="takes bfloat16, not float32"):
        session.run({"x": np.ones(1, np.float32)})


def test_a_failing_node_is_named(tmp_path: Path) -> None:
    text = "g (float[n] x, float[m] y) => (float[k] z) { [culprit] z = Add (x, y) }"
    session = OrtSession(write(tmp_path / "m.onnx", text))
    with pytest.raises(CompileError) as raised:
        session.run({"x": np.ones(3, np.float32), "y": np.ones(4, np.float32)})
    assert "node 'culprit'" in str(raised.value.at)
    assert "3 by 4" in raised.value.what
    assert "onnxruntime_src" not in raised.value.what


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("g (bool[3] x) => (bool[3] y) { [culprit] y = Where (x, x, x) }", "culprit"),
        ("g (float[3] x, int64[3] z) => (float[3] y) { [culprit] y = Add (x, z) }", "culprit"),
        ("g (float[3] x, float[4] z) => (float[3] y) { [culprit] y = Add (x, z) }", "culprit"),
    ],
)
def test_a_refused_node_is_named(tmp_path: Path, text: str, node: str) -> None:
    with pytest.raises(CompileError) as raised:
        OrtSession(write(tmp_path / "bad.onnx", text))
    assert f"node {node!r}" in str(raised.value.at)


@pytest.mark.parametrize("name", ["bad.onnx", "bad.ort", "missing.onnx"])
def test_files_that_are_no_models(tmp_path: Path, name: str) -> None:
    if name != "missing.onnx":
        (tmp_path / name).write_bytes(b"hello world" * 10)
    with pytest.raises(CompileError, match="ONNX Runtime: ") as raised:
        OrtSession(tmp_path / name)
    assert name in str(raised.value.at)


@pytest.mark.parametrize("ending", [".onnx", ".ort"])
def test_save_optimised(tmp_path: Path, ending: str) -> None:
    text = "g (float[2] x) => (float[2] y) { a = Relu (x) b = Identity (a) y = Relu (b) }"
    source = write(tmp_path / "in.onnx", text)
    save_optimised(source, tmp_path / f"out{ending}")
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(OrtSession(tmp_path / f"out{ending}").run({"x": x})["y"], [0, 2])


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_timed_programs_take_turns(names: str) -> None:
    called: list[str] = []
    programs = {name: (lambda name=name: called.append(name)) for name in names}
    timings = interleave(programs, rounds=200)
    assert {timing.rounds for timing in timings.values()} == {200}
    assert list(timings) == list(names)
    rounds = called[len(names) :]  # behind the warm-up
    assert {rounds.count(name) for name in names} == {200}
    pairs = Counter(itertools.pairwise(rounds))
    if len(names) > 1:
        assert not any(first == second for first, second in pairs)
    if len(names) > 2:
        assert len(pairs) == len(names) * (len(names) - 1)
