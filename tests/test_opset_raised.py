"""The opset is raised for rewrites that are made, and never past what runtimes have kernels for."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)

GELU = """
  d = Div (x, root) e = Erf (d) f = Add (e, one) m = Mul (x, f) y = Mul (m, half)"""
SILU = "s = Sigmoid (x) y = Mul (x, s)"
NOISE = {
    "RandomNormalLike": "r = RandomNormalLike <seed = 1.0> (x)",
    "RandomUniformLike": "r = RandomUniformLike <seed = 1.0> (x)",
    "RandomNormal": "r = RandomNormal <shape = [2, 4], seed = 1.0> ()",
    "RandomUniform": "r = RandomUniform <shape = [2, 4], seed = 1.0> ()",
    "Bernoulli": "h = Sigmoid (x) r = Bernoulli <seed = 1.0> (h)",
}


def module_of(opset: int, body: str) -> Module:
    return Module.parse(f"""<ir_version: 10, opset_import: ["" : {opset}]>
g (float[2,4] x) => (float[2,4] y)
<float root = {{1.4142135}}, float one = {{1}}, float half = {{0.5}}> {{ {body} }}""")


def run(module: Module, pipeline: str, target: str | None = None) -> Context:
    ctx = Context(target=None if target is None else make_target(target))
    PassManager(parse(pipeline)).run(module, ctx)
    return ctx


def operators(module: Module) -> list[str]:
    return sorted(node.op_type for node in module.nodes())


@pytest.mark.parametrize("target", [None, "mobile", "cpu", "gpu", "jetson"])
@pytest.mark.parametrize("body", ["y = Relu (x)", SILU, "s = Sigmoid (x) y = Sub (x, s)"])
def test_the_opset_stays_where_nothing_needs_another(body: str, target: str | None) -> None:
    module = module_of(17, body)
    run(module, "canonicalize,fuse", target)
    assert module.opset == 17


def test_the_opset_becomes_what_the_fusion_needs() -> None:
    module = module_of(13, GELU)
    before = OrtSession(module, optimise=False).run({"x": X})
    run(module, "canonicalize,fuse")
    assert module.opset == 20
    assert operators(module) == ["Gelu"]
    after = OrtSession(module, optimise=False).run({"x": X})
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5)


@pytest.mark.parametrize("target", [None, "mobile"])
@pytest.mark.parametrize("noise", NOISE)
def test_random_operators_keep_their_kernels(noise: str, target: str | None) -> None:
    module = module_of(
        17, f"{NOISE[noise]} z = Add (r, x) {GELU.replace('y =', 'g =')} y = Add (g, z)"
    )
    run(module, "canonicalize,fuse,legalize", target)
    assert module.opset == 20
    assert "Gelu" in operators(module)
    assert np.isfinite(OrtSession(module, optimise=False).run({"x": X})["y"]).all()


def test_a_fusion_past_the_kernels_is_not_made_and_said() -> None:
    body = """
  r = RandomNormalLike (q) k = Transpose <perm = [0, 1, 3, 2]> (q) s = MatMul (q, k)
  p = Softmax <axis = -1> (s) o = MatMul (p, r) y = Identity (o)"""
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 17]>
g (float[1,2,3,4] q) => (float[1,2,3,4] y) {{ {body} }}""")
    ctx = run(module, "canonicalize,fuse", "mobile")
    assert module.opset == 17
    assert "Attention" not in operators(module)
    assert any("RandomNormalLike does not run in opset 24" in r.message for r in ctx.remarks)


@pytest.mark.parametrize("noise", NOISE)
def test_a_model_that_is_past_the_kernels_is_lowered_for_a_target(noise: str) -> None:
    module = module_of(22, f"{NOISE[noise]} y = Add (r, x)")
    run(module, "canonicalize,fuse,legalize", "mobile")
    assert module.opset == 21
    assert make_target("mobile").check(module) == []
    OrtSession(module, optimise=False).run({"x": X})


def test_what_a_lower_opset_lacks_is_spelt_out_first() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 23]>
g (float[2,4] x) => (float[2,4] y) <float[4] s = {1, 2, 3, 4}, float zero = {0}>
{
  n = RMSNormalization (x, s)
  r = RandomNormalLike <seed = 1.0> (n)
  z = Mul (r, zero)
  y = Add (n, z)
}""")
    run(module, "canonicalize,fuse,legalize", "mobile")
    assert module.opset == 21
    expected = X / np.sqrt((X * X).mean(1, keepdims=True) + 1e-5) * [1, 2, 3, 4]
    result = OrtSession(module, optimise=False).run({"x": X})["y"]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize(("opset", "made"), [(23, False), (24, True), (25, False), (26, False)])
def test_swish_is_made_where_runtimes_have_it(opset: int, made: bool) -> None:
    for target in (None, "cpu"):
        module = module_of(opset, SILU)
        run(module, "canonicalize,fuse", target)
        assert ("Swish" in operators(module)) == made
        result = OrtSession(module, optimise=False).run({"x": X})["y"]
        np.testing.assert_allclose(result, X / (1 + np.exp(-X)), rtol=1e-5)


def test_swish_of_a_later_opset_is_spelt_out() -> None:
    module = module_of(26, "y = Swish <alpha = 2.0> (x)")
    run(module, "canonicalize,fuse,legalize", "mobile")
    result = OrtSession(module, optimise=False).run({"x": X})["y"]
    np.testing.assert_allclose(result, X / (1 + np.exp(-2 * X)), rtol=1e-5)


def test_problems_of_versions_say_what_to_do() -> None:
    module = module_of(22, "r = RandomNormalLike (x) y = Add (r, x)")
    (problem,) = make_target("mobile").check(module)
    assert problem.message == "no kernel for RandomNormalLike of opset 22, only of from 7 to 21"
    assert "convert-opset(version=21)" in problem.hint
    run(module, "convert-opset(version=21)", "mobile")
    assert make_target("mobile").check(module) == []


def test_models_of_old_opsets_have_a_way() -> None:
    module = Module.parse("""<ir_version: 3, opset_import: ["" : 6]>
g (float[2,4] x, float[2] c) => (float[2,4] y) { y = Add <broadcast = 1, axis = 0> (x, c) }""")
    (problem,) = make_target("mobile").check(module)
    assert "convert-opset(version=7)" in problem.hint
    for pipeline in ("convert-opset(version=7)", "canonicalize,fuse,legalize"):
        raised = module.clone()
        run(raised, pipeline, "mobile")
        assert raised.opset == 7
        c = np.array([1, 2], np.float32)
        result = OrtSession(raised, optimise=False).run({"x": X, "c": c})["y"]
        np.testing.assert_array_equal(result, X + c[:, None])
