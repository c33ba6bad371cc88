"""Integers, masks and empty sets that ONNX Runtime's kernels refuse, in forms that they take."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

MOBILE = make_target("mobile")
RANDOM = np.random.default_rng(0)
TYPES = {"int8": np.int8, "uint8": np.uint8}


def for_mobile(module: Module) -> Module:
    made = module.clone()
    PassManager(parse(MOBILE.pipeline())).run(made, Context(target=MOBILE))
    assert MOBILE.check(made) == []
    return made


def as_the_standard_says(module: Module, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto: onnx.ModelProto = ir.to_proto(module.model)
    made: np.ndarray = ReferenceEvaluator(proto).run(None, feeds)[0]
    return made


def bytes_of(kind: str, *shape: int) -> np.ndarray:
    """Random integers; those with a sign are small, where some CPUs' sums of products saturate."""
    if kind == "int8":
        return RANDOM.integers(-50, 50, shape, np.int8)
    return RANDOM.integers(0, 255, shape, np.uint8, endpoint=True)


def listed(array: np.ndarray) -> str:
    return ",".join(map(str, array.ravel().tolist()))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("x", TYPES)
@pytest.mark.parametrize("w", TYPES)
@pytest.mark.parametrize("sizes", ["1,4,5,6", "N,4,H,W"])
def test_zero_points_by_channel(group: int, x: str, w: str, sizes: str) -> None:
    weight, zero = bytes_of(w, 6, 4 // group, 3, 2), bytes_of(w, 6)
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g ({x}[{sizes}] x, {x} a) => (y)
<{w}[6,{4 // group},3,2] w = {{{listed(weight)}}}, {w}[6] b = {{{listed(zero)}}}>
{{ y = ConvInteger <group = {group}, pads = [1, 0, 1, 1], strides = [1, 2]> (x, w, a, b) }}""")
    feeds = {"x": bytes_of(x, 1, 4, 5, 6), "a": np.array(3, TYPES[x])}
    made = for_mobile(module)
    whole = feeds["x"].astype(np.float64) - 3, weight - zero.astype(np.float64)[:, None, None, None]
    exact = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g (double[1,4,5,6] x, double[6,{4 // group},3,2] w) => (y)
{{ y = Conv <group = {group}, pads = [1, 0, 1, 1], strides = [1, 2]> (x, w) }}""")
    expected = as_the_standard_says(exact, dict(zip("xw", whole, strict=True)))
    np.testing.assert_array_equal(OrtSession(made).run(feeds)["y"], expected)


@pytest.mark.parametrize("zero", [(3,), (2, 3, 1)])
@pytest.mark.parametrize("other", ["", "uint8[5] b", "uint8 b"])
@pytest.mark.parametrize("kind", TYPES)
def test_zero_points_by_row(zero: tuple[int, ...], other: str, kind: str) -> None:
    dims = ",".join(map(str, zero))
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g ({kind}[2,3,4] x, uint8[4,5] w, {kind}[{dims}] a{", " + other if other else ""}) => (y)
{{ y = MatMulInteger (x, w, a{", b" if other else ""}) }}""")
    feeds = {"x": bytes_of(kind, 2, 3, 4), "w": bytes_of("uint8", 4, 5), "a": bytes_of(kind, *zero)}
    if other:
        feeds["b"] = bytes_of("uint8", *([5] if "5" in other else []))
    expected = np.matmul(
        feeds["x"].astype(np.int64) - feeds["a"].reshape(-1, 3, 1),
        feeds["w"].astype(np.int64) - feeds.get("b", np.uint8(0)),
    )
    np.testing.assert_array_equal(OrtSession(for_mobile(module)).run(feeds)["y"], expected)


def test_zero_points_by_row_of_a_scaled_product_are_refused() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 18]>
g (uint8[3,4] x, float[3] s, uint8[3] a, uint8[4,5] w, float t, uint8 b, float u, uint8 c) => (y)
{ y = QLinearMatMul (x, s, a, w, t, b, u, c) }""")
    (problem,) = MOBILE.check(module)
    assert problem.message == "QLinearMatMul: its zero point 'a' must be one number"


@pytest.mark.parametrize("kind", ["Max", "Min"])
@pytest.mark.parametrize(("given", "length"), [("2,0,4", 0), ("2,N,4", 0), ("2,N,4", 3)])
@pytest.mark.parametrize("keep", [0, 1])
def test_extremes_of_no_booleans(kind: str, given: str, length: int, keep: int) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 20]>
g (bool[{given}] x) => (y) <int64[1] axes = {{1}}>
{{ y = Reduce{kind} <keepdims = {keep}> (x, axes) }}""")
    x = RANDOM.random((2, length, 4)) > 0.5
    reduce = np.any if kind == "Max" else np.all
    made = OrtSession(for_mobile(module)).run({"x": x})["y"]
    np.testing.assert_array_equal(made, reduce(x, axis=1, keepdims=bool(keep)))


@pytest.mark.parametrize("kind", ["L1", "L2", "LogSum", "LogSumExp", "Max", "Min", "Prod", "Sum"])
@pytest.mark.parametrize("dtype", ["float", "int32", "double"])
def test_what_is_reduced_from_nothing_is_a_constant(kind: str, dtype: str) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g ({dtype}[2,0,3] x, {dtype}[2,1,3] more) => (z) <int64[1] axes = {{1}}>
{{ y = Reduce{kind} (x, axes) z = Max (y, more) }}""")
    array = {"float": np.float32, "int32": np.int32, "double": np.float64}[dtype]
    feeds = {"x": np.empty((2, 0, 3), array), "more": np.full((2, 1, 3), -7, array)}
    try:
        expected = OrtSession(module, optimise=False).run(feeds)["z"]
    except CompileError:
        pytest.skip("ONNX Runtime has no kernel")
    made = module.clone()
    PassManager(parse("canonicalize")).run(made)
    is_left = dtype == "int32" and kind.startswith("Log")  # of which the standard says nothing
    assert any(node.op_type.startswith("Reduce") for node in made.nodes()) == is_left
    np.testing.assert_array_equal(OrtSession(made, optimise=False).run(feeds)["z"], expected)


def test_nothing_reduced_is_left() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 18]>
g (float[2,0,3] x) => (y) <int64[0] axes = {}>
{ y = ReduceSum <noop_with_empty_axes = 1> (x, axes) }""")
    PassManager(parse("canonicalize")).run(module)
    assert OrtSession(module).run({"x": np.empty((2, 0, 3), np.float32)})["y"].shape == (2, 0, 3)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("axes", ["", "<axes = [0, 2, 3]>", "<axes = [1]>"])
def test_a_norm_in_a_function(opset: int, axes: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]>
g (float[3,3,3,1] x) => (y) {{ y = own.f (x) }}
<opset_import: ["" : {opset}], domain: "own"> f (x) => (y)
{{ y = MeanVarianceNormalization {axes} (x) }}"""
    x = RANDOM.standard_normal((3, 3, 3, 1)).astype(np.float32)
    over = (1,) if "[1]" in axes else (0, 2, 3)
    expected = (x - x.mean(over, keepdims=True)) / x.std(over, keepdims=True)
    made = OrtSession(for_mobile(Module.parse(text))).run({"x": x})["y"]
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["float[2,3,4,4]", "bool[4,3]", "float[1,1,4,1]", "bool[2,1,4,6]"])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_mask_shorter_than_the_keys(mask: str, lengths: bool) -> None:
    more = ', "", "", n' if lengths else ""
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 24]>
g (float[2,3,4,8] q, float[2,3,6,8] k, {mask} m{", int64[2] n" if lengths else ""}) => (y)
{{ y = Attention (q, k, k, m{more}) }}""")
    shape = [int(dim) for dim in mask[mask.index("[") + 1 : -1].split(",")]
    q, k = (RANDOM.standard_normal((2, 3, n, 8)).astype(np.float32) for n in (4, 6))
    m = RANDOM.standard_normal(shape).astype(np.float32)
    feeds = {"q": q, "k": k, "m": m > -2 if "bool" in mask else m}
    if lengths:
        feeds["n"] = np.array([3, 2])
    expected = as_the_standard_says(module, feeds)
    np.testing.assert_allclose(
        OrtSession(for_mobile(module)).run(feeds)["y"], expected, rtol=1e-4, atol=1e-5
    )
