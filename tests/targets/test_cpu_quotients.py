"""Quotients, causal caches and infinities that OpenVINO takes otherwise are right on cpu."""

from __future__ import annotations

import importlib.util
import itertools

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.target import Session
from aigcc.targets.cpu import INSTALL, Cpu

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"needs OpenVINO: {INSTALL}"
)
RANDOM = np.random.default_rng(0)
STEPS = [49, 5 / 255, 0.1, 3, -7.3]


def opened(module: Module) -> Session:
    made = module.clone()
    PassManager(parse(Cpu().pipeline())).run(made, Context(target=Cpu()))
    assert Cpu().check(made) == []
    session = Cpu().open(made, threads=1)
    assert session is not None
    return session


def halves(step: np.float32) -> np.ndarray:
    """Numbers at and just beside whole and half multiples of a step, and far from all."""
    near = (RANDOM.integers(-600, 600, 300) / 2 * step).astype(np.float32)
    sides = RANDOM.choice(np.array([-np.inf, 0, np.inf], np.float32), near.size)
    beside = np.nextafter(near, sides).astype(np.float32)
    return np.concatenate([near, beside, np.array([0, -0.0, 1e5, -1e5], np.float32)])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_constant", [False, True])
def test_whole_numbers_of_a_quotient(step: float, is_constant: bool) -> None:
    s = np.float32(step)
    given = f"<float s = {{{s!r}}}>".replace("np.float32(", "").replace(")", "")
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g (float[N] x{"" if is_constant else ", float s"}) => (low, high, even, cut)
{given if is_constant else ""}
{{ q = Div (x, s)
   low = Floor (q)
   high = Ceil (q)
   even = Round (q)
   cut = Cast <to = 7> (q) }}""")
    x = halves(s)
    made = opened(module).run({"x": x} if is_constant else {"x": x, "s": np.asarray(s)})
    q = x / s
    wanted = {"low": np.floor(q), "high": np.ceil(q), "even": np.rint(q), "cut": np.trunc(q)}
    for name, array in wanted.items():
        np.testing.assert_array_equal(made[name], array, err_msg=name)


def test_a_quotient_far_from_numbers() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 18]>
g (float[N] x, float s) => (low, even) { q = Div (x, s) low = Floor (q) even = Round (q) }""")
    session = opened(module)
    x = np.array([np.inf, -np.inf, np.nan, 1e30, 3, 0], np.float32)
    for step in (2.0, np.inf, 0.0):
        s = np.asarray(step, np.float32)
        with np.errstate(all="ignore"):
            q = x / s
        made = session.run({"x": x, "s": s})
        np.testing.assert_allclose(made["low"], np.floor(q), rtol=1e-6)
        np.testing.assert_allclose(made["even"], np.rint(q), rtol=1e-6)


@pytest.mark.parametrize("opset", [11, 18])
def test_the_range_is_found_and_ties_are_rounded_as_the_standard_says(opset: int) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : {opset}]>
g (float[N] x) => (y, s, z) {{ y, s, z = DynamicQuantizeLinear (x) }}""")
    session, reference = opened(module), OrtSession(module, optimise=False)
    samples = [[0, 2, -3, -2.5, 1.34, 0.5], [0, 0], [5, 4, 1], [-5, -2.5, -1], [1e-30, 0], [2**20]]
    for sample in (*samples, *RANDOM.standard_normal((20, 50)), *(np.arange(40) - 20 for _ in "a")):
        feeds = {"x": np.array(sample, np.float32)}
        for name, array in reference.run(feeds).items():
            np.testing.assert_array_equal(session.run(feeds)[name], array, err_msg=name)


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("parts", ["", "[3]"])
@pytest.mark.parametrize("is_constant", [False, True])
def test_integers_that_are_read_as_they_are(kind: str, parts: str, is_constant: bool) -> None:
    scale = np.array([0.1, 0.3, 7.7] if parts else 0.1, np.float32)
    zero = np.array([1, 2, 3] if parts else 5, kind)
    held = "{" + ",".join(map(str, scale.ravel().tolist())) + "}"
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[40,3] x{"" if is_constant else f", float{parts} s"}, {kind}{parts} z) => (y)
{f"<float{parts} s = {held}>" if is_constant else ""}
{{ y = QuantizeLinear (x, s, z) }}""")
    x = (RANDOM.integers(-500, 500, (40, 3)) / 2 * scale).astype(np.float32)
    feeds = {"x": x, "z": zero} if is_constant else {"x": x, "z": zero, "s": scale}
    expected = OrtSession(module, optimise=False).run(feeds)["y"]
    np.testing.assert_array_equal(opened(module).run(feeds)["y"], expected)


CACHES = list(itertools.product(["2,3,2,8", "B,3,T,8"], ["", "bool", "float"], [-1, 2]))


@pytest.mark.parametrize(("sizes", "mask", "window"), CACHES)
def test_a_causal_cache(sizes: str, mask: str, window: int) -> None:
    past = sizes.replace(",2,8", ",5,8").replace("T", "P")
    given = f", {mask}[{'2,7' if 'B' not in sizes else 'T,A'}] m" if mask else ""
    attributes = "is_causal = 1" + (f", left_window_size = {window}" if window > 0 else "")
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : {25 if window > 0 else 23}]>
g (float[{sizes}] q, float[{sizes}] k, float[{past}] pk, float[{past}] pv{given}) => (y, a, b)
{{ y, a, b = Attention <{attributes}> (q, k, k, {"m" if mask else '""'}, pk, pv) }}""")
    q, k = (RANDOM.standard_normal((2, 3, 2, 8)).astype(np.float32) for _ in range(2))
    pk, pv = (RANDOM.standard_normal((2, 3, 5, 8)).astype(np.float32) for _ in range(2))
    feeds = {"q": q, "k": k, "pk": pk, "pv": pv}
    numbers = RANDOM.standard_normal((2, 7)).astype(np.float32)
    if mask:
        feeds["m"] = numbers > -1 if mask == "bool" else numbers
    expected = ReferenceEvaluator(ir.to_proto(module.model)).run(None, feeds)
    for made, right in zip(opened(module).run(feeds).values(), expected, strict=True):
        np.testing.assert_allclose(made, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_without_a_number_are_told_by_their_extremes(dtype: type) -> None:
    kind = {"float32": 1, "float16": 10, "bfloat16": 16}[np.dtype(dtype).name]
    name = {1: "float", 10: "float16", 16: "bfloat16"}[kind]
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 22]>
g ({name}[2,4] x) => (top, low)
<int64[1] last = {{-1}}>
{{ a = ReduceMax (x, last)
   b = ReduceMin (x, last)
   top = Cast <to = 1> (a)
   low = Cast <to = 1> (b) }}""")
    for row in (-np.inf, np.inf, 1.5):
        x = np.full((2, 4), row, np.float32)
        x[1] = [1, 2, 3, -4]
        made = opened(module).run({"x": x.astype(dtype)})
        np.testing.assert_array_equal(made["top"], x.max(1, keepdims=True))
        np.testing.assert_array_equal(made["low"], x.min(1, keepdims=True))


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT8"])
def test_constants_that_are_listed_as_bit_patterns(kind: str) -> None:
    constant = helper.make_tensor("c", TensorProto.DataType.Value(kind), [2], [1.5, -2.0])
    if kind == "INT8":
        constant = helper.make_tensor("c", TensorProto.INT8, [2], [3, -3])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Cast", ["c"], ["d"], to=1),
        helper.make_node("Add", ["d", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[constant])
    opset = [helper.make_opsetid("", 22)]
    module = Module(ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10)))
    session = Cpu().open(module, threads=1)  # as it is: no pass folds the Cast
    assert session is not None
    expected = [3, -3] if kind == "INT8" else [1.5, -2]
    np.testing.assert_array_equal(session.run({"x": np.zeros(2, np.float32)})["y"], expected)


def test_a_last_input_without_a_name_is_left_out() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 18]>
g (float[2,3] x) => (y) { y = ReduceMax <keepdims = 0> (x, "") }""")
    session = Cpu().open(module, threads=1)
    assert session is not None
    assert session.run({"x": np.eye(2, 3, dtype=np.float32)})["y"] == 1


@pytest.mark.parametrize("scale", ["4,5", "5", "1,5", "4,1", "1"])
@pytest.mark.parametrize("sizes", ["2,4,5", "N,A,B"])
def test_a_scale_that_spreads_over_normalised_axes(scale: str, sizes: str) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 18]>
g (float[{sizes}] x, float[{scale}] s, float[{scale}] b) => (y)
{{ y = LayerNormalization <axis = 1> (x, s, b) }}""")
    x = RANDOM.standard_normal((2, 4, 5)).astype(np.float32)
    s = RANDOM.standard_normal([int(dim) for dim in scale.split(",")]).astype(np.float32)
    normed = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    made = opened(module).run({"x": x, "s": s, "b": s})["y"]
    np.testing.assert_allclose(made, normed * s + s, rtol=1e-3, atol=1e-4)
