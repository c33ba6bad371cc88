"""The truth is exact where ONNX Runtime has no kernels: bfloat16, and what only ONNX computes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import aigcc
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.quality import rounding_of
from aigcc.reference import Reference
from aigcc.runtime import NoKernelError, OrtSession
from aigcc.samples import load_samples

BF16 = ml_dtypes.bfloat16
HEAD = '<ir_version: 10, opset_import: ["" : 20, "own" : 1]>'
# Each computes y = bf16(bf16(x) @ w) * 3 with a w of ones, which bfloat16 rounds.
FORMS = {
    "graph": """g (float[N,4] x) => (float[N,3] y) <WEIGHTS> {
      b = Cast <to = 16> (x) h = MatMul (b, w) k = Mul (h, c) y = Cast <to = 1> (k) }""",
    "branch": """g (float[N,4] x, bool yes) => (float[N,3] y) <WEIGHTS> {
      b = Cast <to = 16> (x)
      k = If (yes) <
        then_branch = t () => (bfloat16[N,3] p) { h = MatMul (b, w) p = Mul (h, c) },
        else_branch = e () => (bfloat16[N,3] q) { q = MatMul (b, w) }
      >
      y = Cast <to = 1> (k) }""",
    "function": """g (float[N,4] x) => (float[N,3] y) <WEIGHTS> {
      y = own.f (x, w, c) }
    <domain: "own", opset_import: ["" : 20]>
    f (x, w, c) => (y) {
      b = Cast <to = 16> (x) h = MatMul (b, w) k = Mul (h, c) y = Cast <to = 1> (k) }""",
    "inputs": """g (bfloat16[N,4] x) => (bfloat16[N,3] y) <WEIGHTS> {
      h = MatMul (x, w) y = Mul (h, c) }""",
}
# The text form has the bits of numbers that are not float32: 16256 is 1, 16448 is 3.
WEIGHTS = f"bfloat16[4,3] w = {{{', '.join(['16256'] * 12)}}}, bfloat16 c = {{16448}}"
X = np.array([[1, 2, 3, 4.25], [256, 1, -0.5, 0.125]], np.float32)


def made(form: str) -> tuple[Module, dict[str, np.ndarray]]:
    module = Module.parse(f"{HEAD} {FORMS[form]}".replace("WEIGHTS", WEIGHTS))
    feeds = {"x": X.astype(BF16) if form == "inputs" else X}
    return module, {**feeds, "yes": np.array(True)} if form == "branch" else feeds


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_computed_in_float32(form: str) -> None:
    module, feeds = made(form)
    with pytest.raises(NoKernelError):
        OrtSession(module, optimise=False)
    reference = Reference(module)
    assert reference.note == "a copy in float32: ONNX Runtime has no kernels for bfloat16"
    right = X.astype(BF16).astype(np.float32).sum(1, keepdims=True).repeat(3, 1) * 3
    given = reference.run(feeds)["y"]
    expected = right.astype(given.dtype)
    np.testing.assert_array_equal(given.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_judged_rounds_as_it_says(form: str) -> None:
    module, feeds = made(form)
    given = Reference(module, rounds=True).run(feeds)["y"].astype(np.float32)
    sums = X.astype(BF16).astype(np.float32).sum(1, keepdims=True).repeat(3, 1).astype(BF16)
    right = (sums * np.array(3, BF16)).astype(np.float32)
    np.testing.assert_array_equal(given, right)
    assert not np.array_equal(given, X.sum(1, keepdims=True).repeat(3, 1) * 3)


def test_rounding_to_bfloat16_is_no_fault_of_a_program() -> None:
    module, feeds = made("graph")
    samples = load_samples([feeds], module)
    assert 1e-4 < rounding_of("y", module, samples, 0) < 2**-7


def test_the_evaluator_stands_in() -> None:
    module = Module.parse(f"{HEAD} g (double[2] x) => (double[2] y) {{ y = ThresholdedRelu (x) }}")
    reference = Reference(module)
    assert reference.note == "ONNX's own evaluator: ONNX Runtime has no kernel for ThresholdedRelu"
    assert reference.run({"x": np.array([0.5, 1.5])})["y"].tolist() == [0, 1.5]
    with pytest.raises(CompileError, match="ONNX's evaluator: "):
        reference.run({})
    other = Module.parse(
        f"{HEAD} g (double[1,1,2] x) => (double[1,1,1] y) {{ y = GlobalLpPool (x) }}"
    )
    with pytest.raises(NoKernelError, match="GlobalLpPool"):
        Reference(other)


@pytest.mark.parametrize("target", ["cpu", "mobile"])
@pytest.mark.parametrize("form", FORMS)
def test_builds(form: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    module, feeds = made(form)
    passes = "to-fp32,canonicalize,fuse,legalize" if target == "mobile" else None
    build = aigcc.build(
        module, target, tmp_path / "out", samples=[feeds], passes=passes, latency=False
    )
    quality = build.artifact.manifest["quality"]
    assert quality["outputs"][0]["relative"] < 2**-7
    assert "compared with a copy in float32" in quality["notes"][0]


def test_mobile_says_what_helps(tmp_path: Path) -> None:
    module, _ = made("graph")
    with pytest.raises(CompileError, match="let the pipeline begin with to-fp32"):
        aigcc.build(module, "mobile", tmp_path / "out")
