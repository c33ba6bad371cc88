"""`aigcc calibrate`: what it shows of activations, by bucket, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from aigcc import cli
from aigcc.analysis.calibration.calibrate import Calibration

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
SIGNATURE = "net (float[1,4] x, int64[1] t) => (float[1,2] y)"
BODY = (
    "{ s = Cast <to = 1> (t)  h = Mul (x, s)  [first] a = MatMul (h, w)  [then] y = Gemm (a, v) }"
)
WEIGHTS = "<float[4,2] w = {1, 0, 0, 1, 1, 1, 1, 0}, float[2,2] v = {1, 0, 0, 1}>"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(f"{HEAD}{SIGNATURE} {WEIGHTS} {BODY}"), "net.onnx")
    Path("steps").mkdir()
    for step in range(1, 9):
        x = np.array([[1, -1, 0.5, 0]], np.float32)
        np.savez(f"steps/{step}.npz", x=x, t=np.array([step]))

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aigcc", "calibrate", "net.onnx", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return command


def test_activations_are_shown_by_bucket(run: Run) -> None:
    code, out, err = run("-s", "steps", "--by", "t=3,7", "-o", "found.npz")
    assert (code, err) == (0, "")
    shown = {row[0]: row[1:] for row in map(str.split, out.splitlines()) if len(row) > 9}
    assert "t < 3" in out
    assert "3 to 7" in out
    assert "from 7" in out
    assert shown["h"][:4] == ["first", "MatMul", "-8", "8"]
    assert shown["h"][6:] == ["25%", "75%", "100%"]
    assert "wrote found.npz" in out
    assert [part.count for part in Calibration.load("found.npz").buckets["h"]] == [8, 16, 8]


def test_json_has_every_activation_hardest_first(run: Run) -> None:
    facts = json.loads(run("-s", "steps", "--json")[1])
    assert (facts["samples"], facts["synthetic"], facts["edges"]) == ("steps", False, [])
    assert {row["value"] for row in facts["activations"]} == {"h", "a"}
    decibels = [row["sqnr"] for row in facts["activations"]]
    assert decibels == sorted(decibels)
    (row,) = (row for row in facts["activations"] if row["value"] == "h")
    power = np.mean([step**2 * 2.25 / 4 for step in range(1, 9)])
    assert row["rms"] == pytest.approx(power**0.5)
    assert row["sqnr"] == pytest.approx(10 * np.log10(power * 12 / (16 / 255) ** 2))


def test_one_of_several_is_shown_where_one_is_asked_for(run: Run) -> None:
    out = run("--top", "1")[1]
    assert "4 synthetic samples" in out
    assert "1 of 2 activations; --top 2 shows all" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "t"), "this names no buckets"),
        (("--by", "=4"), "this names no buckets"),
        (("--by", "t=a"), "this names no buckets"),
        (("--by", "t=inf"), "this names no buckets"),
        (("--by", "t=0"), "buckets need either edges or a count"),
        (("--by", "t=5,3"), "do not ascend"),
        (("--by", "time=2"), "no input is called 'time'"),
        (("-o", "missing/found.npz"), "the folder is missing"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("-s", "steps", *words)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert not Path("found.npz").exists()


def test_a_model_without_weights_is_refused(run: Run) -> None:
    text = f"{HEAD}net (float[1,4] x, int64[1] t) => (float[1,4] y) {{ y = Relu (x) }}"
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    code, _, err = run("-s", "steps")
    assert code == 1
    assert "no convolution or matrix product" in err
