"""The gpu target: what it refuses, the shapes it chooses, and engines that are built and read."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.verify import verify
from aigcc.passes.to_fp16 import ToFp16
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.ranges import Range, declare
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.target import Capabilities, check_against
from aigcc.targets import worker
from aigcc.targets.culprit import find_culprit, with_culprit
from aigcc.targets.gpu import ENGINE, INSTALL, KERNELS, ONNX, Gpu
from aigcc.targets.gpu.kernels import computed_in, read_table, summarise

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason=f"needs TensorRT-RTX: {INSTALL}"
)

TABLE = """Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], \
TacticName: , StreamId: 0, Metadata:\x20
Name: __myl_Move_myl0_1, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,4], \
Datatype: Float, Format: (Linear) }], Constants: [], Outputs: [ { Name: h, Dimensions: [-1,4], \
Datatype: Half, Format: (Linear) }], TacticName: a, StreamId: 0, Metadata: [ONNX Layer: cast]
Name: mm_myl0_2, LayerType: gemm, Inputs: [ { Name: h, Dimensions: [-1,4], Datatype: Half, \
Format: (Linear) }], Constants: [ { Name: w, Dimensions: [4,8], Datatype: Half, Format: (Linear) \
}], Outputs: [ { Name: y, Dimensions: [-1,8], Datatype: Half, Format: (Linear) }], \
TacticName: b, StreamId: 0, Metadata: [ONNX Layer: mm][ONNX Layer: act]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,4]
"""


def module(text: str, opset: int = 21) -> Module:
    made = Module.parse(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    infer_shapes(made.model)
    return made


def generator() -> Module:
    """An image of 8 by 8 and a vector from 16 random numbers."""
    text = """generator (float[batch,16] z) => (float[batch,3,8,8] image, float[batch,16] v)
<float[16,64] w = {W}, int64[4] shape = {-1,4,4,4}, float[4,3,4,4] k = {K}, float[16,16] u = {U}>
{
  h = MatMul (z, w)
  r = Relu (h)
  f = Reshape (r, shape)
  c = ConvTranspose <pads = [1,1,1,1], strides = [2,2]> (f, k)
  image = Tanh (c)
  v = MatMul (z, u)
}"""
    random = np.random.default_rng(0)
    for name, size in (("W", 1024), ("K", 192), ("U", 256)):
        text = text.replace(f"{{{name}}}", "{" + _numbers(random, size) + "}")
    return module(text)


def _numbers(random: np.random.Generator, size: int) -> str:
    return ",".join(f"{x:.3f}" for x in random.standard_normal(size))


def in_float16(made: Module) -> Module:
    PassManager([ToFp16()]).run(made)
    return made


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ('y = Resize <antialias = 1, mode = "linear"> (x, , s)', "antialias must be 0"),
        ("y, m = LayerNormalization (x, s)", "only the first 1 outputs"),
        ("y = AveragePool <kernel_shape = [2,2], dilations = [2,2]> (x)", "dilations must be 1"),
        ('y = BitShift <direction = "LEFT"> (i, i)', "no kernel for BitShift"),
        ("y = Mod (x, x)", "fmod must be 1; or its input must be int32 or int64"),
        ("y = Mod <fmod = 1> (x, x)", ""),
        ("y = ReduceSum (x, a)", "its input 'a' must be a constant"),
        ("y = Tile (x, a)", "Tile makes a shape of what the input 'a' holds"),
        ("b = Abs (a) y = Slice (x, b, a)", "Slice makes a shape of what the input 'a' holds"),
        ("b = Shape (x) y = Reshape (x, b)", ""),
        (
            "y = Loop (n, , x) <body = b (int64 j, bool c, float[1,4,8,8] p) => "
            "(bool d, float[1,8,8,8] q) { d = Identity (c) q = Concat <axis = 1> (p, p) }>",
            "a round of the Loop makes [1,8,8,8] of a state that begins as [1,4,8,8]",
        ),
        (
            "m, y = Loop (n, , x) <body = b (int64 j, bool c, float[1,4,8,8] p) => "
            "(bool d, float[1,4,8,8] q, float[1,4,8,8] r) "
            "{ d = Identity (c) q = Neg (p) r = Abs (p) }>",
            "Loop makes a shape of what the input 'n' holds",
        ),
        (
            "v = Constant <value_floats = [1., 2., 3., 4., 5., 6., 7., 8.]> () y = MatMul (v, x)",
            "a vector and",
        ),
        ("y = Cast <to = 17> (x)", "Cast has no float8e4m3fn kernel"),
    ],
)
def test_what_the_parser_would_refuse_is_named_beforehand(node: str, words: str) -> None:
    head = (
        "(float[1,4,8,8] x, uint8[4] i, int64[4] a, int64 n) => (y, m)"
        if "m =" in node or "m, y" in node
        else "(float[1,4,8,8] x, uint8[4] i, int64[4] a, int64 n) => (y)"
    )
    made = module(f"g {head} <float[4] s = {{1,1,2,2}}> {{ {node} }}")
    messages = [problem.message for problem in Gpu().check(made)]
    assert messages == [] if not words else any(words in message for message in messages)


@pytest.mark.parametrize(
    ("inputs", "attributes", "fits"),
    [
        ("q, k, v", "", True),
        ("q, k, v", "is_causal = 1", True),
        ("q, k, v, mask", "", True),
        ("q, k, v, mask", "is_causal = 1", False),
        ("q, k, v", "softcap = 2.0", False),
        ("q, k, wide", "", False),
    ],
)
def test_limits_have_alternatives(inputs: str, attributes: str, fits: bool) -> None:
    made = module(
        "g (float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v, float[1,2,8,32] wide,"
        f" float[8,8] mask) => (y) {{ y = Attention <{attributes}> ({inputs}) }}",
        opset=23,
    )
    assert (Gpu().check(made) == []) == fits


ATTENTIONS = {
    "query": "y = Attention (q, k, v) z = Attention (q, l, w)",
    "key": "y = Attention (q, k, v) n = Neg (q) z = Attention (n, k, w)",
    "both in one": "y = Attention (q, q, v) z = Neg (k)",
    "key as a query": "y = Attention (q, k, v) z = Attention (k, l, w)",
    "query of the next": "y = Attention (q, k, v) z = Attention (q, y, w)",
    "query behind a move": "y = Attention (q, k, v) i = Identity (q) z = Attention (i, l, w)",
    "three": "y = Attention (q, k, v) a = Attention (q, l, w) z = Attention (q, v, a)",
}


def attentions(body: str, dtype: str = "float") -> Module:
    inputs = ", ".join(f"{dtype}[1,4,8,16] {name}" for name in "qkvlw")
    return module(f"g ({inputs}) => (y, z) {{ {body} }}", opset=23)


def legalised(made: Module, target: Gpu) -> Module:
    PassManager(parse(target.pipeline())).run(made, Context(target=target))
    assert target.check(made) == []
    return made


@pytest.mark.parametrize("body", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attentions_that_share_a_factor_are_spelt_out(body: str) -> None:
    target, made = Gpu(), attentions(body)
    assert any("the builder crashes" in problem.message for problem in target.check(made))
    kept = [node for node in legalised(made, target).nodes() if node.op_type == "Attention"]
    assert len(kept) == (0 if "(q, q, v)" in body else 1)
    assert kept == [] or kept[0].outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    "body",
    [
        "y = Attention (q, k, v) n = Neg (q) z = Attention (n, l, v)",
        "y = Attention (q, k, k) z = MatMul (q, q)",
    ],
)
def test_attentions_that_share_values_alone_stay(body: str) -> None:
    made = attentions(body.replace("MatMul (q, q)", "Exp (q)"))
    assert Gpu().check(made) == []
    assert "Attention" in [node.op_type for node in legalised(made, Gpu()).nodes()]


BRANCHES = {
    "ranks": ("p = Relu (x)", "q = ReduceMax <keepdims = 0> (x, a)", "shapes of different ranks"),
    "attention": ("p = Attention (x, k, k)", "q = Neg (x)", "no Attention may be in a branch"),
    "rnn": (
        """p = If (c) < then_branch = i () => (float[1,4,8,16] r) { r = Exp (x) },
  else_branch = j () => (float[1,4,8,16] s) { s = Neg (x) } >
t, u, v = LSTM <hidden_size = 2> (m, w, w2)""",
        "q = Neg (x)",
        "LSTM may not be beside an If",
    ),
    "plain": ("p = Relu (x)", "q = Neg (x)", ""),
}


@pytest.mark.parametrize(("then", "other", "words"), BRANCHES.values(), ids=BRANCHES)
def test_branches_that_the_builder_cannot_take_are_named(then: str, other: str, words: str) -> None:
    made = module(
        f"""g (float[1,4,8,16] x, float[1,4,8,16] k, bool c, float[3,1,4] m, float[1,8,4] w,
  float[1,8,2] w2) => (y) <int64[1] a = {{0}}> {{
  y = If (c) <then_branch = one () => (p) {{ {then} }}, else_branch = two () => (q) {{ {other} }}>
}}""",
        opset=23,
    )
    found = [problem.message for problem in Gpu().check(made)]
    assert any(words in message for message in found) if words else found == []
    if words and "ranks" not in words:
        legalised(made, Gpu())


def test_float32_attention_is_spelt_out_where_it_stays_float32() -> None:
    body = "y = Attention (q, k, v) z = Neg (q)"
    for precision in ("fp32", "tf32"):
        made = legalised(attentions(body), Gpu(precision=precision))  # type: ignore[arg-type]
        assert "Attention" not in [node.op_type for node in made.nodes()]
    assert Gpu(precision="fp32").check(attentions(body, "float16")) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mean", [0, 300, 1000, -10000])
def test_norms_of_values_far_from_zero_keep_their_digits(precision: str, mean: float) -> None:
    made = module(
        """g (float[1,8,6,6] x, float[8,8,1,1] w) => (y)
<float[8] s = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] b = {0, 0, 0, 0, 0, 0, 0, 0}>
{
  n = GroupNormalization <num_groups = 2> (x, s, b)
  y = Conv (n, w)
}"""
    )
    random = np.random.default_rng(0)
    feeds = {
        "x": (mean + random.standard_normal((1, 8, 6, 6))).astype(np.float32),
        "w": random.standard_normal((8, 8, 1, 1)).astype(np.float32),
    }
    target = Gpu(precision=precision)  # type: ignore[arg-type]
    ctx = Context(target=target, samples=load_samples(lambda: iter([feeds]), made))
    PassManager(parse(target.pipeline())).run(made, ctx)
    rows = feeds["x"].astype(np.float64).reshape(2, -1)
    normed = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    right = np.einsum("oi,ihw->ohw", feeds["w"][:, :, 0, 0], normed.reshape(8, 6, 6))
    y = OrtSession(made, optimise=False).run(feeds)["y"][0]
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    assert np.abs(y - right).max() <= tolerance * np.abs(right).max()


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_attentions_of_one_query_are_built(precision: str, tmp_path: Path) -> None:
    made = module(
        """g (float[1,4,16,64] q, float[1,4,8,64] k, float[1,4,8,64] v, float[1,4,6,64] l,
   float[1,4,6,64] w) => (y)
<float scale = {0.6}>
{
  s = Mul (q, scale)
  a = Attention <scale = 0.6> (s, k, v)
  b = Attention <scale = 0.6> (s, l, w)
  y = Add (a, b)
}""",
        opset=23,
    )
    target = Gpu(precision=precision, architectures=("sm89",))  # type: ignore[arg-type]
    lowered = target.lower(legalised(made, target), tmp_path, Context())
    assert lowered.facts["kernels"]["fused_attention"] == (2 if precision == "fp16" else 0)


def test_sm75_multiplies_no_float32_matrices() -> None:
    target = Gpu(architectures=("sm75",))
    assert "sm75" in target.check(generator())[0].message
    assert target.check(in_float16(generator())) == []


def test_the_limits_of_a_table_need_no_code_of_the_target() -> None:
    made = module("g (float[2] x) => (float[2] y) { y = Clip (x) }")
    can = Capabilities((7, 25), {"Clip": ()}, frozenset({"float"}))
    assert check_against(made, can) == []
    strict = dataclasses.replace(can, limits={"Clip": [{"inputs": 0}]})
    assert [p.message for p in check_against(made, strict)] == [
        "Clip: only the first 0 inputs may be used"
    ]


def test_dims_are_assumed_and_said(tmp_path: Path) -> None:
    ctx = Context()
    facts = Gpu(emit="onnx").lower(generator(), tmp_path, ctx).facts
    assert facts["profiles"] == {"z": [[1, 16], [1, 16], [8, 16]]}
    assert any("dim 'batch' (axis 0 of 'z') may be 1 to 8" in r.message for r in ctx.remarks)


def test_dims_come_from_options_then_from_samples(tmp_path: Path) -> None:
    made = module("g (float[batch,n] x) => (y) { y = Relu (x) }")
    samples = load_samples(lambda: iter([{"x": np.zeros((3, 700), np.float32)}]), made)
    target = Gpu(emit="onnx", dims=("batch:2:4:6",))
    facts = target.lower(made, tmp_path, Context(samples=samples)).facts
    assert facts["profiles"] == {"x": [[2, 1], [4, 700], [6, 700]]}


def test_dims_keep_to_what_is_declared_and_to_what_the_nodes_take(tmp_path: Path) -> None:
    text = """g (float[batch,"2*th"] x, float[past,4] cache, float[n,4] z) => (y, c, s)
    <float[12,4] table = {%s}> {
      y = Relu (x)  c = Relu (cache)  s = Add (z, table)
    }"""
    made = module(text % ", ".join("1" * 48))
    declare(made, {"th": Range(2, 16, 8), "past": Range(0, 508)})
    ctx = Context(samples=load_samples(None, made))
    facts = Gpu(emit="onnx").lower(made, tmp_path, ctx).facts
    assert facts["profiles"] == {
        "x": [[1, 4], [1, 8], [8, 32]],
        "cache": [[0, 4], [8, 4], [508, 4]],
        "z": [[1, 4], [1, 4], [1, 4]],
    }
    with pytest.raises(TargetError, match="may be 2 to 16, as the model was exported, and not 1"):
        Gpu(emit="onnx", dims=("th:1:2:16",)).lower(made, tmp_path, ctx)


def test_samples_outside_of_a_profile_are_said(tmp_path: Path) -> None:
    made = module("g (float[batch,4] x) => (y) { y = Relu (x) }")
    ctx = Context(samples=load_samples(lambda: iter([{"x": np.zeros((9, 4), np.float32)}]), made))
    Gpu(emit="onnx", dims=("batch:1:4:8",)).lower(made, tmp_path, ctx)
    assert "dim 'batch' is 9 in the samples, and the engine takes 1 to 8" in str(ctx.remarks[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": ("batch:4",)}, "the form is dims=[NAME:SMALLEST:BEST:LARGEST]"),
        ({"dims": ("batch:4:2:8",)}, "is no range of sizes"),
        ({"dims": ("batsh:1:2:8",)}, "did you mean 'batch'"),
        ({"architectures": ("sm90",)}, "no engine for 'sm90'"),
        ({"architectures": ("sm87",)}, "it is a Jetson Orin's: build for -t jetson"),
        ({"architectures": ("sm88",)}, "did you mean"),
        ({"architectures": ()}, "no architecture"),
    ],
)
def test_wrong_options_are_explained(
    options: dict[str, tuple[str, ...]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError) as error:
        Gpu(emit="onnx", **options).lower(generator(), tmp_path, Context())
    assert words in str(error.value)


def test_a_layer_without_constants_is_read() -> None:
    line = "Name: w, LayerType: kgen, Inputs: [Datatype: Half], Outputs: [], TacticValue: 0x0, "
    (kernel,) = read_table(f"Layers:\n{line}Metadata: [ONNX Layer: n]")
    assert (kernel.inputs, kernel.weights, kernel.outputs) == (("float16",), (), ())
    assert kernel.nodes == ("n",)


def test_the_table_of_kernels_is_read() -> None:
    move, product = read_table(TABLE)
    assert (move.inputs, move.outputs, move.nodes) == (("float",), ("float16",), ("cast",))
    assert computed_in([move, product]) == {"mm": "float16", "act": "float16"}
    assert (product.weights, product.nodes) == (("float16",), ("mm", "act"))
    assert summarise([move, product]) == {
        "total": 2,
        "by_kind": {"gemm": 1, "kgen": 1},
        "products": {"float16": 1},
        "fused_attention": 0,
    }


@needs_library
def test_an_engine_is_built_and_its_precision_read_back(tmp_path: Path) -> None:
    ctx = Context()
    target = Gpu(dims=("batch:1:2:4",))
    lowered = target.lower(in_float16(generator()), tmp_path, ctx)
    assert set(lowered.files) == {ENGINE, KERNELS} == {path.name for path in tmp_path.iterdir()}
    assert lowered.facts["kernels"]["products"] == {"float16": 3}
    assert lowered.precision == dict.fromkeys(("h", "c", "v_fp16"), "float16")
    assert not any("runs in float32" in remark.message for remark in ctx.remarks)
    kernels = json.loads((tmp_path / KERNELS).read_text("utf-8"))
    assert len(kernels) == lowered.facts["kernels"]["total"]
    assert target.session(tmp_path, lowered.entry) is None


@needs_library
def test_a_product_left_in_float32_is_remarked(tmp_path: Path) -> None:
    ctx = Context()
    lowered = Gpu().lower(generator(), tmp_path, ctx)
    assert lowered.facts["kernels"]["products"] == {"float": 3}
    assert any("runs in float32, not in float16" in remark.message for remark in ctx.remarks)


@needs_library
@pytest.mark.parametrize("scale", ["float", "float[1]"])
def test_quantised_products_are_read_back(scale: str, tmp_path: Path) -> None:
    weights = ",".join(str(index % 7 - 3) for index in range(64 * 32))
    made = module(f"""g (float[1,16,64] x) => (float[1,16,32] y)
<{scale} s = {{0.03}}, {scale.replace("float", "int8")} o = {{0}},
 float t = {{0.01}}, int8 p = {{0}}, int8[64,32] w = {{{weights}}}>
{{ a = QuantizeLinear (x, s, o) b = DequantizeLinear (a, s, o) v = DequantizeLinear (w, t, p)
   [product] y = MatMul (b, v) }}""")
    ctx = Context()
    lowered = Gpu(precision="fp32", architectures=("sm89",)).lower(made, tmp_path, ctx)
    is_int8 = lowered.precision == {"product": "int8"}
    said = "reads quantised numbers, and runs in float" in str(ctx.remarks)
    assert is_int8 != said


@needs_library
def test_a_refusal_names_the_node(tmp_path: Path) -> None:
    made = module("g (uint8[4] x) => (y) { [shift] y = BitwiseNot (x) }")
    with pytest.raises(TargetError) as error:
        Gpu().lower(made, tmp_path, Context())
    assert error.value.at is not None
    assert "node shift (BitwiseNot)" in error.value.at
    assert not list(tmp_path.iterdir())


@needs_library
def test_a_recipe_says_that_no_engine_was_built_and_builds_one(tmp_path: Path) -> None:
    ctx = Context()
    lowered = Gpu(emit="onnx").lower(generator(), tmp_path, ctx)
    assert lowered.entry == ONNX
    assert not (tmp_path / ENGINE).exists()
    assert any("no engine was built" in remark.message for remark in ctx.remarks)
    subprocess.run([sys.executable, tmp_path / "build_engine.py"], check=True, capture_output=True)
    assert (tmp_path / ENGINE).stat().st_size > 0


def test_without_the_library_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError) as error:
        Gpu().lower(generator(), tmp_path, Context())
    assert INSTALL in str(error.value)
    library, _ = Gpu().requirements()
    assert (library.present, library.fix) == (False, INSTALL)


@needs_library
def test_the_parser_knows_every_operator_of_the_table() -> None:
    names = sorted(Gpu().can.ops)
    program = f"""
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
print([name for name in {names} if not parser.supports_operator(name)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


STAND_IN = """
class DataType:
    FLOAT = HALF = BF16 = INT8 = INT32 = INT64 = BOOL = None
"""


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("zz=z.npy", "there is no input 'zz'; the inputs are z"),
        ("z=y.npy", "there is no file 'y.npy' for the input 'z'"),
        ("z=z.npy", "no NVIDIA GPU is found here"),
    ],
)
def test_the_example_says_what_is_wrong(argument: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(Gpu().example(generator(), ENGINE), "utf-8")
    (tmp_path / "tensorrt_rtx.py").write_text(STAND_IN, "utf-8")
    (tmp_path / ENGINE).write_bytes(b"")
    np.save(tmp_path / "z.npy", np.zeros((1, 16), np.float32))
    done = subprocess.run(
        [sys.executable, "example.py", argument], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(words), done.stderr


CHILD = """
import os, sys
def crash(request, progress):
    print("about to fall", flush=True)
    os.abort()
def fail(request, progress):
    raise KeyError("no such layer")
def work(request, progress):
    progress("half way", 0.5)
    print("noise")
    return {"twice": 2 * request["number"]}
"""


def test_a_crash_of_a_compiler_becomes_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    said: list[tuple[str, float]] = []
    answer = worker.call("child:work", {"number": 4}, lambda *args: said.append(args))
    assert answer == {"twice": 8}
    assert said == [("half way", 0.5)]
    with pytest.raises(TargetError, match="SIGABRT") as error:
        worker.call("child:crash", {}, lambda *args: None)
    assert "about to fall" in str(error.value)
    with pytest.raises(TargetError, match="KeyError: 'no such layer'"):
        worker.call("child:fail", {}, lambda *args: None)


def test_a_fault_is_bisected_to_its_node() -> None:
    made = module("""g (float[4] x, bool c) => (float[4] y, float[4] z)
{
  a = Exp (x)
  b = Neg (a)
  z = Abs (a)
  [culprit] d = If (c) <
    then_branch = t () => (float[4] p) { p = Sin (b) },
    else_branch = e () => (float[4] q) { q = Cos (a) }
  >
  y = Neg (d)
}""")
    built: list[list[str]] = []

    def build(part: Module, folder: Path) -> None:
        verify(part.model)
        built.append([value.name or "" for value in part.outputs])
        if any(node.op_type == "Sin" for node in part.nodes()):
            raise TargetError("the builder gives up")

    assert find_culprit(made, build) == "node culprit (If)"
    assert built == [["a", "b"], ["a", "b", "z"], ["z", "d"]]
    error = with_culprit(worker.Died("died", at="its log"), made, build)
    assert (error.what, error.at) == ("died", "node culprit (If)")
    known = TargetError("no", at="node a")
    assert with_culprit(known, made, build) is known
