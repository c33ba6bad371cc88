"""The guard behind a softmax goes where NaN is proven not to come, and stays elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

# What leads from a sum `a` with a mask input that may hold rows of -inf, to the softmax's `t`.
THROUGH = {
    "cast": "h = Cast <to: int = 11> (a)  t = Cast <to: int = 1> (h)",
    "mul": "t = Mul (a, half)",
    "div": "t = Div (a, half)",
    "negated twice": "b = Neg (a)  t = Neg (b)",
    "matmul": "t = MatMul (a, eye)",
    "scaled matmul": "b = MatMul (a, eye)  t = Mul (b, half)",
    "gemm": "t = Gemm (a, eye)",
    "concat": "b = Concat <axis: int = 1> (a, a)  t = Slice (b, zeros, three, one)",
    "moves": "b = Transpose <perm: ints = [1, 0]> (a)  t = Transpose <perm: ints = [1, 0]> (b)",
    "min": "t = Min (a, half)",
    "where": "g = Greater (a, zero)  t = Where (g, half, a)",
    "less a product": "b = Mul (x, half)  t = Sub (a, b)",
    "log": "b = Exp (a)  t = Log (b)",
    "max": "t = Max (a, mask)",
    "if": "t = If (c) <then_branch = th () => (float[2,3] t1) { t1 = Mul (a, half) }, "
    "else_branch = el () => (float[2,3] t2) { t2 = Identity (x) }>",
    "loop": "t = Loop (n, c, a) <body = lo (int64 i, bool k, float[2,3] f) => "
    "(bool k2, float[2,3] f2) { k2 = Identity (k)  f2 = Identity (f) }>",
    "half overflow": "b = Mul (x, big)  h = Cast <to: int = 10> (b)  t = Cast <to: int = 1> (h)",
}
HEADER = """<ir_version: 10, opset_import: ["" : 20]>
guarded (float[2,3] x, float[2,3] mask, bool[2,3] keep, int64[2,3] ids, bool c) => (float[2,3] y)
<float zero = {0.0}, float half = {0.5}, float big = {-1e30}, int64[1] zeros = {0},
 int64[1] three = {3}, int64[1] one = {1}, int64 n = {2}, float ninf = {-inf}, float low = {-3e38},
 float[3,3] eye = {1, 0.0, 0.0, 0.0, 1, 0.0, 0.0, 0.0, 1}, float[4] table = {1, -2, 3, 0.5},
 bool[3] last = {0, 0, 1}>
"""


def guarded(nodes: str) -> Module:
    module = Module.parse(
        f"{HEADER} {{ {nodes}  s = Softmax <axis: int = -1> (t)  e = IsNaN (s)"
        "  y = Where (e, zero, s) }"
    )
    infer_shapes(module.model)
    return module


def canonical(module: Module) -> Module:
    after = module.clone()
    PassManager(parse("canonicalize")).run(after, Context())
    return after


def has_guard(module: Module) -> bool:
    return "IsNaN" in [node.op_type for node in module.graph]


@pytest.mark.parametrize("way", THROUGH)
def test_the_guard_stays_where_a_mask_can_reach(way: str) -> None:
    module = guarded(f"a = Add (x, mask)  {THROUGH[way]}")
    after = canonical(module)
    assert has_guard(after)
    feeds = {
        "x": np.ones((2, 3), np.float32),
        "mask": np.array([[0, 0, -np.inf], [-np.inf] * 3], np.float32),
        "keep": np.ones((2, 3), bool),
        "ids": np.zeros((2, 3), np.int64),
        "c": np.array(True),
    }
    old, new = (OrtSession(each, optimise=False).run(feeds)["y"] for each in (module, after))
    np.testing.assert_array_equal(old[1], 0)
    np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Identity (x)",
        "t = MatMul (x, eye)",
        "a = Gather (table, ids)  t = Div (a, x)",
        "a = Gather (table, ids)  t = Where (keep, a, ninf)",
        "a = Gather (table, ids)  t = Div (a, zero)",
        "a = Gather (table, ids)  t = Log (a)",
        "a = Cast <to: int = 10> (ids)  t = Cast <to: int = 1> (a)",
        "a = Cast <to: int = 1> (ids)  t = Mul (a, low)",
    ],
)
def test_the_guard_stays_where_nothing_is_proven(nodes: str) -> None:
    assert has_guard(canonical(guarded(nodes)))


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Gather (table, ids)",
        "a = Gather (table, ids)  t = MatMul (a, eye)",
        "a = Gather (table, ids)  b = Where (keep, zero, low)  t = Add (a, b)",
        "a = Gather (table, ids)  o = Or (keep, last)  t = Where (o, a, ninf)",
        "a = Gather (table, ids)  o = Or (keep, last)  b = Where (o, zero, ninf)  t = Add (a, b)",
        "f = Cast <to: int = 1> (keep)  a = Sub (half, f)  t = Mul (a, low)",
    ],
)
def test_the_guard_goes_where_no_row_can_be_hidden(nodes: str) -> None:
    module = guarded(nodes)
    after = canonical(module)
    assert not has_guard(after)
    random = np.random.default_rng(0)
    feeds = {
        "x": np.full((2, 3), np.nan, np.float32),
        "mask": np.full((2, 3), -np.inf, np.float32),
        "keep": random.random((2, 3)) > 0.7,
        "ids": random.integers(0, 4, (2, 3)),
        "c": np.array(True),
    }
    old, new = (OrtSession(each, optimise=False).run(feeds)["y"] for each in (module, after))
    np.testing.assert_array_equal(new, old)
