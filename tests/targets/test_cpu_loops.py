"""Loops that run no round stack nothing in OpenVINO either, whatever ran before."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

pytest.importorskip("openvino")

BODY = """b (int64 i, bool k, float[2,3] st) => (bool k2, float[2,3] st2, float[2,3] o, int64 j) {
  k2 = Identity (k) st2 = Add (st, st) o = Neg (st) j = Identity (i) }"""
FORMS = {
    "graph": f"y, all, places = Loop (n, c, x) <body = {BODY}>",
    "without a condition": f"y, all, places = Loop (n, , x) <body = {BODY}>",
    "branch": f"""y, all, places = If (c) <
        then_branch = t () => (float[2,3] s, float[K,2,3] a, int64[K] p) {{
          s, a, p = Loop (n, c, x) <body = {BODY}> }},
        else_branch = e () => (float[2,3] s2, float[K,2,3] a2, int64[K] p2) {{
          s2 = Neg (x) r = Unsqueeze (x, zero) a2 = Identity (r) p2 = Identity (zero) }}
      >""",
    "loop": f"""y, all, places = Loop (three, , x) <body =
      outer (int64 ii, bool kk, float[2,3] stt) => (bool kk2, float[2,3] r, float[2] m, int64 q) {{
        kk2 = Identity (kk) r, inner, ps = Loop (n, c, stt) <body = {BODY}>
        m0 = ReduceSum <keepdims = 0> (inner) ms = Unsqueeze (m0, zero)
        m = Concat <axis = 0> (ms, ms)
        q = Size (ps) }}>""",
}


@pytest.mark.parametrize("form", FORMS)
def test_rounds_are_counted(form: str) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 20]>
      g (int64 n, bool c, float[2,3] x) => (y, all, places)
      <int64[1] zero = {{0}}, int64 three = {{3}}> {{ {FORMS[form]} }}""")
    right, given = OrtSession(module, optimise=False), make_target("cpu").open(module)
    assert given is not None
    x = np.ones((2, 3), np.float32)
    for rounds, goes in [(3, True), (0, True), (2, True), (5, False), (1, True), (0, True)]:
        feeds = {"n": np.array(rounds), "c": np.array(goes), "x": x}
        outputs = given.run(feeds)
        for name, array in right.run(feeds).items():
            np.testing.assert_array_equal(outputs[name], array)
