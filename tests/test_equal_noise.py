"""Programs that draw random numbers are compared with equal ones, and faults beside them found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.analysis.layers.compare import compare_layers
from aigcc.driver import build
from aigcc.errors import TargetError
from aigcc.ir.draws import count_draws
from aigcc.ir.module import Module
from aigcc.noise import describe_noise, equal_noise, equal_noises
from aigcc.passes import PASSES
from aigcc.pipeline.bisect import find_first_wrong
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets import make_target

DRAWS = {
    "Bernoulli": "Bernoulli (w)",
    "Dropout": "Dropout (w, ratio, yes)",
    "Multinomial": "Multinomial <sample_size = 4, dtype = 7> (w)",
    "RandomNormal": "RandomNormal <shape = [2, 4], seed = 1.0, scale = 2.0, mean = 5.0> ()",
    "RandomNormalLike": "RandomNormalLike <scale = 3.0> (w)",
    "RandomUniform": "RandomUniform <shape = [2, 4], low = -3.0, high = -1.0> ()",
    "RandomUniformLike": "RandomUniformLike <seed = 1.0> (w)",
}
W = np.linspace(0.1, 0.9, 8, dtype=np.float32).reshape(2, 4)


def _module(draw: str, place: str, rows: int | str) -> Module:
    number, kind = (7, "int64") if draw == "Multinomial" else (1, "float")
    body = f"a = {DRAWS[draw]} b = {DRAWS[draw]}"
    inside = {
        "graph": f"{body} y = Sub (a, b)",
        "branch": f"""y = If (c) <then_branch = t () => ({kind}[2,4] p) {{ {body} p = Sub (a, b) }},
          else_branch = e () => ({kind}[2,4] q) {{ {body} q = Add (a, b) }}>""",
        "function": "d = own.draw (w, ratio, yes) f = own.draw (w, ratio, yes) y = Sub (d, f)",
        "loop": f"""z = Cast <to = {number}> (w)
          last, y = Loop (n, yes, z) <body = l (int64 i, bool k, {kind}[2,4] s)
            => (bool o, {kind}[2,4] t, {kind}[2,4] u)
          {{ o = Identity (k) {body} u = Sub (a, b) t = Add (s, u) }}>""",
        "scan": f"""z = Cast <to = {number}> (w)
          last, y = Scan <num_scan_inputs = 1, body = l ({kind}[2,4] s, int64 i)
            => ({kind}[2,4] t, {kind}[2,4] u) {{ {body} u = Sub (a, b) t = Add (s, u) }}> (z, m)""",
    }[place]
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[{rows},4] w, bool c) => (y)
<float ratio = {{0.5}}, bool yes = {{1}}, int64 n = {{3}}, int64[3] m = {{0, 0, 0}}> {{ {inside} }}
<domain: "own", opset_import: ["" : 17]>
draw (w, ratio, yes) => (r) {{ {body} r = Sub (a, b) }}""")
    if place != "function":
        module.model.functions.clear()
    return module


@pytest.mark.parametrize("rows", [2, "N"])
@pytest.mark.parametrize("place", ["graph", "branch", "function", "loop", "scan"])
@pytest.mark.parametrize("draw", DRAWS)
def test_all_runs_draw_the_same(draw: str, place: str, rows: int | str) -> None:
    module, feeds = _module(draw, place, rows), {"w": W, "c": np.array(True)}
    wanted = OrtSession(module, optimise=False).run(feeds)["y"]
    made = equal_noise(module)
    drawn = 4 if place == "branch" else 2
    assert count_draws(module) == drawn
    assert count_draws(made) == 0
    assert describe_noise(module) == f"{drawn} random operators: compared with equal noise"
    sessions = [OrtSession(made, optimise=optimise) for optimise in (False, True)]
    results = [session.run(feeds)["y"] for session in sessions for _ in range(2)]
    for result in results:
        assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
        assert np.allclose(result, results[0], rtol=1e-6)
    assert len(np.unique(results[0])) > 1
    if place in ("loop", "scan"):  # each round draws for itself
        assert not np.array_equal(results[0][0], results[0][1])
        assert not np.array_equal(results[0][1], results[0][2])


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, 22])
def test_numbers_are_spread_as_the_node_says(opset: int) -> None:
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[N] x) => (float[N] n, double[N] u, float16[N] h) {{
  n = RandomNormalLike <mean = 5.0, scale = 2.0> (x)
  u = RandomUniformLike <low = -3.0, high = -1.0, dtype = 11> (x)
  h = RandomNormalLike <dtype = 10> (x)
}}""")
    made = OrtSession(equal_noise(module)).run({"x": np.zeros(16000, np.float32)})
    assert made["n"].dtype == np.float32
    assert made["n"].mean() == pytest.approx(5, abs=0.05)
    assert made["n"].std() == pytest.approx(2, abs=0.05)
    assert made["u"].dtype == np.float64
    assert -3 <= made["u"].min() < -2.99 < -1.01 < made["u"].max() < -1
    assert made["h"].dtype == np.float16
    assert not np.allclose(made["h"], (made["n"] - 5) / 2, atol=0.1)


def test_samples_and_dropouts_are_as_often_as_the_node_says() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 17]>
g (float[N] p, float[1,3] l, bool t) => (float[N] b, int32[1,8000] m, float[N] d, bool[N] k)
<float ratio = {0.25}> {
  b = Bernoulli (p)
  m = Multinomial <sample_size = 8000> (l)
  d, k = Dropout (p, ratio, t)
}""")
    p, logits = np.full(8000, 0.3, np.float32), np.log(np.float32([[1, 2, 5]]) / 8)
    session = OrtSession(equal_noise(module))
    made = session.run({"p": p, "l": logits, "t": np.array(True)})
    assert made["b"].mean() == pytest.approx(0.3, abs=0.02)
    counts = np.bincount(made["m"].ravel(), minlength=3) / 8000
    assert np.allclose(counts, [1 / 8, 2 / 8, 5 / 8], atol=0.02)
    assert made["k"].mean() == pytest.approx(0.75, abs=0.02)
    assert np.allclose(made["d"], np.where(made["k"], p / 0.75, 0))
    made = session.run({"p": p, "l": logits, "t": np.array(False)})
    assert made["k"].all()
    assert np.array_equal(made["d"], p)


INNOCENT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) {
  i = Identity (x)
  j = Neg (i)
  r = RandomNormalLike <scale = 0.5> (j)
  z = Mul (r, j)
  y = Add (z, x)
}"""


@pytest.mark.parametrize("target", ["mobile(format=ort)", "cpu", "gpu"])
def test_an_innocent_rewrite_is_not_accused(target: str, tmp_path: Path) -> None:
    made = build(Module.parse(INNOCENT), target, tmp_path / "out")
    quality = made.artifact.manifest["quality"]
    assert quality["noise"] == "1 random operator: compared with equal noise"
    assert quality["outputs"][0]["relative"] < 1e-2
    assert quality["noise"] in (tmp_path / "out" / "report.html").read_text("utf-8")
    found = find_first_wrong(
        Module.parse(INNOCENT),
        parse("canonicalize,fuse"),
        load_samples(None, Module.parse(INNOCENT)),
        tolerance=1e-4,
    )
    assert found.rewrites
    assert found.remark is None


def test_what_ships_draws_as_the_original(tmp_path: Path) -> None:
    made = build(Module.parse(INNOCENT), "mobile", tmp_path / "out")
    assert made.artifact.manifest["quality"]["outputs"][0]["relative"] < 1e-4
    shipped = Module.load(made.artifact.folder / "model.onnx")
    (draw,) = [node for node in shipped.graph if node.op_type == "RandomNormalLike"]
    assert {name: item.value for name, item in draw.attributes.items()} == {"scale": 0.5}
    session = OrtSession(made.artifact.folder / "model.onnx")
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert not np.array_equal(session.run(feeds)["y"], session.run(feeds)["y"])


@dataclasses.dataclass(frozen=True)
class ForgetScale(Pass):
    """Drop the scale of noise, which is wrong."""

    name: ClassVar[str] = "forget-scale"

    def run(self, module: Module, ctx: Context) -> None:
        """Drop it from each node that has one."""
        for node in module.nodes():
            if "scale" in node.attributes and ctx.rewrite(node, "its scale is 1"):
                del node.attributes["scale"]


@dataclasses.dataclass(frozen=True)
class Overdo(Pass):
    """Let an Add become a Sub, which is wrong."""

    name: ClassVar[str] = "overdo"

    def run(self, module: Module, ctx: Context) -> None:
        """Change each."""
        for node in module.nodes():
            if node.op_type == "Add" and ctx.rewrite(node, "a + b -> a - b"):
                node.op_type = "Sub"


@pytest.mark.parametrize(("fault", "node"), [(ForgetScale(), "r"), (Overdo(), "y")])
def test_a_fault_beside_noise_is_found(fault: Pass, node: str) -> None:
    catalogue = {**PASSES, fault.name: type(fault)}
    pipeline = parse(f"canonicalize,{fault.name},fuse", catalogue)
    module = Module.parse(INNOCENT)
    found = find_first_wrong(module, pipeline, load_samples(None, module), tolerance=1e-4)
    assert found.remark is not None
    assert (found.remark.maker, found.remark.node) == (fault.name, node)


def test_a_build_with_a_fault_beside_noise_is_refused(tmp_path: Path) -> None:
    pipeline, module = [ForgetScale()], Module.parse(INNOCENT)
    with pytest.raises(TargetError, match=r"output 'y' is wrong"):
        build(module, "mobile", tmp_path / "out", passes=pipeline)


def test_layers_are_compared_with_equal_noise() -> None:
    original, other = Module.parse(INNOCENT), Module.parse(INNOCENT)
    ForgetScale().run(other, Context())
    found = compare_layers(original, other, load_samples(None, original))
    rows = {row.value: row for row in found.rows}
    assert found.nodes == 5
    assert rows["r"].op == "RandomNormalLike"
    assert rows["r"].own < 20
    assert rows["z"].own > 100


def test_draws_of_other_names_are_paired_in_order() -> None:
    renamed = INNOCENT.replace("r = Random", "s = Random").replace("Mul (r", "Mul (s")
    a, b = equal_noises(Module.parse(INNOCENT), Module.parse(renamed))
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert np.array_equal(OrtSession(a).run(feeds)["y"], OrtSession(b).run(feeds)["y"])
    apart = equal_noise(Module.parse(renamed))
    assert not np.array_equal(OrtSession(apart).run(feeds)["y"], OrtSession(a).run(feeds)["y"])


def test_names_of_draws_survive_renaming() -> None:
    module = Module.parse(INNOCENT)
    made = module.clone()
    PassManager(parse("canonicalize")).run(made)
    for node in made.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"renamed_{value.name}"
    feeds = {"x": np.ones((2, 4), np.float32)}
    results = [OrtSession(equal_noise(each)).run(feeds)["y"] for each in (module, made)]
    assert np.array_equal(*results)
    again = Module.parse(made.text())
    assert np.array_equal(OrtSession(equal_noise(again)).run(feeds)["y"], results[0])


@pytest.mark.parametrize("place", ["graph", "function", "loop"])
@pytest.mark.parametrize("draw", ["RandomNormalLike", "RandomUniform", "Bernoulli"])
def test_other_runtimes_draw_the_same(draw: str, place: str) -> None:
    module, feeds = equal_noise(_module(draw, place, 2)), {"w": W, "c": np.array(True)}
    module.graph.inputs[1:] = []
    del feeds["c"]
    session = make_target("cpu").open(module)
    assert session is not None
    wanted = OrtSession(module, optimise=False).run(feeds)["y"]
    assert np.allclose(session.run(feeds)["y"], wanted, atol=1e-5)


NESTED = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[N,4] x, bool c) => (float[N,4] y, float[K,N,4] all)
<int64 three = {3}, int64 two = {2}, bool yes = {1}, int64[2] m = {0, 1}> {
  i0 = Identity (x)
  y, all = Loop (three, yes, i0) <body = outer (int64 i, bool k, float[N,4] s)
    => (bool o, float[N,4] t, float[N,4] each) {
      o = Identity (k)
      in = Loop (two, k, s) <body = inner (int64 j, bool l, float[N,4] u)
        => (bool p, float[N,4] v) {
          p = Identity (l)
          r = RandomNormalLike <scale = 0.5> (u)
          f = own.draw (u)
          v = Sum (u, r, f)
        }>
      b = If (c) <
        then_branch = a () => (float[N,4] e) { e = RandomUniformLike (in) },
        else_branch = d () => (float[N,4] h) { q = own.draw (in) h = Neg (q) }>
      w, seen = Scan <num_scan_inputs = 1, body = scan (float[N,4] a0, int64 z)
        => (float[N,4] a1, float[N,4] a2) {
          n = RandomNormalLike <scale = 0.25> (a0)
          a1 = Add (a0, n)
          a2 = Identity (n)
        }> (b, m)
      t = Add (in, w)
      each = Identity (t)
    }>
}
<domain: "own", opset_import: ["" : 17]>
draw (w) => (r) { a = RandomNormalLike (w) b = RandomNormalLike (w) r = Sub (a, b) }"""


@pytest.mark.parametrize("condition", [False, True])
def test_bisection_of_loops_in_loops(condition: bool) -> None:
    module = Module.parse(NESTED)
    feeds = load_samples([{"x": W, "c": np.array(condition)}], module)
    found = find_first_wrong(module, parse("canonicalize,fuse"), feeds, tolerance=1e-5)
    assert found.rewrites
    assert found.is_right
    catalogue = {**PASSES, "forget-scale": ForgetScale}
    pipeline = parse("canonicalize,forget-scale,fuse", catalogue)
    found = find_first_wrong(module, pipeline, feeds, tolerance=1e-5)
    assert found.remark is not None
    assert (found.remark.maker, found.remark.node) == ("forget-scale", "r")


def test_functions_with_very_many_calls_draw_alike() -> None:
    """Each of twelve functions calls the next one twice, and the last one draws."""
    chain = "".join(
        f"""<domain: "own", opset_import: ["" : 17, "own" : 1]>
        f{n} (x) => (y) {{ a = own.f{n + 1} (x) b = own.f{n + 1} (x) y = Add (a, b) }}
        """
        for n in range(12)
    )
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[2] x) => (float[2] y) {{ y = own.f0 (x) }}
{chain}<domain: "own", opset_import: ["" : 17]>
f12 (x) => (y) {{ y = RandomNormal <shape = [2]> () }}""")
    made = equal_noise(module)
    assert count_draws(made) == 0
    assert sum(1 for _ in made.nodes()) < 1 << 13


def test_a_function_of_another_opset_draws_alike_in_each_call() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[2] x) => (float[2] a, float[2] b) { a = own.draw (x) b = own.draw (x) }
<domain: "own", opset_import: ["" : 16]>
draw (w) => (r) { r = RandomNormal <shape = [2]> () }""")
    made = equal_noise(module)
    assert count_draws(made) == 0
    assert isinstance(next(iter(made.model.functions.values())), ir.Function)
    results = [OrtSession(made).run({"x": np.ones(2, np.float32)}) for _ in range(2)]
    assert np.array_equal(results[0]["a"], results[1]["a"])
