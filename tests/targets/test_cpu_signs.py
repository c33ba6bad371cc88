"""Signed activations beside a Concat are right on cpu, whatever the processor's kernels are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.targets.cpu import INSTALL, Cpu
from aigcc.targets.cpu.mend import read_model
from aigcc.targets.cpu.session import OpenVinoSession

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"needs OpenVINO: {INSTALL}"
)

_JOINED = " t = Concat <axis = 1> (a, b)\n"
_ROUNDED = " q = QuantizeLinear (t, s, z)\n d = DequantizeLinear (q, s, z)\n"
_PIECES = """ qa = QuantizeLinear (a, s, z)
 da = DequantizeLinear (qa, s, z)
 qb = QuantizeLinear (b, {scale}, {zero})
 db = DequantizeLinear (qb, {scale}, {zero})
 d = Concat <axis = 1> (da, db)
"""
_CONVOLVED = " v = DequantizeLinear <axis = 0> (w, ws)\n c = Conv <pads = [1, 1, 1, 1]> (d, v)\n"
_PLAIN = " y = Relu (c)\n"

FORMS = {
    "behind": _JOINED + _ROUNDED + _CONVOLVED + _PLAIN,
    "behind, after an activation": _JOINED.replace("t =", "r =")
    + " t = Relu (r)\n"
    + _ROUNDED
    + _CONVOLVED
    + _PLAIN,
    "behind, without a zero point": _JOINED
    + _ROUNDED.replace("(q, s, z)", "(q, s)")
    + _CONVOLVED
    + _PLAIN,
    "read as integers besides": _JOINED
    + _ROUNDED
    + _CONVOLVED
    + " e = Cast <to = 1> (q)\n m = ReduceMean (e)\n y = Add (c, m)\n",
    "before": _PIECES.format(scale="s", zero="z") + _CONVOLVED + _PLAIN,
    "before, with two scales": _PIECES.format(scale="s2", zero="z") + _CONVOLVED + _PLAIN,
    "before, one unsigned": _PIECES.format(scale="s2", zero="zu") + _CONVOLVED + _PLAIN,
    "resized before": _JOINED.replace("(a, b)", "(a, r)").replace(
        " t", ' r = Resize <mode = "nearest"> (h, , twice)\n t'
    )
    + _ROUNDED
    + _CONVOLVED
    + _PLAIN,
}


def module(form: str, zero: int) -> Module:
    weights = np.random.default_rng(0).integers(-20, 21, 16 * 32 * 9)
    return Module.parse(f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[1,16,8,8] a, float[1,16,8,8] b, float[1,16,4,4] h) => (float[1,16,8,8] y)
<float s = {{0.02}}, float s2 = {{0.03}}, int8 z = {{{zero}}}, uint8 zu = {{100}},
 float[16] ws = {{{", ".join(["0.01"] * 16)}}}, float[4] twice = {{1, 1, 2, 2}},
 int8[16,32,3,3] w = {{{", ".join(map(str, weights))}}}> {{
{FORMS[form]}}}""")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero", [0, 5])
def test_what_is_negative_stays_so(form: str, zero: int, tmp_path: Path) -> None:
    if zero and "without" in form:
        pytest.skip("its zero point is 0")
    random = np.random.default_rng(1)
    made = module(form, zero)
    feeds = {
        str(value.name): random.standard_normal(value.shape.numpy(), np.float32)
        for value in made.inputs
        if value.shape is not None
    }
    made.save(tmp_path / "model.onnx")
    session = OpenVinoSession(tmp_path / "model.onnx", Cpu().properties(1))
    wanted = OrtSession(made, optimise=False).run(feeds)
    np.testing.assert_allclose(session.run(feeds)["y"], wanted["y"], 1e-4, 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_no_signed_activation_is_left_to_the_processor(form: str, tmp_path: Path) -> None:
    import openvino

    module(form, 0).save(tmp_path / "model.onnx")
    ops = read_model(openvino.Core(), tmp_path / "model.onnx").get_ops()
    makers = [
        op.input_value(0).get_node().get_type_name()
        for op in ops
        if op.get_type_name() == "Convert" and op.get_output_element_type(0).get_type_name() == "i8"
    ]
    assert "FakeQuantize" not in makers
