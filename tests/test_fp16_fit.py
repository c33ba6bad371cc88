"""What float16 cannot hold is computed in float32, whether it is too large or too small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.to_fp16 import ToFp16
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples

Feeds = dict[str, npt.NDArray[np.generic]]


def numbers(*values: float) -> str:
    return ", ".join(repr(float(value)) for value in values)


def converted(module: Module, feeds: Feeds | None) -> tuple[Module, Context]:
    infer_shapes(module.model)
    half = module.clone()
    ctx = Context(samples=None if feeds is None else load_samples(lambda: [feeds], module))
    PassManager([ToFp16()]).run(half, ctx)
    return half, ctx


def error(module: Module, half: Module, feeds: Feeds) -> float:
    old, new = (OrtSession(each, optimise=False).run(feeds)["y"] for each in (module, half))
    np.testing.assert_array_equal(np.isnan(new), np.isnan(old))
    return float(np.abs(new - old).max() / np.abs(old).max())


def float_nodes(half: Module) -> set[str]:
    return {node.op_type for node in half.graph if node.outputs[0].dtype == 1} - {"Cast"}


@pytest.mark.parametrize("with_samples", [True, False])
@pytest.mark.parametrize("scale", [1e-5, 1e-6, 1e-8, 1e-12])
@pytest.mark.parametrize("call", ["Mul (a, g)", "Div (a, h)", "MatMul (a, d)", "Mul (a, one)"])
def test_small_factors_do_not_become_zero(call: str, scale: float, with_samples: bool) -> None:
    random = np.random.default_rng(0)
    factors = scale * random.uniform(0.5, 2, 4)
    diagonal = np.diag(factors).ravel()
    module = Module.parse(
        f"""<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {{{numbers(*random.standard_normal(16))}}}, float[4] g = {{{numbers(*factors)}}},
 float[4] h = {{{numbers(*(1 / factors))}}}, float[4,4] d = {{{numbers(*diagonal)}}},
 float one = {{{numbers(scale)}}}, float[4,4] v = {{{numbers(*random.standard_normal(16) * 100)}}}>
{{ a = MatMul (x, w)  b = {call}  y = MatMul (b, v) }}"""
    )
    feeds: Feeds = {"x": random.standard_normal((3, 4)).astype(np.float32)}
    half, ctx = converted(module, feeds if with_samples else None)
    assert error(module, half, feeds) < 5e-3
    declined = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert any("float16" in message for message in declined) == (scale < 1e-5 or "Div" in call)


def test_small_activations_keep_their_digits() -> None:
    module = Module.parse("""<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}>
{ a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, w) }""")
    x = 1e-7 * np.random.default_rng(0).standard_normal((3, 4))
    feeds: Feeds = {"x": x.astype(np.float32)}
    half, ctx = converted(module, feeds)
    assert error(module, half, feeds) < 1e-6
    assert any("less than float16 resolves" in str(remark) for remark in ctx.remarks)


def test_large_powers_stay_float32() -> None:
    module = Module.parse("""<ir_version: 9, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y)
<float[2,2] w = {20.0, 5.0, -7.0, 30.0}, float[2,2] v = {0.5, 1.0, 0.25, -1.0}>
{ a = MatMul (x, w)  r = Relu (a)  s = Mul (r, r)  p = Mul (s, s)  y = MatMul (p, v) }""")
    feeds: Feeds = {"x": np.array([[1.0, 0.5], [3.0, 1.0]], np.float32)}
    half, _ = converted(module, feeds)
    assert error(module, half, feeds) < 2e-3
    assert "MatMul" in float_nodes(half)


NORMS = {
    "RMSNormalization (m, s)": 300.0,
    "LayerNormalization (m, s)": 300.0,
    "LpNormalization (m)": 300.0,
}


@pytest.mark.parametrize("call", NORMS)
@pytest.mark.parametrize("loud", [True, False])
def test_norms_whose_squares_overflow_stay_float32(call: str, loud: bool) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 23]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {{1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0}},
 float[4] s = {{1.0, 1.0, 1.0, 1.0}}>
{{ m = MatMul (x, w)  n = {call}  y = MatMul (n, w) }}""")
    scale = NORMS[call] if loud else 1.0
    feeds: Feeds = {"x": np.array([[1.0, -1.0, 0.5, 2.0]], np.float32) * np.float32(scale)}
    half, ctx = converted(module, feeds)
    assert error(module, half, feeds) < 2e-3
    assert (call.split()[0] in float_nodes(half)) == loud
    assert any("squares of its input" in str(remark) for remark in ctx.remarks) == loud


@pytest.mark.parametrize(
    "call", ["LayerNormalization (m, s)", "InstanceNormalization (i, o, z)", "GroupNormalization"]
)
@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
def test_norms_of_a_large_mean_stay_float32(call: str, mean: float) -> None:
    if call == "GroupNormalization":
        call = "GroupNormalization <num_groups: int = 1> (i, o, z)"
    back = "k = Reshape (n, flat)" if "(i" in call else "k = Identity (n)"
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[4,4] x) => (float[4,4] y)
<float[4,4] w = {{1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0}},
 float[4] s = {{1.0, 1.0, 1.0, 1.0}}, float[1] o = {{1.0}}, float[1] z = {{0.0}},
 int64[3] rows = {{4, 1, 4}}, int64[2] flat = {{4, 4}}>
{{ m = Relu (x)  i = Reshape (m, rows)  n = {call}  {back}  y = MatMul (k, w) }}""")
    x = mean + np.random.default_rng(0).standard_normal((4, 4))
    feeds: Feeds = {"x": x.astype(np.float32)}
    half, _ = converted(module, feeds)
    assert error(module, half, feeds) < 4e-3
    assert (call.split()[0] in float_nodes(half)) == (mean > 0)


LOW = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("low", [-1e9, -1e10, -1e38, LOW, -np.inf])
@pytest.mark.parametrize("form", ["attention", "softmax", "times"])
def test_masks_do_not_keep_attention_in_float32(form: str, low: float) -> None:
    mask = "m = Where (keep, zero, low)"
    if form == "times":
        mask = "c = Cast <to: int = 1> (keep)  i = Sub (one, c)  m = Mul (i, low)"
    use = "y = Attention (q, k, v, m)"
    if form == "softmax":
        use = (
            "t = Transpose <perm: ints = [0, 1, 3, 2]> (k)  s = MatMul (q, t)  a = Add (s, m)"
            "  p = Softmax <axis: int = -1> (a)  y = MatMul (p, v)"
        )
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 23]>
att (float[1,2,3,8] q, float[1,2,5,8] k, float[1,2,5,8] v, bool[3,5] keep) => (float[1,2,3,8] y)
<float zero = {{0.0}}, float one = {{1.0}}, float low = {{{low!r}}}>
{{ {mask}  {use} }}""")
    if form == "times" and low == -np.inf:
        return  # 0 times infinity
    random = np.random.default_rng(0)
    sizes = {"q": (1, 2, 3, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8)}
    feeds: Feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in sizes.items()}
    feeds["keep"] = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1], [1, 0, 1, 0, 1]], bool)
    half, _ = converted(module, feeds)
    assert not float_nodes(half) & {"Attention", "Where", "MatMul", "Add"}
    assert error(module, half, feeds) < 2e-3


@pytest.mark.parametrize("low", [-1e9, LOW, -np.inf])
def test_a_mask_given_as_numbers_keeps_finite_what_was(low: float) -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 23]>
att (float[1,2,3,8] q, float[1,2,5,8] k, float[1,2,5,8] v, float[3,5] m) => (float[1,2,3,8] y)
{ t = Transpose <perm: ints = [0, 1, 3, 2]> (k)  s = MatMul (q, t)  a = Add (s, m)
  p = Softmax <axis: int = -1> (a)  y = MatMul (p, v) }""")
    random = np.random.default_rng(0)
    sizes = {"q": (1, 2, 3, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8)}
    feeds: Feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in sizes.items()}
    feeds["m"] = np.array([[0, 0, -1e9, -1e9, -1e9], [-1e9] * 5, [0] * 5], np.float32)
    half, _ = converted(module, feeds)
    feeds["m"] = np.where(feeds["m"] < 0, np.float32(low), np.float32(0))
    assert not float_nodes(half) & {"MatMul", "Add", "Softmax"}
    old, new = (OrtSession(each, optimise=False).run(feeds)["y"] for each in (module, half))
    np.testing.assert_array_equal(np.isnan(new), np.isnan(old))
    assert np.isnan(old[0, :, 1]).all() == (low == -np.inf)
    np.testing.assert_allclose(new[..., ::2, :], old[..., ::2, :], atol=5e-3)
