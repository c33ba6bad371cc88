"""Unused outputs: those that are optional go, those whose number means something stay."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

X = np.arange(8, dtype=np.float32).reshape(1, 8) - 3

SPLIT = {
    "num_outputs": (18, "a, b = Split <axis = 1, num_outputs = 2> (x) y = Neg (a)"),
    "uneven": (18, "a, b, c = Split <axis = 1, num_outputs = 3> (x) y = Neg (b)"),
    "halves": (13, "a, b = Split <axis = 1> (x) y = Neg (a)"),
    "sizes": (
        13,
        "k = Constant <value = int64[2] {3, 5}> () a, b = Split <axis = 1> (x, k) y = Neg (a)",
    ),
    "attribute": (11, "a, b = Split <axis = 1, split = [3, 5]> (x) y = Neg (a)"),
    "old halves": (11, "a, b = Split <axis = 1> (x) y = Neg (a)"),
}


def run(text: str, pipeline: str, **feeds: np.ndarray) -> tuple[Module, list[np.ndarray]]:
    """A module after a pipeline, and its outputs after those of the module as it was."""
    module = Module.parse(text)
    before = OrtSession(module, optimise=False).run(feeds)
    PassManager(parse(pipeline)).run(module, Context())
    after = OrtSession(module, optimise=False).run(feeds)
    return module, [*before.values(), *after.values()]


@pytest.mark.parametrize("case", SPLIT)
@pytest.mark.parametrize("pipeline", ["eliminate-dead", "canonicalize,fuse"])
def test_parts_of_a_split_stay(case: str, pipeline: str) -> None:
    opset, body = SPLIT[case]
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[N,C] x) => (float[N,K] y) {{ {body} }}"""
    _, (expected, given) = run(text, pipeline, x=X)
    np.testing.assert_array_equal(given, expected)


CONTROL = {
    "If": """
  a, b = If (c) <
    then_branch = t () => (float[1,8] p, float[1,8] q) { p = Relu (x) q = Exp (x) },
    else_branch = e () => (float[1,8] r, float[1,8] s) { r = Neg (x) s = Exp (x) }
  >
  y = Add (a, x)""",
    "Loop": """
  n = Constant <value = int64 {3}> ()
  a, b, d = Loop (n, c, x, x) <
    body = l (int64 i, bool k, float[1,8] p, float[1,8] q)
      => (bool m, float[1,8] r, float[1,8] s, float[1,8] t)
    { m = Identity (k) r = Neg (p) s = Exp (q) t = Identity (q) }
  >
  y = Add (a, x)""",
    "Scan": """
  a, b, d = Scan <
    num_scan_inputs = 1,
    body = l (float[8] p, float[8] q) => (float[8] r, float[8] s, float[8] t)
    { r = Add (p, q) s = Neg (q) t = Exp (q) }
  > (z, x)
  y = Add (a, x)""",
}


@pytest.mark.parametrize("op", CONTROL)
def test_outputs_of_sub_graphs_pair_off_with_their_nodes(op: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
g (float[1,8] x, bool c) => (float[1,8] y) <float[8] z = {{1, 2, 3, 4, 5, 6, 7, 8}}>
{{{CONTROL[op]} }}"""
    _, (expected, given) = run(text, "canonicalize", x=X, c=np.array(True))
    np.testing.assert_array_equal(given, expected)


def test_outputs_of_functions_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
g (float[1,8] x) => (float[1,8] y) { y, z = own.Split (x) }
<domain: "own", opset_import: ["" : 18]>
Split (x) => (a, b) { a = Neg (x) b = Exp (x) }"""
    module, (expected, given) = run(text, "eliminate-dead", x=X)
    np.testing.assert_array_equal(given, expected)
    assert len(module.graph[0].outputs) == 2


OPTIONAL = {
    "MaxPool": ([1, 1, 8], "y, i = MaxPool <kernel_shape = [2]> (x)"),
    "Dropout": ([1, 8], "y, m = Dropout (x)"),
    "LayerNormalization": ([2, 4], "y, m, i = LayerNormalization (x, s)"),
    "Unique": ([8], "y, i, j, n = Unique (x)"),
}


@pytest.mark.parametrize("op", OPTIONAL)
def test_optional_outputs_go(op: str) -> None:
    shape, body = OPTIONAL[op]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float{shape} x) => (float[] y) <float[4] s = {{1, 2, 3, 4}}> {{ {body} }}"""
    module, (expected, given) = run(text, "eliminate-dead", x=X.reshape(shape))
    np.testing.assert_array_equal(given, expected)
    assert [len(node.outputs) for node in module.graph] == [1]


def test_training_is_told_by_the_number_of_outputs() -> None:
    text = """<ir_version: 7, opset_import: ["" : 9]>
g (float[4,2] x) => (float[4,2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}>
{ y, m, v, sm, sv = BatchNormalization (x, s, b, b, s) }"""
    module = Module.parse(text)
    PassManager(parse("eliminate-dead")).run(module, Context())
    assert len(module.graph[0].outputs) == 5


def test_a_cache_that_goes_in_comes_out() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[1,1,2,4] q, float[1,1,3,4] k) => (float[1,1,2,4] y)
{ y, pk, pv = Attention (q, q, q, , k, k) }"""
    q, k = np.ones((1, 1, 2, 4), np.float32), np.ones((1, 1, 3, 4), np.float32)
    _, (expected, given) = run(text, "canonicalize", q=q, k=k)
    np.testing.assert_array_equal(given, expected)


def test_parameters_that_nothing_uses_go_with_what_only_they_needed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[1,8] x) => (float[1,8] y) <float8e4m3fn[1] t = {0}>
{
  a = own.outer (x, t)
  y = own.inner (a, t, x)
}
<domain: "own", opset_import: ["" : 21]>
inner (p, like, q) => (r) { s = CastLike (p, like) o = Cast <to = 1> (s) r = Add (o, q) }
<domain: "own", opset_import: ["" : 21, "own" : 1]>
outer (p, like) => (r)
{ s = CastLike (p, like) t = Cast <to = 1> (s) r = own.inner (t, like, t) }"""
    module = Module.parse(text)  # which ONNX Runtime refuses for its parameters of float8
    PassManager(parse("canonicalize")).run(module, Context())
    (given,) = OrtSession(module, optimise=False).run({"x": X}).values()
    np.testing.assert_array_equal(given, X * 3)
    assert not module.graph.initializers
    assert [len(f.inputs) for f in module.model.functions.values()] == [2, 1]


def test_a_parameter_that_a_sub_graph_captures_stays() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[1,8] x, bool c) => (float[1,8] y) { y = own.f (x, x, c) }
<domain: "own", opset_import: ["" : 21]>
f (p, q, c) => (r)
{
  r = If (c) <
    then_branch = t () => (float[1,8] u) { u = Neg (p) },
    else_branch = e () => (float[1,8] v) { v = Exp (q) }
  >
}"""
    module, (expected, given) = run(text, "eliminate-dead", x=X, c=np.array(True))
    np.testing.assert_array_equal(given, expected)
    (function,) = module.model.functions.values()
    assert len(function.inputs) == 3
