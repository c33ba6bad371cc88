"""Quantisation: what each option promises, random graphs, and models that are hard on grids."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigcc.analysis.gptq import Gptq, output_error
from aigcc.analysis.grids import Grid, limits
from aigcc.errors import CompileError, PipelineError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.verify import verify
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import placement
from aigcc.passes.quant.probe import Reader, measure
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession, save_optimised
from aigcc.samples import load_samples
from aigcc.targets.cpu import Cpu
from aigcc.targets.mobile import Mobile

sys.path.insert(0, str(Path(__file__).parent))
from random_graphs import feeds as feeds_of
from random_graphs import modules
from weighted import Feeds, floats, here, module

RANDOM = np.random.default_rng


def run(made: Module, feeds: Feeds, optimise: bool = False) -> dict[str, np.ndarray]:
    return OrtSession(made, optimise=optimise).run(feeds)


def quantised(
    before: Module, feeds: list[Feeds], target: Mobile | None = None, **options: object
) -> tuple[Module, Context]:
    after = before.clone()
    ctx = Context(target=target, samples=load_samples(lambda: iter(feeds), before))
    PassManager([InsertQdq(**options)]).run(after, ctx)
    return after, ctx


def error(before: Module, after: Module, feeds: list[Feeds], optimise: bool = False) -> float:
    """The largest noise-to-signal ratio of the outputs."""
    worst = 0.0
    for each in feeds:
        old, new = run(before, each), run(after, each, optimise)
        for name, array in old.items():
            noise = np.square(new[name].astype(np.float64) - array).sum()
            worst = max(worst, noise / max(np.square(array, dtype=np.float64).sum(), 1e-30))
    return float(worst)


def ops(made: Module) -> list[str]:
    return [node.op_type for node in made.graph]


def product(spread: float = 1.0) -> tuple[Module, list[Feeds]]:
    """A normalisation and a product, whose input channels are correlated and differ in size."""
    text = """g (float[8,48] x) => (float[8,24] y) <W>
    { n = LayerNormalization <axis = -1> (x, s, b)  m = MatMul (n, w)  y = Add (m, c) }"""
    scale = np.exp(spread * RANDOM(1).standard_normal(48)).astype(np.float32)
    weights = {"s": scale, "b": scale / 2, "w": floats(48, 24), "c": floats(24, seed=2)}
    mix = floats(12, 48, seed=3)
    feeds = [{"x": floats(8, 12, seed=9 + n) @ mix} for n in range(4)]
    return module(text, weights), feeds


# --- grids


@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, None), (0, 5), (1, 4)])
@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN])
def test_a_grid_comes_back_within_half_a_step(
    axis: int | None, block: int | None, dtype: ir.DataType
) -> None:
    array, grid = floats(11, 9, spread=2.0), Grid(dtype, axis, block)
    scale = grid.scale(array)
    back = grid.back(grid.round(array, scale), scale)
    step = scale.max() * (16 if dtype == ir.DataType.FLOAT8E4M3FN else 0.5)
    assert scale.shape == grid.scale_shape(array.shape)
    assert np.abs(back - array).max() <= step * 1.001
    turned = np.asfortranarray(array)
    np.testing.assert_array_equal(grid.scale(turned), scale)
    np.testing.assert_array_equal(grid.round(turned, scale), grid.round(array, scale))
    clipped = grid.scale(array, "mse")
    again = grid.back(grid.round(array, clipped), clipped)
    assert np.square(again - array).sum() <= np.square(back - array).sum() * 1.000001


def test_large_arrays_are_worked_on_in_pieces() -> None:
    array = floats(700, 300)
    for grid in (Grid(ir.DataType.INT8, 0), Grid(ir.DataType.INT8, 1), Grid(ir.DataType.INT8)):
        axis = tuple(n for n in range(2) if n != grid.axis)
        np.testing.assert_allclose(grid.scale(array), np.abs(array).max(axis) / 127, 1e-6)


# --- gptq


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_has_less_error_than_the_nearest_numbers(act_order: bool) -> None:
    x = floats(64, 16, seed=1) @ floats(16, 48, seed=2, spread=1.0)
    x[:, 5] = 0
    moment, weight, dtype = x.T.astype(np.float64) @ x, floats(48, 20), ir.DataType.INT4
    grid, rows = Grid(dtype, 0, 16), np.arange(48) // 16
    scale = grid.scale(weight)
    plain = grid.back(grid.round(weight, scale), scale)
    numbers = Gptq(moment, act_order=act_order).round(weight, scale, rows, grid)
    solved = numbers * scale[rows]
    assert output_error(weight - solved, moment).sum() < output_error(weight - plain, moment).sum()
    np.testing.assert_array_equal(solved[5], plain[5])
    measured = np.square(x @ (weight - solved)).sum(axis=0)
    np.testing.assert_allclose(output_error(weight - solved, moment), measured, 1e-3)


def test_gptq_survives_moments_without_an_inverse() -> None:
    weight, scale = floats(4, 3), np.full((1, 3), 0.1, np.float32)
    made = Gptq(np.zeros((4, 4))).round(weight, scale, np.zeros(4, int), Grid(ir.DataType.INT8))
    np.testing.assert_array_equal(made, np.rint(weight / 0.1))


# --- options


def four_bits(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let the scheme w8 have four bits, so that errors are large enough to compare."""
    row = {**placement.PORTABLE["w8"], "weight": "int4", **changes}
    monkeypatch.setattr(placement, "PORTABLE", {**placement.PORTABLE, "w8": row})


@pytest.mark.parametrize("weights", ["mse", "gptq", "awq"])
@pytest.mark.parametrize("block", [None, 16])
def test_better_weights_have_less_error(
    weights: str, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bits(monkeypatch, block=block)
    before, feeds = product(spread=0.0 if weights == "mse" else 1.5)
    plain, _ = quantised(before, feeds, scheme="w8")
    better, _ = quantised(before, feeds, scheme="w8", weights=weights)
    assert error(before, better, feeds) < error(before, plain, feeds)


def test_gptq_of_a_convolution_has_less_error(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bits(monkeypatch)
    text = """g (float[1,6,9,9] x) => (float[1,8,4,4] y) <W>
    { y = Conv <strides = [2,2]> (x, w) }"""
    before = module(text, {"w": floats(8, 6, 3, 3)})
    mix = floats(6, 6, seed=2, spread=1.0)
    feeds = [{"x": np.einsum("nchw,cd->ndhw", floats(1, 6, 9, 9, seed=n), mix)} for n in range(6)]
    plain, _ = quantised(before, feeds, scheme="w8")
    better, _ = quantised(before, feeds, scheme="w8", weights="gptq")
    assert error(before, better, feeds) < 0.8 * error(before, plain, feeds)


def full(before: Module, feeds: list[Feeds], **options: object) -> Module:
    """The module as it is after scales have moved, and before anything is rounded."""
    after = before.clone()
    ctx = Context(samples=load_samples(lambda: iter(feeds), before), maker="insert-qdq")
    InsertQdq(**options)._move_scales(after, ctx)
    assert ctx.total > 0
    verify(after.model)
    return after


@pytest.mark.parametrize(
    "options", [{"scheme": "w8a8", "smooth": 0.5}, {"scheme": "w8", "weights": "awq"}]
)
def test_moving_scales_leaves_the_float_model_as_it_was(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bits(monkeypatch)
    before, feeds = product(spread=1.5)
    after = full(before, feeds, **options)
    assert "Mul" not in ops(after)  # the scales are in the normalisation
    assert error(before, after, feeds) < 1e-11


CHAINS = [
    "n = Relu (x0)  p = Identity (n)",
    "p = Add (x0, b)",
    "n = Mul (x0, b)  p = Relu (n)",
    "n = Sigmoid (x0)  p = Mul (n, x1)",
    "p = Add (x0, x1)",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_scales_go_through_what_produces_an_activation(chain: str) -> None:
    text = f"""g (float[8,12] x) => (float[8,6] y, float[8,6] z)
    <W>
    {{ x0 = MatMul (x, w0)  x1 = Gemm <transB = 1> (x, w1, b)  {chain}  y = MatMul (p, w2)
       z = MatMul (p, w3) }}"""
    weights = {f"w{n}": floats(12, 12 if n < 2 else 6, seed=n, spread=1.0) for n in range(4)}
    before = module(text, {**weights, "b": floats(12, seed=7)})
    feeds = [{"x": floats(8, 12, seed=n)} for n in range(2)]
    after = full(before, feeds, smooth=0.5)
    assert ops(after).count("Mul") == ops(before).count("Mul") + 1  # of the input
    assert error(before, after, feeds) < 1e-11


def test_an_activation_with_another_reader_gets_a_mul() -> None:
    text = """g (float[4,8] x) => (float[4,8] n, float[4,6] y) <W>
    { n = Add (x, b)  y = MatMul (n, w) }"""
    before = module(text, {"b": floats(8), "w": floats(8, 6)})
    feeds = [{"x": floats(4, 8, seed=n, spread=1.0)} for n in range(2)]
    after = full(before, feeds, smooth=0.5)
    assert ops(after) == ["Add", "Mul", "MatMul"]
    assert error(before, after, feeds) < 1e-11


def test_smoothing_helps_where_activations_have_outliers() -> None:
    before, feeds = product(spread=0.0)
    scale = before.graph.initializers["s"].const_value.numpy().copy()
    scale[[3, 17]] = 60
    before.graph.initializers["s"].const_value = ir.tensor(scale, name="s")
    plain, _ = quantised(before, feeds)
    for options in ({"smooth": 0.5}, {"outliers": 6.0}):
        better, _ = quantised(before, feeds, **options)
        assert error(before, better, feeds) < 0.5 * error(before, plain, feeds), options


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_outliers_stay_float(scheme: str) -> None:
    text = """g (float[1,8,32] x) => (float[1,8,16] y, float[1,8,16] z)
    <W> { y = MatMul (x, w)  z = MatMul (x, v) }"""
    before = module(text, {"w": floats(32, 16), "v": floats(32, 16, seed=1)})
    feeds = [{"x": floats(1, 8, 32, seed=n)} for n in range(3)]
    for each in feeds:
        each["x"][..., [4, 9]] *= 50
    plain, _ = quantised(before, feeds, Mobile(), scheme=scheme)
    better, _ = quantised(before, feeds, Mobile(), scheme=scheme, outliers=8.0)
    assert ops(better).count("Gather") == 1  # both products share it
    assert error(before, better, feeds) < 0.1 * error(before, plain, feeds)
    held = [v.const_value for v in better.graph.initializers.values()]
    narrow = [t.numpy() for t in held if t.dtype == ir.DataType.INT8 and t.size == 512]
    assert len(narrow) == 2
    assert all((w[[4, 9]] == 0).all() for w in narrow)


def test_smoothing_does_not_clip_what_calibration_found_quiet() -> None:
    before = module(
        "g (float[64,32] x) => (float[64,16] y) <W> { y = MatMul (x, w) }", {"w": floats(32, 16)}
    )
    feeds = [{"x": floats(64, 32, seed=n)} for n in range(3)]
    for quiet in feeds[:2]:
        quiet["x"][:, :8] *= 1e-4
    after, _ = quantised(before, feeds[:2], calibration="minmax", smooth=0.8)
    assert error(before, after, feeds[2:]) < 0.05


@pytest.mark.parametrize("weights", ["nearest", "gptq"])
def test_bias_correction_leaves_out_what_stays_float(weights: str) -> None:
    text = """g (float[1,8,32] x) => (float[1,8,16] y)
    <W> { m = MatMul (x, w)  y = Add (m, b) }"""
    before = module(text, {"w": floats(32, 16), "b": floats(16)})
    feeds = [{"x": floats(1, 8, 32, seed=n)} for n in range(3)]
    for each in feeds:
        each["x"][..., [4, 9]] += 50
    after, _ = quantised(before, feeds, outliers=8.0, bias_correction=True, weights=weights)
    assert error(before, after, feeds) < 0.01


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
def test_bias_correction_keeps_the_mean(
    kind: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bits(monkeypatch)
    head = "g (float[16,20] x) => (float[16,6] y) <W>"
    bodies = {
        "MatMul": head + "{ m = MatMul (x, w)  y = Add (b, m) }",
        "Gemm": head + "{ y = Gemm (x, w) }",
        "Conv": "g (float[16,20,1] x) => (float[16,6,1] y) <W> { y = Conv (x, w) }",
    }
    weight = floats(20, 6)
    weights = {"w": weight.T[..., None].copy() if kind == "Conv" else weight, "b": floats(6)}
    if kind != "MatMul":
        del weights["b"]  # and gets one
    before = module(bodies[kind], weights)
    shape = before.inputs[0].shape.numpy()
    feeds = [{"x": np.abs(floats(*shape, seed=n))} for n in range(3)]
    shifts = []
    for correct in (False, True):
        after, _ = quantised(before, feeds, scheme=scheme, bias_correction=correct)
        off = [run(after, f)["y"] - run(before, f)["y"] for f in feeds]
        shifts.append(np.abs(np.mean(off, axis=(0, 1))).max())
    assert shifts[1] < (1e-5 if scheme == "w8" else shifts[0] + 1e-3)


def convolutions(spread: float = 2.0, **changes: np.ndarray) -> tuple[Module, list[Feeds]]:
    text = """g (float[1,4,6,6] x) => (float[1,5,6,6] y)
    <W>
    { h = Conv <pads = [1,1,1,1]> (x, w, b)  r = Relu (h)  y = Conv (r, v, c) }"""
    size = np.exp(spread * RANDOM(3).standard_normal(8)).astype(np.float32)
    weights = {
        "w": floats(8, 4, 3, 3) * size[:, None, None, None],
        "b": floats(8, seed=1) * size,
        "v": floats(5, 8, 1, 1, seed=2) / size[:, None, None],
        "c": floats(5, seed=3),
    }
    return module(text, {**weights, **changes}), [{"x": floats(1, 4, 6, 6, seed=n)} for n in (4, 5)]


def test_equalised_layers_compute_the_same_and_quantise_better() -> None:
    before, feeds = convolutions()
    assert error(before, full(before, feeds, equalise=True), feeds) < 1e-11
    plain, _ = quantised(before, feeds)
    better, _ = quantised(before, feeds, equalise=True)
    assert error(before, better, feeds) < 0.5 * error(before, plain, feeds)


def test_outputs_have_a_grid_for_each_channel() -> None:
    before, feeds = convolutions()
    scheme = here("w8a8", Mobile(), "Conv")
    after, _ = quantised(before, feeds, Mobile(), scheme=scheme, calibration="minmax")
    backs = [n for n in after.graph if n.op_type == "DequantizeLinear"]
    scales = [n.inputs[1].const_value.numpy() for n in backs if n.inputs[0].producer() is not None]
    assert sorted(s.size for s in scales) == [1, 1, 5, 8]
    for each in feeds:
        step = next(s for s in scales if s.size == 8)
        session = OrtSession(probe(before, "h")), OrtSession(probe(after, "h"))
        left = np.abs(session[0].run(each)["h"] - session[1].run(each)["h"]).max((0, 2, 3))
        whole = np.abs(session[0].run(each)["h"]).max()
        assert (left <= step / 2 + 0.03 * np.minimum(whole, 254 * step)).all()


def probe(made: Module, name: str) -> Module:
    """The same module with one more value as an output."""
    made = made.clone()
    value = next(v for n in made.graph for v in n.outputs if v.name == name)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    made.graph.outputs.append(value)
    return made


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_onnx_runtime_makes_integer_kernels_of_it(smooth: float, tmp_path: object) -> None:
    import onnx
    import onnxruntime

    before, feeds = convolutions()
    scheme = here("w8a8", Mobile(), "Conv")
    after, _ = quantised(before, feeds, Mobile(), scheme=scheme, smooth=smooth)
    after.save(f"{tmp_path}/model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    onnxruntime.InferenceSession(f"{tmp_path}/model.onnx", options)
    found = [node.op_type for node in onnx.load(f"{tmp_path}/optimised.onnx").graph.node]
    assert found.count("QLinearConv") == 2
    assert "Conv" not in found
    # what it makes of the nodes is what they mean, up to numbers that lie on the edge of a step
    assert error(after, after, feeds, optimise=True) < 1e-4


@pytest.mark.parametrize("bias", ["", ", b"])
def test_onnx_runtime_makes_an_integer_gemm_of_it(bias: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    text = f"g (float[N,8] x) => (float[N,6] y) <W> {{ y = Gemm <transB = 1> (x, w{bias}) }}"
    weights = {"w": floats(6, 8), "b": floats(6)}
    before = module(text, weights if bias else {"w": weights["w"]})
    feeds = [{"x": floats(4, 8, seed=n)} for n in range(3)]
    after, _ = quantised(before, feeds, Mobile(), scheme=here("w8a8", Mobile(), "Gemm"))
    after.save(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "QGemm" in found
    assert error(after, after, feeds, optimise=True) < 1e-4


CHAINS_OF_CONVOLUTIONS = [
    "r = LeakyRelu (h)  y = Conv (r, v, c)",
    "r = Sigmoid (h)  y = Conv (r, v, c)",
    "r = Relu (h)  y = Conv (r, v, c)",
    "i = Identity (h)  r = LeakyRelu (i)  s = Reshape (r, shape)  y = Conv (s, v, c)",
    "g = Conv <pads = [1,1,1,1]> (x, w)  r = Add (g, h)  y = Conv (r, v, c)",
    "r = AveragePool <kernel_shape = [1,1]> (h)  y = Conv (r, v, c)",
    "r = Softmax (h)  y = Conv (r, v, c)",
]


@pytest.mark.parametrize("chain", CHAINS_OF_CONVOLUTIONS)
@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_what_onnx_runtime_merges_has_one_grid(chain: str, smooth: float) -> None:
    before, feeds = convolutions(0.3)
    weights = {k: v.const_value.numpy() for k, v in before.graph.initializers.items()}
    before = module(
        """g (float[1,4,6,6] x) => (float[1,5,6,6] y) <W>
        { shape = Constant <value_ints = [1,8,6,6]> ()
          h = Conv <pads = [1,1,1,1]> (x, w, b) """
        + chain
        + " }",
        weights,
    )
    scheme = here("w8a8", Mobile(), "Conv")
    after, _ = quantised(before, feeds, Mobile(), scheme=scheme, smooth=smooth)
    # its Add of integers is off by a step here and there
    assert error(after, after, feeds, optimise=True) < 2e-3
    assert error(before, after, feeds, optimise=True) < 0.05


# --- convolutions in groups, and transposed ones

KINDS = [
    ("Conv", (8, 6, 3, 3), "strides = [2,1], pads = [1,0,1,1]"),
    ("Conv", (8, 3, 3, 2), "group = 2, dilations = [2,1]"),
    ("Conv", (12, 1, 3, 3), "group = 6, pads = [1,1,1,1]"),
    ("Conv", (8, 6, 3), "group = 1"),
    ("ConvTranspose", (6, 8, 4, 4), "strides = [2,2], pads = [1,1,1,1]"),
    ("ConvTranspose", (6, 8, 3, 3), "strides = [2,3], output_padding = [1,0]"),
    ("ConvTranspose", (6, 8, 3, 3), "strides = [3,1], dilations = [2,1]"),
    ("ConvTranspose", (6, 8, 4), "pads = [1,1]"),
]


def convolution(
    op: str, shape: tuple[int, ...], attributes: str, size: int = 7
) -> tuple[Module, list[Feeds]]:
    """One convolution with a bias, on inputs whose channels and pixels are correlated."""
    groups = int(re.search(r"group = (\d+)", attributes + "group = 1")[1])
    inputs, outputs = (shape[1] * groups, shape[0]) if op == "Conv" else shape[:2]
    rank = len(shape) - 2
    dims = ",".join([str(size)] * rank)
    text = f"""g (float[2,{inputs},{dims}] x) => (float[2,{outputs},{",".join("?" * rank)}] y) <W>
    {{ y = {op} <{attributes}> (x, w, b) }}"""
    before = module(text, {"w": floats(*shape, spread=1.0), "b": floats(outputs, seed=1)})
    mix = floats(inputs, inputs, seed=2, spread=1.0)
    feeds = []
    for seed in range(4):
        x = floats(2, inputs, *[size] * rank, seed=seed)
        x = np.einsum("nc...,cd->nd...", x + np.roll(x, 1, -1), mix)
        feeds.append({"x": np.ascontiguousarray(np.maximum(x, -0.5))})
    return before, feeds


@pytest.mark.parametrize(("op", "shape", "attributes"), KINDS)
def test_moments_tell_the_error_of_each_output(
    op: str, shape: tuple[int, ...], attributes: str
) -> None:
    before, feeds = convolution(op, shape, attributes)
    node = next(iter(before.graph))
    weight = placement.weight_of(node)
    assert weight is not None
    reader = Reader(node, weight)
    samples = load_samples(lambda: iter(feeds), before)
    (moments,) = measure(before, [reader], samples, Context()).values()
    off = floats(*shape, seed=5)
    matrix = weight.as_matrix(off)
    np.testing.assert_array_equal(weight.from_matrix(matrix, shape), off)
    told = np.zeros(matrix.shape[1])
    for part, moment in zip(reader.parts, moments, strict=True):
        told[part.columns] += output_error(matrix[part.rows, part.columns], moment)
    before.graph.initializers["w"].const_value = ir.tensor(off, name="w")
    before.graph.initializers["b"].const_value = ir.tensor(np.zeros(len(told), np.float32))
    outputs = [run(before, each)["y"] for each in feeds]
    seen = np.square(np.stack(outputs), dtype=np.float64).sum(
        axis=(0, 1, *range(3, len(shape) + 1))
    )
    rows = outputs[0].size / len(told) if weight.groups == 1 else 1
    np.testing.assert_allclose(told * rows * len(feeds), seen, 1e-4)
    assert reader.energy(moments).shape == (before.inputs[0].shape[1],)


@pytest.mark.parametrize(("op", "shape", "attributes"), KINDS)
def test_convolutions_of_every_kind_take_every_option(
    op: str, shape: tuple[int, ...], attributes: str
) -> None:
    before, feeds = convolution(op, shape, attributes)
    for scheme, bound in (("w8", 1e-4), ("w4", 3e-2), ("w8a8", 3e-3)):
        plain, ctx = quantised(before, feeds, scheme=scheme, calibration="minmax")
        assert ctx.total > 0
        assert error(before, plain, feeds) < bound
        for options in ({"weights": "gptq"}, {"weights": "awq"}, {"smooth": 0.5}, {**ALL}):
            after, _ = quantised(before, feeds, scheme=scheme, calibration="minmax", **options)
            verify(after.model)
            assert error(before, after, feeds) < 2 * bound, options


@pytest.mark.parametrize(("op", "shape", "attributes"), KINDS)
def test_gptq_helps_convolutions_of_every_kind(
    op: str, shape: tuple[int, ...], attributes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bits(monkeypatch)
    before, feeds = convolution(op, shape, attributes)
    plain, _ = quantised(before, feeds, scheme="w8")
    better, _ = quantised(before, feeds, scheme="w8", weights="gptq")
    assert error(before, better, feeds) < 0.9 * error(before, plain, feeds)


def test_gptq_does_not_believe_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bits(monkeypatch)
    text = "g (float[2,48] x) => (float[2,24] y) <W> { y = MatMul (x, w) }"
    before = module(text, {"w": floats(48, 24)})
    feeds = [{"x": floats(2, 48, seed=n)} for n in range(40)]  # noise, in which there is nothing
    plain, _ = quantised(before, feeds[:4], scheme="w8", weights="mse")
    better, _ = quantised(before, feeds[:4], scheme="w8", weights="gptq")
    assert error(before, better, feeds[4:]) < 1.1 * error(before, plain, feeds[4:])


def test_the_bias_of_a_transposed_convolution_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bits(monkeypatch)
    text = """g (float[4,16,1,1] x) => (float[4,6,4,4] y) <W> { y = ConvTranspose (x, w) }"""
    before = module(text, {"w": floats(16, 6, 4, 4)})
    feeds = [{"x": np.abs(floats(4, 16, 1, 1, seed=n))} for n in range(3)]
    shifts = []
    for correct in (False, True):
        after, _ = quantised(before, feeds, scheme="w8", bias_correction=correct)
        off = [run(after, f)["y"] - run(before, f)["y"] for f in feeds]
        shifts.append(np.abs(np.mean(off, axis=(0, 1, 3, 4))).max())
    assert shifts[1] < 1e-5 < shifts[0]


def test_scales_go_through_transposed_and_grouped_convolutions() -> None:
    text = """g (float[1,4,5,5] x) => (float[1,3,10,10] y) <W> {
      h = ConvTranspose <strides = [2,2], pads = [0,0,0,0]> (x, w, b)  r = Relu (h)
      d = Conv <group = 8, pads = [1,1,1,1]> (r, u, b)  s = LeakyRelu (d)
      y = Conv <pads = [0,0,0,0]> (s, v) }"""
    size = np.exp(2 * RANDOM(3).standard_normal(8)).astype(np.float32)
    weights = {
        "w": floats(4, 8, 2, 2) * size[:, None, None],
        "b": floats(8, seed=1) * size,
        "u": floats(8, 1, 3, 3, seed=2),
        "v": floats(3, 8, 1, 1, seed=3) / size[:, None, None],
    }
    before = module(text, weights)
    feeds = [{"x": floats(1, 4, 5, 5, seed=n)} for n in (4, 5)]
    for options in ({"equalise": True}, {"smooth": 0.5}):
        assert error(before, full(before, feeds, **options), feeds) < 1e-10
    plain, _ = quantised(before, feeds)
    better, _ = quantised(before, feeds, equalise=True)
    assert error(before, better, feeds) < 0.5 * error(before, plain, feeds)


@pytest.mark.parametrize(
    ("target", "node", "words"),
    [
        (None, "y = ConvTranspose <group = 2> (x, w)", "outputs of several groups"),
        (Mobile(), "y = Conv <group = 4> (x, w)", "less than 32 channels in a group"),
    ],
)
def test_groups_that_do_not_pay_are_declined(target: Mobile | None, node: str, words: str) -> None:
    text = f"g (float[1,8,6,6] x) => (float[1,?,?,?] y) <W> {{ {node} }}"
    before = module(text, {"w": floats(8, 2, 3, 3)})
    after, ctx = quantised(before, [{"x": floats(1, 8, 6, 6)}], target)
    assert ops(after) == ops(before)
    assert words in str([str(r) for r in ctx.remarks if r.kind == "declined"])


@pytest.mark.parametrize(
    ("shape", "block", "scales"),
    [
        ((100, 6, 3, 3), 25, (4, 6, 3, 3)),  # the longest that divide
        ((64, 6, 2, 2), 32, (2, 6, 2, 2)),
        ((20, 6, 2, 2), 20, (1, 6, 2, 2)),
        ((37, 6, 2, 2), None, (6,)),  # nothing divides
        ((3, 6, 2, 2), None, (6,)),  # a scale for three numbers is none too few
    ],
)
def test_blocks_of_openvino_are_equally_long(
    shape: tuple[int, ...], block: int | None, scales: tuple[int, ...]
) -> None:
    text = f"g (float[1,{shape[0]},4,4] x) => (float[1,6,?,?] y) <W> {{ y = ConvTranspose (x, w) }}"
    before = module(text, {"w": floats(*shape)})
    after, _ = quantised(before, [{"x": floats(1, shape[0], 4, 4)}], Cpu(), scheme="w4")
    (back,) = (node for node in after.graph if node.op_type == "DequantizeLinear")
    assert back.attributes.get_int("block_size", 0) == (block or 0)
    assert tuple(back.inputs[1].const_value.shape.numpy()) == scales
    assert Cpu().check(after) == []


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_a_transposed_convolution_of_openvino_has_no_zero_point(lowest: float) -> None:
    text = """g (float[1,8,4,4] x) => (float[1,6,9,9] y, float[1,6,4,4] z) <W>
    { y = ConvTranspose <strides = [2,2]> (x, w)  z = Conv <pads = [1,1,1,1]> (x, v) }"""
    before = module(text, {"w": floats(8, 6, 3, 3), "v": floats(6, 8, 3, 3, seed=1)})
    feeds = [{"x": np.maximum(floats(1, 8, 4, 4), np.float32(lowest))}]
    after, _ = quantised(before, feeds, Cpu(), calibration="minmax")
    assert error(before, after, feeds) < 1e-3
    zeros = {}
    for node in after.graph:
        if node.op_type in ("Conv", "ConvTranspose"):
            zeros[node.op_type] = node.inputs[0].producer().inputs[2].const_value
    assert zeros["ConvTranspose"].numpy() == 0
    assert zeros["ConvTranspose"].dtype == (ir.DataType.INT8 if lowest else ir.DataType.UINT8)
    assert zeros["Conv"].dtype == ir.DataType.UINT8
    assert (zeros["Conv"].numpy() != 0) == bool(lowest)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("ConvTranspose", (32, 48, 4, 4), "strides = [2,2], pads = [1,1,1,1]"),
        ("ConvTranspose", (20, 48, 4, 4), ""),
        ("Conv", (32, 8, 3, 3), "group = 4"),
        ("Conv", (64, 1, 3, 3), "group = 64, pads = [1,1,1,1]"),
    ],
)
def test_openvino_runs_integer_kernels_of_it(
    op: str, shape: tuple[int, ...], attributes: str, tmp_path: Path
) -> None:
    import openvino

    if "INT8" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no instructions for int8")
    before, feeds = convolution(op, shape, attributes)
    next(iter(before.graph)).name = "product"
    after, _ = quantised(before, feeds, Cpu(), scheme=here("w8a8", Cpu(), op), calibration="minmax")
    lowered = Cpu().lower(after, tmp_path, Context())
    assert lowered.precision["product"] == "int8"
    session = Cpu().session(tmp_path, lowered.entry)
    for each in feeds:
        wanted = run(after, each)["y"]
        assert np.abs(session.run(each)["y"] - wanted).max() < 1e-2 * np.abs(wanted).max()


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_openvino_runs_integer_kernels_without_zero_points(op: str, tmp_path: Path) -> None:
    import openvino

    if "INT8" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no instructions for int8")
    before, feeds = convolution("Conv", (16, 8, 3, 3), "") if op == "Conv" else product()
    next(node for node in before.graph if node.op_type == op).name = "product"
    scheme = here("w8a8-symmetric", Cpu(), op)
    after, _ = quantised(before, feeds, Cpu(), scheme=scheme, calibration="minmax")
    (grid,) = (node for node in after.graph if node.op_type == "QuantizeLinear")
    zero = grid.inputs[2].const_value
    assert (zero.dtype, zero.numpy()) == (ir.DataType.INT8, 0)
    assert error(before, after, feeds) < 1e-3
    assert Cpu().lower(after, tmp_path, Context()).precision["product"] == "int8"


@pytest.mark.parametrize("target", [None, Mobile()])
@pytest.mark.parametrize("op", ["MatMul", "Conv <pads = [1,1]>"])
def test_the_largest_numbers_of_float16_stay_finite(op: str, target: Mobile | None) -> None:
    shape = (4, 4) if op == "MatMul" else (4, 4, 3)
    weight = (np.arange(np.prod(shape)) % 13 == 0).astype(int)
    before = Module.parse(f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float16[1,4,4] x) => (float16[1,4,4] y)
    <float16[{",".join(map(str, shape))}] w = {{{",".join(map(str, weight))}}}>
    {{ y = {op} (x, w) }}""")
    infer_shapes(before.model)
    for seed in range(20):
        x = RANDOM(seed).uniform(-65504, 65504, (1, 4, 4)).astype(np.float16)
        x.flat[0], x.flat[1] = 65504, -65504 * RANDOM(seed).random()
        after, _ = quantised(before, [{"x": x}], target, calibration="minmax")
        assert all(np.isfinite(array).all() for array in run(after, {"x": x}).values())
        for node in after.graph:
            if node.op_type == "QuantizeLinear":
                _, scale, zero = (value and value.const_value for value in node.inputs)
                low, high = limits(zero.dtype)
                zeros = zero.numpy().astype(float)
                reach = max(high - zeros.min(), zeros.max() - low)
                assert np.isfinite(np.float16(reach * np.float32(scale.numpy().max())))


@pytest.mark.parametrize("scheme", ["w8", "w4"])
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Conv", (8, 40, 3, 3), "pads = [1,1,1,1]"),
        ("Conv", (24, 3, 4, 4), ""),
        ("Conv", (8, 160, 3), "group = 2"),
        ("ConvTranspose", (70, 6, 2, 2), "strides = [2,2]"),
    ],
)
def test_weights_of_a_convolution_become_floats_when_onnxruntime_loads_them(
    op: str, shape: tuple[int, ...], attributes: str, scheme: str, tmp_path: Path
) -> None:
    before, feeds = convolution(op, shape, attributes)
    after, _ = quantised(before, feeds, Mobile(), scheme=scheme)
    kept, _ = quantised(before, feeds, Mobile(format="ort"), scheme=scheme)
    assert "DequantizeLinear" not in ops(after)
    assert set(ops(kept)) == {op, "DequantizeLinear"}
    for each in feeds:
        np.testing.assert_array_equal(run(after, each)["y"], run(kept, each)["y"])
    verify(after.model)
    source, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    after.save(source)
    save_optimised(source, optimised)
    assert ops(Module.load(optimised)) == [op]
    assert source.stat().st_size < 0.6 * tmp_path.joinpath("optimised.onnx").stat().st_size


# --- embeddings


@pytest.mark.parametrize("target", [None, Mobile()])
@pytest.mark.parametrize("tie", ["", "t = Transpose (e)  z = MatMul (h, t)"])
def test_an_embedding_is_looked_up_as_integers(target: Mobile | None, tie: str) -> None:
    text = f"""g (int64[1,7] i) => (float[1,7,160] y{", float[1,7,50] z" if tie else ""})
    <W> {{ h = Gather (e, i)  y = Relu (h)  {tie} }}"""
    before = module(text, {"e": floats(50, 160)})
    feeds = [{"i": RANDOM(n).integers(0, 50, (1, 7))} for n in range(2)]
    after, ctx = quantised(before, feeds, target, scheme="w8")
    stored = {v.name: v.const_value for v in after.graph.initializers.values()}
    narrow = [t for t in stored.values() if t.dtype == ir.DataType.INT8]
    assert len(narrow) == 1 and narrow[0].size == 50 * 160  # one table for both
    assert not [t for t in stored.values() if t.dtype == ir.DataType.FLOAT and t.size > 1600]
    assert error(before, after, feeds) < 1e-3
    assert [str(r) for r in ctx.remarks if r.kind == "declined"] == []


def test_a_table_that_is_read_in_float_stays() -> None:
    text = """g (int64[3] i) => (float[3,8] y, float[5,8] z) <W>
    { y = Gather (e, i)  z = Neg (e) }"""
    _, ctx = quantised(module(text, {"e": floats(5, 8)}), [{"i": np.arange(3)}], scheme="w8")
    assert "read otherwise elsewhere" in str([str(r) for r in ctx.remarks])


# --- models that are hard on grids


def hard(name: str) -> tuple[Module, list[Feeds]]:
    before, feeds = convolutions(0.3)
    weights = {k: v.const_value.numpy().copy() for k, v in before.graph.initializers.items()}
    match name:
        case "constant activations":
            feeds = [{"x": np.full((1, 4, 6, 6), 2.5, np.float32)}]
        case "zero activations":
            feeds = [{"x": np.zeros((1, 4, 6, 6), np.float32)}]
        case "all-zero channels":
            weights["w"][[0, 3]] = 0
            weights["v"][:, 2] = 0
            weights["v"][1] = 0
        case "all-zero weights":
            weights["w"][:] = 0
        case "tiny weights":
            weights["w"] *= 1e-30
            weights["b"] *= 1e-30
            weights["v"] *= 1e30
        case "denormal weights":
            weights["w"][1] = 1e-42
        case "huge bias":
            weights["b"][2] = 10
            weights["w"][2] *= 1e-8
    return convolutions(**weights)[0], feeds


HARD = [
    "constant activations", "zero activations", "all-zero channels", "all-zero weights",
    "tiny weights", "denormal weights", "huge bias",
]  # fmt: skip
ALL = {"equalise": True, "smooth": 0.5, "bias_correction": True, "outliers": 4.0}


@pytest.mark.parametrize("options", [{}, {**ALL, "weights": "gptq"}], ids=["plain", "all"])
@pytest.mark.parametrize("name", HARD)
def test_hard_models_stay_near_what_they_were(name: str, options: dict[str, object]) -> None:
    before, feeds = hard(name)
    for target in (None, Mobile()):
        after, _ = quantised(before, feeds, target, calibration="minmax", **options)
        verify(after.model)
        assert error(before, after, feeds) < 0.02
        assert error(before, after, feeds, optimise=True) < 0.02


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("weights", ["nearest", "gptq"])
def test_weights_that_are_not_finite_are_refused(number: float, weights: str) -> None:
    before, feeds = product()
    weight = before.graph.initializers["w"].const_value.numpy().copy()
    weight[3, 4] = number
    before.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    with pytest.raises(CompileError, match="not finite") as raised:
        quantised(before, feeds, scheme="w8", weights=weights)
    assert "'w'" in str(raised.value)


def test_one_weight_in_two_products() -> None:
    text = """g (float[2,8] x, float[2,8] u) => (float[2,8] y, float[2,8] z)
    <W> { y = Gemm (x, w, a)  z = Gemm (u, w, b) }"""
    huge = np.full(8, 1e7, np.float32)
    before = module(text, {"w": floats(8, 8), "a": floats(8), "b": huge})
    feeds = [{"x": floats(2, 8, seed=1), "u": floats(2, 8, seed=2)}]
    for options in ({}, ALL, {"weights": "gptq"}, {"weights": "awq", "scheme": "w8"}):
        after, _ = (
            quantised(before, feeds, Mobile(), **{"scheme": "w8a8", **options})
            if (options.get("scheme") != "w8")
            else quantised(before, feeds, **options)
        )
        assert error(before, after, feeds) < 1e-3
        sizes = [v.const_value.size for v in after.graph.initializers.values()]
        assert sizes.count(64) <= 2


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1,), (), (2, 6), (2, 1)])
def test_the_bias_of_a_gemm_may_have_any_shape(shape: tuple[int, ...]) -> None:
    text = """g (float[2,8] x) => (float[2,6] y) <W>
    { y = Gemm <transB = 1> (x, w, b) }"""
    before = module(text, {"w": floats(6, 8), "b": np.full(shape, 0.5, np.float32)})
    feeds = [{"x": floats(2, 8, seed=1)}]
    for options in ({}, {"bias_correction": True}, {"smooth": 0.5}):
        after, _ = quantised(before, feeds, Mobile(), calibration="minmax", **options)
        verify(after.model)
        assert error(before, after, feeds) < 1e-3


def test_sub_graphs_take_only_what_needs_no_calibration() -> None:
    text = """g (float[2,8] x, bool p) => (float[2,4] y) <W> {
      y = If (p) <then_branch = a () => (float[2,4] t) { t = MatMul (x, w) },
                  else_branch = b () => (float[2,4] e) { n = Neg (x)  e = MatMul (n, w) }> }"""
    before = module(text, {"w": floats(8, 4)})
    feeds = [{"x": floats(2, 8), "p": np.array(True)}]
    for options in ({"scheme": "w8"}, {"scheme": "w8", "weights": "gptq", **ALL}):
        after, _ = quantised(before, feeds, **options)
        assert error(before, after, feeds) < 1e-3
    _, ctx = quantised(before, feeds)
    assert "no range is calibrated" in str([str(r) for r in ctx.remarks])


@pytest.mark.parametrize(("option", "value"), [("smooth", 1.5), ("outliers", 0.5)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(PipelineError, match=option):
        InsertQdq(**{option: value})


# --- random models

OPTIONS = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from(["w8", "w8a8"]),
        "weights": st.sampled_from(["nearest", "mse", "gptq", "awq"]),
        "smooth": st.sampled_from([0.0, 0.5]),
        "equalise": st.booleans(),
        "bias_correction": st.booleans(),
        "outliers": st.sampled_from([0.0, 4.0]),
    }
)


@st.composite
def products(draw: Callable) -> Module:
    """A chain of products, normalisations and sums with weights of all sizes."""
    width, lines, weights, last = draw(st.integers(1, 6)), [], {}, "x"
    for n in range(draw(st.integers(1, 5))):
        size = 10.0 ** draw(st.integers(-3, 3))
        weights[f"w{n}"] = floats(width, width, seed=n) * np.float32(size)
        weights[f"b{n}"] = floats(width, seed=n + 9)
        step = draw(
            st.sampled_from(
                [
                    f"v{n} = MatMul ({last}, w{n})",
                    f"v{n} = Gemm <transB = 1> ({last}, w{n}, b{n})",
                    f"t{n} = Transpose <perm = [1,0]> (w{n})  v{n} = MatMul ({last}, t{n})",
                    f"v{n} = LayerNormalization ({last}, b{n})",
                    f"m{n} = MatMul ({last}, w{n})  v{n} = Add (m{n}, {last})",
                    f"m{n} = MatMul ({last}, w0)  v{n} = Relu (m{n})",
                ]
            )
        )
        lines.append(step)
        last = f"v{n}"
    text = f"g (float[3,{width}] x) => (float[3,{width}] y) <W> "
    return module(text + "{ " + "  ".join([*lines, f"y = Identity ({last})"]) + " }", weights)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(products(), OPTIONS)
def test_random_models_quantise_and_verify(before: Module, options: dict[str, object]) -> None:
    feeds = [{"x": floats(*before.inputs[0].shape.numpy(), seed=n)} for n in range(2)]
    after, _ = quantised(before, feeds, calibration="minmax", **options)
    verify(after.model)
    for each in feeds:
        assert all(np.isfinite(v).all() for v in run(after, each).values())


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(modules(), OPTIONS)
def test_random_graphs_quantise_and_verify(before: Module, options: dict[str, object]) -> None:
    infer_shapes(before.model)
    given_feeds = feeds_of(before)
    try:
        after, _ = quantised(before, [given_feeds], calibration="minmax", **options)
    except CompileError as error:
        assert "not finite" in str(error) or "NaN" in str(error) or "infinite" in str(error)
        return
    verify(after.model)
    new, old = run(after, given_feeds), run(before, given_feeds)
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in old.items()}


@st.composite
def kinds_of_convolution(draw: Callable) -> tuple[str, tuple[int, ...], str]:
    """An operator, the shape of its weight and its attributes."""
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    groups = draw(st.sampled_from([1, 1, 2, 3]) if op == "Conv" else st.just(1))
    inputs, outputs = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    shape = (outputs * groups, inputs) if op == "Conv" else (inputs, outputs)
    attributes = f"group = {groups}, strides = [{','.join('2' * len(kernel))}]"
    return op, (*shape, *kernel), attributes


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kinds_of_convolution(),
    st.sampled_from(["w8a8", "w8", "w4"]),
    st.sampled_from([Mobile(), Mobile(format="ort"), Cpu()]),
    st.sampled_from(["nearest", "mse", "gptq"]),
)
def test_convolutions_of_all_kinds_quantise_and_verify(
    kind: tuple[str, tuple[int, ...], str], scheme: str, target: Mobile | Cpu, weights: str
) -> None:
    before, feeds = convolution(*kind)
    after, _ = quantised(before, feeds, target, scheme=scheme, weights=weights)
    verify(after.model)
    widest = before.clone()
    for value in widest.graph.initializers.values():
        array = np.abs(value.const_value.numpy())
        value.const_value = ir.tensor(np.full_like(array, array.max()), name=value.name)
    for each in feeds:
        off = np.abs(run(after, each)["y"] - run(before, each)["y"])
        most = run(widest, {"x": np.abs(each["x"])})["y"]
        assert off.max() <= (0.2 if scheme == "w4" else 0.02) * most.max()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 5), st.integers(1, 24), st.integers(1, 5), st.integers(-20, 20), st.booleans()
)
def test_one_product_is_within_the_steps_of_its_grids(
    rows: int, inputs: int, outputs: int, size: int, is_uneven: bool
) -> None:
    weight = floats(inputs, outputs, spread=float(is_uneven)) * np.float32(2.0**size)
    text = f"g (float[{rows},{inputs}] x) => (float[{rows},{outputs}] y) <W>"
    before = module(text + "{ y = MatMul (x, w) }", {"w": weight})
    x = floats(rows, inputs, seed=3)
    after, _ = quantised(before, [{"x": x}], calibration="minmax")
    off = np.abs(run(after, {"x": x})["y"] - x @ weight)
    dx = max(np.abs(x).max() / 127, 1e-30) / 2
    dw = np.abs(weight).max(0) / 127 / 2
    bound = dx * np.abs(weight).sum(0) + dw * np.abs(x).sum(1, keepdims=True) + inputs * dx * dw
    assert (off <= bound * 1.01 + 1e-30).all()
