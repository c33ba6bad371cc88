"""Inputs frozen to a value: they leave the signature, and the branches for other values go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aigcc
from aigcc import cli
from aigcc.errors import CompileError
from aigcc.freeze import freeze, parse_settings, settings
from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples

# Windows of two lengths, by the sample rate, as voice detectors have them.
DETECTOR = """<ir_version: 8, opset_import: ["" : 16]>
detector (float[B,T] x, int64 sr, float[2,B,4] state) => (float[B,N] y, float[2,B,4] next)
<int64 fast = {16000}>
{
  c = Equal (sr, fast)
  y = If (c) <
    then_branch = wide () => (float[B,P] p) <int64[2] s = {-1, 64}>
    { r = Reshape (x, s) m = ReduceMean <axes = [1], keepdims = 1> (r) p = Sigmoid (m) },
    else_branch = narrow () => (float[B,Q] q) <int64[2] s = {-1, 24}>
    { r = Reshape (x, s) m = ReduceMax <axes = [1], keepdims = 1> (r) q = Tanh (m) }
  >
  next = Neg (state)
}"""


def module() -> Module:
    return Module.parse(DETECTOR)


def feeds(rate: int = 16000, **more: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 64)).astype(np.float32)
    return {"x": x, "state": np.ones((2, 1, 4), np.float32), **more}


def save(folder: Path, **more: Any) -> Path:
    path = folder / "samples"
    path.mkdir()
    np.savez(path / "0.npz", **feeds(**more))
    return path


@pytest.mark.parametrize("target", ["mobile", "cpu"])
@pytest.mark.parametrize("holds", [True, False])
def test_a_frozen_input_is_gone_and_so_is_the_other_branch(
    target: str, holds: bool, tmp_path: Path
) -> None:
    more = {"sr": np.array(16000)} if holds else {}
    made = aigcc.build(
        module(), target, tmp_path / "out", samples=[feeds(**more)], freeze={"sr": 16000}
    )
    manifest = made.artifact.manifest
    assert [value["name"] for value in manifest["inputs"]] == ["x", "state"]
    assert manifest["frozen"] == {"sr": 16000}
    operators = {node.op_type for node in made.module.nodes()}
    assert "If" not in operators and "Tanh" not in operators
    assert max(row["relative"] for row in manifest["quality"]["outputs"]) < 1e-5


def test_the_reference_is_the_model_with_that_value() -> None:
    frozen = freeze(module(), {"sr": 16000})
    given = OrtSession(frozen, optimise=False).run(feeds())
    expected = OrtSession(module(), optimise=False).run(feeds(sr=np.array(16000)))
    np.testing.assert_array_equal(given["y"], expected["y"])


@pytest.mark.parametrize("given", ["16000", 16000, np.int32(16000), np.array([16000]), [16000]])
def test_values_take_the_type_and_shape_of_the_input(given: Any) -> None:
    frozen = freeze(module(), {"sr": given})
    array = frozen.frozen["sr"]
    assert array.dtype == np.int64 and array.shape == () and array == 16000
    assert [value.name for value in frozen.inputs] == ["x", "state"]


OTHERS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2] x, float[N] w, bool flag, string name, float16 h, uint8[2,2] u) => (y) {
  y = Identity (x)
}"""


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flag", "true", True),
        ("flag", "False", False),
        ("w", "[1, 2.5]", [1, 2.5]),
        ("w", "1,2.5,3", [1, 2.5, 3]),
        ("w", ".5", [0.5]),
        ("w", "-inf", [-np.inf]),
        ("h", "0.1", np.float16(0.1)),
        ("u", "[[1,2],[3,4]]", [[1, 2], [3, 4]]),
        ("name", "a,b", "a,b"),
    ],
)
def test_values_in_text(name: str, given: str, expected: Any) -> None:
    frozen = freeze(Module.parse(OTHERS), {name: given}).frozen[name]
    np.testing.assert_array_equal(frozen, expected)


def test_a_value_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.array([1, 2, 3], np.float32))
    frozen = freeze(Module.parse(OTHERS), {"w": str(tmp_path / "w.npy")})
    assert frozen.frozen["w"].tolist() == [1, 2, 3]
    assert list(frozen.inputs[0].shape or ()) == [3, 2]


@pytest.mark.parametrize(
    ("values", "what", "hint"),
    [
        ({"rate": "1"}, "no input 'rate'", "did you mean"),
        ({"q": "1"}, "no input 'q'", "sr, state, x"),
        ({"sr": "fast"}, "'fast' is no value for the input 'sr'", "a number"),
        ({"sr": "[1,2]"}, r"takes the shape \[\], not \[2\]", "of that shape"),
        ({"sr": "1.5"}, "takes int64, not 1.5", "holds"),
        ({"sr": "1e30"}, "takes int64", "holds"),
        ({"sr": "{}"}, "takes int64", "holds"),
        ({"sr": "[[1],[2,3]]"}, "no value", "a number"),
        ({"state": "1"}, r"takes the shape \[2, B, 4\]", "of that shape"),
        ({"sr": "missing.npy"}, "cannot be read", ""),
    ],
)
def test_values_that_do_not_fit(values: dict[str, str], what: str, hint: str) -> None:
    with pytest.raises(CompileError, match=what) as caught:
        freeze(module(), values)
    assert hint in str(caught.value.hint)


def test_settings_of_a_command() -> None:
    assert parse_settings(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    assert settings({"a": 1, "b": [1.5, 2], "c": "true"}) == [
        *("--set", "a=1", "--set", "b=[1.5,2.0]", "--set", "c=true")
    ]
    assert settings({"a": np.zeros(100)}) is None
    for texts in (["sr"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(CompileError):
            parse_settings(texts)


def test_samples_of_another_value_are_refused() -> None:
    with pytest.raises(CompileError, match="frozen to another value"):
        load_samples([feeds(sr=np.array(8000))], freeze(module(), {"sr": 16000}))


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["aigcc", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    model, samples = tmp_path / "m.onnxtxt", save(tmp_path, sr=np.array(16000))
    model.write_text(DETECTOR)
    given = [str(model), "--set", "sr=16000", "--samples", str(samples)]
    assert run("build", *given, "-t", "mobile", "-o", str(tmp_path / "out"), "--no-latency") == 0
    manifest = json.loads((tmp_path / "out" / "artifact.json").read_text())
    assert "--set sr=16000" in manifest["command"]
    small = tmp_path / "small.onnxtxt"
    assert run("opt", *given, "-p", "canonicalize", "-o", str(small)) == 0
    assert "If" not in small.read_text() and "sr" not in small.read_text().split("{")[0]
    assert run("bisect", *given, "-p", "canonicalize") == 0
    wrong = [str(model), "--set", "rs=1", "-p", "canonicalize", "-o", str(tmp_path / "w.onnx")]
    capsys.readouterr()
    assert run("opt", *wrong) == 1
    assert "no input 'rs'" in capsys.readouterr().err
