"""Branches that are always taken, and loops of known length, become plain nodes."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

X = np.array([[3, -1, 2, 5], [0.5, 4, -2, 1]], np.float32)
CONTROL = {"If", "Loop", "Scan"}


def check(
    text: str, pipeline: str = "canonicalize", opset: int = 17, **feeds: np.ndarray
) -> Module:
    """A module after a pipeline, which changes no output; the text may leave out what is usual."""
    if not text.startswith("<"):
        text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[2,4] x) => (y) <bool yes = {{1}}, bool no = {{0}}> {{ {text} }}"""
    module = Module.parse(text)
    feeds = feeds or {"x": X}
    before = OrtSession(module, optimise=False).run(feeds)
    PassManager(parse("canonicalize")).run(module, Context())
    after = OrtSession(module, optimise=False).run(feeds)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-6)
        assert after[name].shape == expected.shape
    return module


def control(module: Module) -> list[str]:
    return [node.op_type for node in module.nodes() if node.op_type in CONTROL]


BRANCHES = """
  then_branch = t () => (float[2,4] p) { a = Neg (x) p = Exp (a) },
  else_branch = e () => (float[2,4] q) { a = Relu (x) q = Sqrt (a) }"""

IFS = {
    "true": f"y = If (yes) <{BRANCHES}>",
    "false": f"y = If (no) <{BRANCHES}>",
    "a Constant node": f"c = Constant <value = bool {{0}}> () y = If (c) <{BRANCHES}>",
    "computed from constants": f"c = Not (no) d = And (c, yes) y = If (d) <{BRANCHES}>",
    "from a shape": f"""s = Shape (x) k = Constant <value = int64[2] {{2, 4}}> () e = Equal (s, k)
      i = Cast <to = 6> (e) m = ReduceMin <keepdims = 0> (i) c = Cast <to = 9> (m)
      y = If (c) <{BRANCHES}>""",
    "from a rank": f"""s = Shape (x) r = Size (s) k = Constant <value = int64 {{3}}> ()
      c = Less (r, k) y = If (c) <{BRANCHES}>""",
    "the same names twice": f"b = If (yes) <{BRANCHES}> c = If (yes) <{BRANCHES}> y = Add (b, c)",
    "the same names in another that stays": f"""b = If (yes) <{BRANCHES}>
      z = Constant <value = float {{0}}> () m = ReduceMax <keepdims = 0> (x) u = Greater (m, z)
      c = If (u) <{BRANCHES}> y = Add (b, c)""",
    "a name that is used later": f"b = If (yes) <{BRANCHES}> v = Neg (b) y = Identity (v)",
    "inside another": """y = If (yes) <
      then_branch = o () => (float[2,4] r) { h = Neg (x) i = If (no) <
        then_branch = t () => (float[2,4] p) { p = Exp (h) },
        else_branch = e () => (float[2,4] q) { a = Relu (x) q = Add (a, h) }
      > r = Neg (i) },
      else_branch = u () => (float[2,4] w) { w = Identity (x) }
    >""",
    "inside one that is not taken": f"""y = If (no) <
      then_branch = o () => (float[2,4] r) {{ i = If (yes) <{BRANCHES}> r = Neg (i) }},
      else_branch = u () => (float[2,4] w) {{ w = Exp (x) }}
    >""",
    "after one that decides": f"""d = If (yes) <
      then_branch = o () => (bool r) {{ r = Not (yes) }},
      else_branch = u () => (bool s) {{ s = Not (no) }}
    > y = If (d) <{BRANCHES}>""",
    "what it gives is an initializer": """b = If (yes) <
      then_branch = t () => (float[4] p) <float[4] p = {1, 2, 3, 4}> {},
      else_branch = e () => (float[4] q) <float[4] q = {0, 0, 0, 0}> {}
    > y = Add (x, b)""",
    "what it gives is an initializer and an output": """y = If (yes) <
      then_branch = t () => (float[4] p) <float[4] p = {1, 2, 3, 4}> {},
      else_branch = e () => (float[4] q) <float[4] q = {0, 0, 0, 0}> {}
    >""",
    "what it gives is around it": """y = If (yes) <
      then_branch = t () => (float[2,4] p) { p = Identity (x) },
      else_branch = e () => (float[2,4] q) { q = Neg (x) }
    >""",
    "one value twice": """a, b = If (no) <
      then_branch = t () => (float[2,4] p, float[2,4] q) { p = Exp (x) q = Neg (x) },
      else_branch = e () => (float[2,4] r, float[2,4] s) { r = Neg (x) s = Identity (r) }
    > y = Mul (a, b)""",
    "initializers of one name": """a = If (yes) <
      then_branch = t () => (float[2,4] p) <float w = {2}> { p = Mul (x, w) },
      else_branch = e () => (float[2,4] q) <float w = {3}> { q = Mul (x, w) }
    > b = If (no) <
      then_branch = t () => (float[2,4] p) <float w = {2}> { p = Mul (x, w) },
      else_branch = e () => (float[2,4] q) <float w = {3}> { q = Mul (x, w) }
    > y = Sub (a, b)""",
}


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("case", IFS)
def test_the_branch_that_is_always_taken(case: str, opset: int) -> None:
    body = IFS[case]
    module = check(body, opset=opset)
    assert control(module) == (["If"] if "stays" in case else [])


def test_outputs_keep_their_names_and_order() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x) => (a, x2, b) <bool yes = {1}> {
  a, b = If (yes) <
    then_branch = t () => (float[2,4] p, float[2,4] q) { q = Neg (x) p = Exp (q) },
    else_branch = e () => (float[2,4] r, float[2,4] s) { r = Neg (x) s = Exp (r) }
  >
  x2 = Identity (x)
}""")
    assert control(module) == []
    assert [value.name for value in module.outputs] == ["a", "x2", "b"]


def test_an_output_that_is_given_twice() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x) => (a, b, h) <bool yes = {1}> {
  h = Neg (x)
  a, b = If (yes) <
    then_branch = t () => (float[2,4] p, float[2,4] q) { p = Identity (h) q = Identity (h) },
    else_branch = e () => (float[2,4] r, float[2,4] s) { r = Neg (x) s = Exp (r) }
  >
}""")
    assert control(module) == []


def test_branches_in_functions_and_loops() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[2,4] x) => (y) <int64 n = {20}, bool yes = {1}> {
  a = own.f (x)
  y = Loop (n, yes, a) <body = l (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t) {
    d = Identity (c)
    t = If (yes) <
      then_branch = t () => (float[2,4] p) <float w = {0.5}> { p = Mul (s, w) },
      else_branch = e () => (float[2,4] q) { q = Neg (s) }
    >
  }>
}
<domain: "own", opset_import: ["" : 17]>
f (x) => (y) {
  c = Constant <value = bool {1}> ()
  y = If (c) <
    then_branch = t () => (float[2,4] p) <float w = {2}> { p = Mul (x, w) },
    else_branch = e () => (float[2,4] q) { q = Neg (x) }
  >
}""")
    assert control(module) == ["Loop"]


def test_conditions_that_are_not_known_stay() -> None:
    module = check(
        f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x, bool c) => (y) {{ y = If (c) <{BRANCHES}> }}""",
        x=X,
        c=np.array(True),
    )
    assert control(module) == ["If"]


ILLEGAL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3,5] x{more}) => (y) <int64 one = {{1}}>
{{
  s = Shape (x)
  d = Gather (s, one)
  c = {condition}
  t = If (c) <
    then_branch = t () => (float[2,5] p) <int64[1] a = {{1}}> {{ p = Squeeze (x, a) }},
    else_branch = e () => (float[2,3,5] q) {{ q = Identity (x) }}
  >
  y = Relu (t)
}}"""


def test_a_branch_that_is_not_taken_may_be_illegal() -> None:
    module = Module.parse(ILLEGAL.format(more="", condition="Equal (d, one)"))
    PassManager(parse("canonicalize")).run(module, Context())
    assert [node.op_type for node in module.nodes()] == ["Relu"]
    x = np.ones((2, 3, 5), np.float32)
    assert OrtSession(module, optimise=False).run({"x": x})["y"].shape == (2, 3, 5)


def test_a_branch_that_may_be_taken_may_not() -> None:
    module = Module.parse(ILLEGAL.format(more=", bool k", condition="Identity (k)"))
    with pytest.raises(CompileError) as caught:
        PassManager(parse("canonicalize")).run(module, Context())
    assert "--set INPUT=VALUE" in str(caught.value.hint)


def test_a_run_stops_at_every_branch() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x) => (y) <bool yes = {{1}}> {{
  b = If (yes) <{BRANCHES}> c = If (yes) <{BRANCHES}> y = Add (b, c)
}}"""
    for limit, left in ((0, 2), (1, 1), (2, 0)):
        module = Module.parse(text)
        PassManager(parse("take-branches")).run(module, Context(limit=limit))
        assert len(control(module)) == left
        OrtSession(module, optimise=False).run({"x": X})


LOOP = """body = l (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t, float[2,4] u) {
  d = Identity (c) f = Cast <to = 1> (i) v = Add (s, f) t = Mul (v, half) u = Neg (t)
}"""
ALWAYS = LOOP.replace("d = Identity (c)", "d = Identity (yes)")
ONCE = LOOP.replace("d = Identity (c)", "d = Identity (no)")
MAYBE = LOOP.replace("d = Identity (c)", "m = ReduceMax <keepdims = 0> (s) d = Less (m, half)")

LOOPS = {
    "never": (f"a, b = Loop (zero, yes, x) <{LOOP}>", 0),
    "no condition holds": (f"a, b = Loop (three, no, x) <{LOOP}>", 0),
    "once": (f"a, b = Loop (one, yes, x) <{MAYBE}>", 0),
    "thrice": (f"a, b = Loop (three, yes, x) <{LOOP}>", 0),
    "thrice without a condition": (f"a, b = Loop (three, , x) <{ALWAYS}>", 0),
    "once as the body says": (f"a, b = Loop (three, yes, x) <{ONCE}>", 0),
    "once without a count": (f"a, b = Loop (, yes, x) <{ONCE}>", 0),
    "as long as it is small": (f"a, b = Loop (three, yes, x) <{MAYBE}>", 1),
    "often": (f"a, b = Loop (twenty, yes, x) <{LOOP}>", 1),
    "as a shape says": (
        f"e = Shape (x) k = Gather (e, one) a, b = Loop (k, yes, x) <{LOOP}>",
        0,
    ),
}


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("case", LOOPS)
def test_loops_of_known_length(case: str, opset: int) -> None:
    body, left = LOOPS[case]
    module = check(f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[2,4] x) => (y, a, b) <bool yes = {{1}}, bool no = {{0}}, int64 zero = {{0}},
  int64 one = {{1}}, int64 three = {{3}}, int64 twenty = {{20}}, float half = {{0.5}}>
{{ {body} y = Add (a, x) }}""")
    assert len(control(module)) == left
    if not left:
        assert all(value.shape is not None and value.shape.is_static() for value in module.outputs)


def test_loops_in_loops_and_what_they_capture() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x) => (y) <bool yes = {1}, int64 n = {2}, int64 m = {3}>
{
  h = Exp (x)
  y = Loop (n, yes, x) <body = l (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t) {
    d = Identity (c)
    k = Neg (s)
    t = Loop (m, yes, k) <body = q (int64 j, bool e, float[2,4] u) => (bool g, float[2,4] v)
      <float w = {0.5}>
      { g = Identity (e) p = Mul (u, w) o = Add (p, h) v = Sub (o, k) }
    >
  }>
}""")
    assert control(module) == []


def test_a_state_that_grows_gets_its_size() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x) => (y) <bool yes = {1}, int64 n = {3}>
{
  a = Loop (n, yes, x) <body = l (int64 i, bool c, float[r,4] s) => (bool d, float[q,4] t) {
    d = Identity (c) t = Concat <axis = 0> (s, x)
  }>
  y = Neg (a)
}""")
    assert control(module) == []
    assert list(module.outputs[0].shape or ()) == [8, 4]


@pytest.mark.parametrize("noise", ["RandomNormalLike (s)", "own.noise (s)"])
def test_random_numbers_are_drawn_in_each_round(noise: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[2,4] x) => (y) <bool yes = {{1}}, int64 n = {{3}}>
{{
  y = Loop (n, yes, x) <body = l (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t) {{
    d = Identity (c) r = {noise} t = Add (s, r)
  }}>
}}
<domain: "own", opset_import: ["" : 17]>
noise (s) => (r) {{ r = RandomUniformLike <seed = 1.0> (s) }}"""
    module, ctx = Module.parse(text), Context()
    PassManager(parse("canonicalize")).run(module, ctx)
    assert control(module) == ["Loop"]
    assert any("random numbers" in remark.message for remark in ctx.remarks)


SCANS = {
    "a sum": (
        "",
        "float[4] s, float[4] e",
        "float[4] t, float[4] u",
        "t = Add (s, e) u = Neg (t)",
        "z, x",
    ),
    "along the other axis": (
        "scan_input_axes = [1], scan_output_axes = [1],",
        "float[2] s, float[2] e",
        "float[2] t, float[2] u",
        "t = Add (s, e) u = Neg (t)",
        "w, x",
    ),
    "from the end": (
        "scan_input_axes = [-1], scan_output_axes = [-1], scan_input_directions = [1], "
        "scan_output_directions = [1],",
        "float[2] s, float[2] e",
        "float[2] t, float[2] u",
        "t = Sub (s, e) u = Exp (e)",
        "w, x",
    ),
}


@pytest.mark.parametrize("opset", [11, 16, 19])
@pytest.mark.parametrize("case", SCANS)
def test_scans_of_known_length(case: str, opset: int) -> None:
    attributes, inputs, outputs, body, operands = SCANS[case]
    module = check(f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[2,4] x) => (a, b) <float[4] z = {{1, 2, 3, 4}}, float[2] w = {{1, 2}}> {{
  a, b = Scan <num_scan_inputs = 1, {attributes} body = l ({inputs}) => ({outputs}) {{ {body} }}>
    ({operands})
}}""")
    assert control(module) == []


def test_a_scan_of_unknown_length_stays() -> None:
    module = check("""<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (b) {
  b = Scan <num_scan_inputs = 1, body = l (float[4] e) => (float[4] u) { u = Neg (e) }> (x)
}""")
    assert control(module) == ["Scan"]
