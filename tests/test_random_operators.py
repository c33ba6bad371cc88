"""Random operators are neither merged, folded nor copied, wherever they stand."""

from __future__ import annotations

import pytest

from aigcc.ir.module import Module
from aigcc.ir.operators import is_random
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse

DRAWS = {
    "RandomNormal": "RandomNormal <shape = [2, 4], seed = 1.0> ()",
    "RandomNormalLike": "RandomNormalLike <seed = 1.0> (w)",
    "RandomUniform": "RandomUniform <shape = [2, 4]> ()",
    "RandomUniformLike": "RandomUniformLike (w)",
    "Bernoulli": "Bernoulli (w)",
    "Multinomial": "Multinomial <sample_size = 4, dtype = 7> (w)",
    "Dropout": "Dropout (w, ratio, yes)",
}


@pytest.mark.parametrize("target", [None, "mobile"])
@pytest.mark.parametrize("place", ["graph", "branch", "function", "loop"])
@pytest.mark.parametrize("draw", DRAWS)
def test_each_draw_stays_one(draw: str, place: str, target: str | None) -> None:
    from aigcc.targets import make_target

    kind = "int64" if draw == "Multinomial" else "float"
    body = f"a = {DRAWS[draw]} b = {DRAWS[draw]}"
    constants = """float[2,4] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, float ratio = {0.5},
      bool yes = {1}, int64 n = {3}"""
    inside = {
        "graph": f"{body} y = Sub (a, b)",
        "branch": f"""y = If (c) <
          then_branch = t () => ({kind}[2,4] p) {{ {body} p = Sub (a, b) }},
          else_branch = e () => ({kind}[2,4] q) {{ {body} q = Add (a, b) }}
        >""",
        "function": "d = own.draw (w, ratio, yes) f = own.draw (w, ratio, yes) y = Sub (d, f)",
        "loop": f"""z = Cast <to = {7 if kind == "int64" else 1}> (w)
        y = Loop (n, yes, z) <body = l (int64 i, bool k, {kind}[2,4] s)
          => (bool o, {kind}[2,4] t)
          {{ o = Identity (k) {body} u = Sub (a, b) t = Add (s, u) }}>""",
    }[place]
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (bool c) => ({kind}[2,4] y) <{constants}> {{ {inside} }}
<domain: "own", opset_import: ["" : 17]>
draw (w, ratio, yes) => (r) {{ {body} r = Sub (a, b) }}""")
    before = sum(node.op_type == draw for node in module.nodes())
    if place != "function":
        module.model.functions.clear()
        before = sum(node.op_type == draw for node in module.nodes())
    ctx = Context(target=None if target is None else make_target(target))
    PassManager(parse("canonicalize,fuse,legalize,canonicalize")).run(module, ctx)
    assert sum(node.op_type == draw for node in module.nodes()) == before
    calls = [node for node in module.graph if node.domain == "own"]
    assert len(calls) == (2 if place == "function" else 0)


def test_what_draws_random_numbers() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 17, "own" : 1, "other" : 1]>
g (float[2] x, bool c) => (y) {
  a = own.outer (x)
  b = own.quiet (x)
  d = other.Unknown (x)
  e = If (c) <
    then_branch = t () => (float[2] p) { p = RandomNormalLike (x) },
    else_branch = o () => (float[2] q) { q = Neg (x) }
  >
  f = Dropout (x)
  y = Sum (a, b, d, e, f)
}
<domain: "own", opset_import: ["" : 17]>
inner (x) => (y) { y = RandomUniformLike (x) }
<domain: "own", opset_import: ["" : 17, "own" : 1]>
outer (x) => (y) { z = own.inner (x) y = Neg (z) }
<domain: "own", opset_import: ["" : 17]>
quiet (x) => (y) { y = Exp (x) }""")
    answers = [is_random(node, module.model.functions) for node in module.graph]
    assert answers == [True, False, True, True, False, False]
