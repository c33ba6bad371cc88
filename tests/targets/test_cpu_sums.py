"""OpenVINO adds in the order of the model where one constant takes digits away."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

pytest.importorskip("openvino")

X = np.array([[0.4, 0.6, -1.7, 2.2], [np.nan, np.inf, -np.inf, 1e9]], np.float32)
FORMS = {
    "a sum and a difference": "a = Add (x, m)  y = Sub (a, m)",
    "the constant first": "a = Add (m, x)  y = Sub (a, m)",
    "two sums": "a = Add (x, m)  y = Add (n, a)",
    "a difference and a sum": "a = Sub (x, n)  y = Sub (a, m)",
    "something is left": "a = Add (x, m)  b = Sub (a, k)  y = Mul (b, two)",
    "a row of constants": "a = Add (x, row)  y = Sub (a, row)",
    "a branch": """t = Size (x)  c = Greater (t, t)  y = If (c) <
        then_branch = t () => (float[N,4] p) { p = Neg (x) },
        else_branch = e () => (float[N,4] q) { a = Add (x, m) q = Sub (a, m) }
      >""",
}


@pytest.mark.parametrize("form", FORMS)
def test_digits_that_a_sum_takes_stay_away(form: str) -> None:
    module = Module.parse(f"""<ir_version: 9, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,4] y) <float m = {{12582912}}, float n = {{-12582912}},
      float k = {{12582910}}, float two = {{2}}, float[4] row = {{12582912, 0, 12582912, 1}}>
    {{ {FORMS[form]} }}""")
    given = make_target("cpu").open(module)
    assert given is not None
    right = OrtSession(module, optimise=False).run({"x": X})["y"]
    assert not np.array_equal(right[0], X[0])
    np.testing.assert_array_equal(given.run({"x": X})["y"], right)
