"""Norms that legalize spells out keep their digits where values are far from 0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.legal.centred import CentredNorm, MeanVarianceNorm
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import apply_rules
from aigcc.runtime import OrtSession

Array = npt.NDArray[np.float64]
SHAPE = (2, 4, 3, 5)


def decomposed(call: str, opset: int, x: str = "float[2,4,3,5]") -> Module:
    made = Module.parse(f"""<ir_version: 10, opset_import: ["" : {opset}]>
g ({x} x, float[5] s, float[5] b, float[4] c, float[2] h) => (y) {{ y = {call} }}""")
    infer_shapes(made.model)
    assert apply_rules(made, [CentredNorm(), MeanVarianceNorm()], Context()) == 1
    return made


def normed(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    centred = x - x.mean(axes, keepdims=True)
    y: Array = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)
    return y


def feeds(mean: float, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    sizes = {"x": SHAPE, "s": 5, "b": 5, "c": 4, "h": 2}
    made = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    made["x"] += np.float32(mean)
    return made


def expected(call: str, opset: int, given: dict[str, npt.NDArray[np.float32]]) -> Array:
    x, s, b, c, h = (array.astype(np.float64) for array in given.values())
    apart = (1, 4, 1, 1)
    match call.split()[0]:
        case "LayerNormalization":
            return normed(x, (2, 3) if "axis = 2" in call else (3,)) * s + b
        case "InstanceNormalization":
            return normed(x, (2, 3), 0.1) * c.reshape(apart) + c.reshape(apart)
        case "MeanVarianceNormalization":
            return normed(x, (0, 2) if "axes" in call else (0, 2, 3), 0)
    scale = (c if opset >= 21 else np.repeat(h, 2)).reshape(apart)
    return normed(x.reshape(2, 2, 2, 3, 5), (2, 3, 4)).reshape(SHAPE) * scale + scale


CALLS = [
    ("LayerNormalization (x, s, b)", 17),
    ("LayerNormalization <axis = 2> (x, s, b)", 20),
    ("InstanceNormalization <epsilon = 0.1> (x, c, c)", 13),
    ("MeanVarianceNormalization (x)", 20),
    ("MeanVarianceNormalization <axes = [0, -2]> (x)", 13),
    ("GroupNormalization <num_groups = 2> (x, c, c)", 21),
    ("GroupNormalization <num_groups = 2> (x, h, h)", 18),
]


@pytest.mark.parametrize(("call", "opset"), CALLS)
@given(exponent=st.floats(-1, 5), sign=st.sampled_from([-1, 1]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_mean_far_from_zero_costs_no_digits(
    call: str, opset: int, exponent: float, sign: int, seed: int
) -> None:
    fed = feeds(sign * 10**exponent, seed)
    y = OrtSession(decomposed(call, opset), optimise=False).run(fed)["y"]
    right = expected(call, opset, fed)
    assert np.abs(y - right).max() <= 2e-6 * np.abs(right).max()


@pytest.mark.parametrize(("call", "opset"), CALLS)
def test_dynamic_dims(call: str, opset: int) -> None:
    made = decomposed(call, opset, "float[n,4,h,5]")
    fed = feeds(100)
    y = OrtSession(made, optimise=False).run(fed)["y"]
    assert np.abs(y - expected(call, opset, fed)).max() <= 1e-5


def test_all_outputs_of_a_layer_norm() -> None:
    made = Module.parse("""<ir_version: 10, opset_import: ["" : 20]>
g (float[2,3,8] x, float[8] s) => (y, mean, inverse)
{ y, mean, inverse = LayerNormalization (x, s) }""")
    infer_shapes(made.model)
    random = np.random.default_rng(0)
    fed = {
        "x": random.standard_normal((2, 3, 8)).astype(np.float32),
        "s": np.ones(8, np.float32),
    }
    before = OrtSession(made, optimise=False).run(fed)
    assert apply_rules(made, [CentredNorm()], Context()) == 1
    for name, array in OrtSession(made, optimise=False).run(fed).items():
        np.testing.assert_allclose(array, before[name], 1e-5, 1e-6, err_msg=name)


def test_float16_is_normalised_in_float32() -> None:
    made = Module.parse("""<ir_version: 10, opset_import: ["" : 20]>
g (float16[1,2,64] x, float16[2] s) => (y) { y = InstanceNormalization (x, s, s) }""")
    infer_shapes(made.model)
    assert apply_rules(made, [CentredNorm()], Context()) == 1
    assert made.outputs[0].dtype == ir.DataType.FLOAT16
    x = (300 + 8 * np.random.default_rng(0).standard_normal((1, 2, 64))).astype(np.float16)
    y = OrtSession(made, optimise=False).run({"x": x, "s": np.ones(2, np.float16)})["y"]
    assert np.abs(y - normed(x.astype(np.float64), (2,)) - 1).max() < 4e-3
