"""Branches and loops that give a value twice, or as they got it, give the right one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

X = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
SCAN = """g (float[5,2,3] x, float[2,3] h) => (y, s, u, v)
{ y, s, u, v = Scan (h, x) <num_scan_inputs = 1,
    body = b (float[2,3] a, float[2,3] q)
      => (float[2,3] c, float[2,3] c, float[2,3] q, float[2,3] c)
    { c = Add (a, q) }> }"""
IF = """g (float[5,2,3] x, bool c) => (y, z)
{ y, z = If (c) <
    then_branch = t () => (float[5,2,3] a, float[5,2,3] a) { a = Relu (x) },
    else_branch = e () => (float[5,2,3] b, float[5,2,3] d) { b = Neg (x) d = Abs (x) }> }"""
LOOP = """g (float[5,2,3] x, float[5,2,3] w, int64 n) => (y, z) <bool t = {1}>
{ y, z = Loop (n, t, x, w) <
    body = b (int64 i, bool c, float[5,2,3] a, float[5,2,3] q)
      => (bool c, float[5,2,3] d, float[5,2,3] q) { d = Add (a, q) }> }"""
SUMS = X.cumsum(0)
CASES = {
    "scan": (SCAN, {"x": X, "h": np.zeros((2, 3), np.float32)}, [SUMS[-1], SUMS, X, SUMS]),
    "if": (IF, {"x": X, "c": np.array(True)}, [np.maximum(X, 0)] * 2),
    "loop": (LOOP, {"x": X, "w": X * 2, "n": np.array(3)}, [X * 7, X * 2]),
}
TARGETS = ["", "mobile", "cpu", "jetson(board=host)"]
LIBRARIES = {"cpu": "openvino", "jetson(board=host)": "tvm"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_all_that_is_given_is_right(case: str, target: str) -> None:
    text, feeds, expected = CASES[case]
    if target in LIBRARIES and importlib.util.find_spec(LIBRARIES[target]) is None:
        pytest.skip(f"needs {LIBRARIES[target]}")
    if case == "loop" and target.startswith("jetson"):
        pytest.skip("it has no loops")
    module = Module.parse(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')
    if not target:
        made = OrtSession(module).run(feeds)
    else:
        device = make_target(target)
        PassManager(parse(device.pipeline())).run(module, Context(target=device))
        assert device.check(module) == []
        session = device.open(module, threads=1)
        if session is None:
            pytest.skip("nothing here runs its programs")
        made = session.run(feeds)
    for given, right in zip(made.values(), expected, strict=True):
        np.testing.assert_allclose(given, right, rtol=1e-5, atol=1e-5)
