"""The cpu target: what it refuses, what it writes, and the precision that its kernels have."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import aigcc
from aigcc.errors import CompileError, TargetError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.quant.placement import find_scheme, schemes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.target import Lowered
from aigcc.targets.cpu import INSTALL, MODEL, WEIGHTS, Cpu
from aigcc.targets.cpu.kernels import KERNELS, read_back
from aigcc.targets.cpu.machine import has_bfloat16, processor

rng = np.random.default_rng

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"needs OpenVINO: {INSTALL}"
)


@pytest.fixture
def needs_bfloat16() -> None:
    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")


def module(text: str, opset: int = 22) -> Module:
    made = Module.parse(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    infer_shapes(made.model)
    return made


def numbers(size: int, seed: int = 0) -> str:
    return ",".join(f"{x:.3f}" for x in np.random.default_rng(seed).standard_normal(size))


def perceptron() -> Module:
    """Two products with a normalisation between."""
    return module(
        f"""g (float[batch,n,64] x) => (float[batch,n,64] y)
<float[64,64] w = {{{numbers(4096)}}}, float[64,64] v = {{{numbers(4096, 1)}}},
 float[64] s = {{{numbers(64, 2)}}}>
{{
  [first] h = MatMul (x, w)
  [norm] n = LayerNormalization (h, s)
  [second] y = MatMul (n, v)
}}"""
    )


def quantised(weight: str, zero: str, activation: str = "uint8", middle: int = 128) -> Module:
    """A product whose factors are stored in 8 bits."""
    whole = np.random.default_rng(0).integers(0, 60, 4096)  # two products fit 16 bits
    return module(
        f"""g (float[1,32,64] x) => (float[1,32,64] y)
<float a = {{0.03}}, {activation} z = {{{middle}}}, float s = {{0.01}}, {weight} t = {{{zero}}},
 {weight}[64,64] w = {{{",".join(map(str, whole))}}}>
{{
  q = QuantizeLinear (x, a, z)
  d = DequantizeLinear (q, a, z)
  f = DequantizeLinear (w, s, t)
  [product] y = MatMul (d, f)
}}"""
    )


def build(made: Module, folder: Path, target: Cpu | None = None) -> Lowered:
    return (target or Cpu()).lower(made, folder, Context())


def relative_error(given: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("y = Det (x)", "no kernel for Det"),
        ("y = Mod (x, x)", "fmod must be 1"),
        ('y = Resize <antialias = 1, mode = "linear"> (x, , s)', "antialias must be 0"),
        ('y = Pad <mode = "wrap"> (x, p)', "mode must be constant, edge or reflect"),
        ("d = Cast <to = 11> (x) y = IsInf (d)", "IsInf has no double kernel"),
        ("y = Mod <fmod = 1> (x, x)", ""),
    ],
)
def test_what_openvino_would_refuse_is_named_beforehand(node: str, words: str) -> None:
    inputs = "(float[1,4,8,8] x, int64[8] p)"
    made = module(f"g {inputs} => (y) <float[4] s = {{1,1,2,2}}> {{ {node} }}")
    messages = [problem.message for problem in Cpu().check(made)]
    assert messages == [] if not words else any(words in message for message in messages)


def test_blocks_must_divide_their_axis() -> None:
    text = """g (float[2,48] x) => (float[2,4] y)
<int8[48,4] w = {WEIGHTS}, float[2,4] s = {SCALES}>
{
  [blocks] d = DequantizeLinear <axis = 0, block_size = 32> (w, s)
  y = MatMul (x, d)
}"""
    made = module(text.replace("WEIGHTS", "1," * 191 + "1").replace("SCALES", "1," * 7 + "1"))
    assert "blocks: " in "".join(f"{p.node}: {p.message}" for p in Cpu().check(made))


def test_group_norms_are_spelt_out() -> None:
    before = module("""g (float[n,8,h,w] x) => (float[n,8,h,w] y)
<float[8] s = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}>
{ y = GroupNormalization <num_groups = 2> (x, s, b) }""")
    after = before.clone()
    PassManager(parse(Cpu().pipeline())).run(after, Context(target=Cpu()))
    kinds = {node.op_type for node in after.graph}
    assert "InstanceNormalization" in kinds
    assert "GroupNormalization" not in kinds
    feeds = {"x": rng(0).standard_normal((2, 8, 3, 5), np.float32)}
    wanted = OrtSession(before).run(feeds)["y"]
    assert relative_error(OrtSession(after).run(feeds)["y"], wanted) < 1e-5


def test_openvino_never_chooses_types_by_itself() -> None:
    chosen = Cpu().properties()
    assert chosen["INFERENCE_PRECISION_HINT"] == "f32"
    assert chosen["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    assert chosen["ENABLE_CPU_PINNING"] is False
    assert Cpu(precision="bf16").properties()["INFERENCE_PRECISION_HINT"] == "bf16"
    assert Cpu(threads=3).properties(8)["INFERENCE_NUM_THREADS"] == 3
    assert Cpu().properties(8)["INFERENCE_NUM_THREADS"] == 8
    assert Cpu().tolerance < Cpu(activation_group=32).tolerance < Cpu(precision="bf16").tolerance


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_is_offered_where_the_cpu_has_it(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigcc.targets.cpu._lacks_bfloat16", lambda: not has_it)
    assert ("bf16" in schemes(Cpu())) == has_it
    precisions = [getattr(base, "precision", "") for base in Cpu().bases()]
    assert precisions == (["fp32", "bf16"] if has_it else ["fp32"])
    if not has_it:
        with pytest.raises(CompileError, match="'bf16' for cpu") as error:
            find_scheme("bf16", Cpu())
        assert "no instructions for bfloat16" in str(error.value)
        with pytest.raises(TargetError, match="no instructions for bfloat16"):
            Cpu(precision="bf16").check_tools()


@needs_library
def test_measurements_are_kept_by_cpu() -> None:
    assert processor() in Cpu().runtime()


def test_the_schemes_of_the_table_are_known_to_insert_qdq() -> None:
    known = schemes(Cpu())
    assert not known["w8a8"].symmetric
    assert set(known["w8a8"].kernels) <= set(Cpu().can.facts["placement"]["products"])


@needs_library
def test_an_artifact_runs_in_any_shape(tmp_path: Path) -> None:
    made = perceptron()
    lowered = build(made, tmp_path)
    assert set(lowered.files) == {MODEL, WEIGHTS, KERNELS}
    assert set(lowered.files) == {path.name for path in tmp_path.iterdir()}
    assert lowered.facts["kernels"]["products"] == {"float x float": 2}
    session = Cpu().session(tmp_path, lowered.entry, threads=1)
    for shape in ((1, 16, 64), (3, 5, 64)):
        feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        wanted = OrtSession(made).run(feeds)["y"]
        assert relative_error(session.run(feeds)["y"], wanted) < 1e-5

    (tmp_path / "example.py").write_text(Cpu().example(made, lowered.entry), "utf-8")
    printed = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("y f32 (1, 8, 64)\n")
    assert printed.endswith(" ms\n")


@needs_library
def test_the_first_shapes_have_a_program_of_their_own_until_others_come(tmp_path: Path) -> None:
    made = perceptron()
    build(made, tmp_path)
    session, reference = Cpu().session(tmp_path, MODEL), OrtSession(made)
    dynamic = []
    for shape in ((2, 5, 64), (2, 5, 64), (1, 7, 64), (3, 1, 64), (2, 5, 64)):
        feeds = {"x": rng(1).standard_normal(shape, np.float32)}
        assert relative_error(session.run(feeds)["y"], reference.run(feeds)["y"]) < 1e-5
        dynamic.append(session.compiled.inputs[0].get_partial_shape().is_dynamic)
    assert dynamic == [False, False, True, True, True]


@needs_library
def test_outputs_are_copies_and_inputs_of_any_layout_are_taken(tmp_path: Path) -> None:
    made = module("g (float[n,3] x) => (float[n,3] y) { y = Neg (x) }")
    build(made, tmp_path)
    session = Cpu().session(tmp_path, MODEL)
    first = rng(0).standard_normal((3, 4), np.float32).T[:, ::1]
    kept = session.run({"x": first})["y"]
    session.run({"x": np.zeros((4, 3), np.float32)})
    session.run({"x": np.ones((2, 3), np.float32)})
    assert (kept == -first).all()
    assert (session.run({"x": first[::-1]})["y"] == -first[::-1]).all()


@needs_library
def test_a_shape_that_does_not_fit_is_refused_and_the_next_one_runs(tmp_path: Path) -> None:
    build(perceptron(), tmp_path)
    session = Cpu().session(tmp_path, MODEL)
    for _ in range(2):
        with pytest.raises(CompileError, match="OpenVINO: "):
            session.run({"x": np.zeros((2, 5, 63), np.float32)})
    assert session.run({"x": np.zeros((2, 5, 64), np.float32)})["y"].shape == (2, 5, 64)


@needs_library
def test_weights_stay_float32_in_the_file(tmp_path: Path) -> None:
    build(perceptron(), tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size >= 4 * (2 * 4096 + 64)


@needs_library
def test_nodes_keep_their_names(tmp_path: Path) -> None:
    build(perceptron(), tmp_path)
    assert read_back(tmp_path) == {"first": "float", "norm": "float", "second": "float"}


@needs_library
def test_a_compressed_product_with_a_bias_keeps_its_name(tmp_path: Path) -> None:
    made = module(
        f"""g (float[1,n,64] x) => (float[1,n,64] y)
<int8[64,64] w = {{{",".join("1" * 4096)}}}, float s = {{0.01}}, float[64] b = {{{numbers(64)}}}>
{{
  d = DequantizeLinear (w, s)
  [product] h = MatMul (x, d)
  [bias] y = Add (h, b)
}}"""
    )
    facts = build(made, tmp_path).facts
    assert facts["kernels"]["products"] == {"float x int8": 1}
    assert read_back(tmp_path)["product"] == "float"


@needs_library
@pytest.mark.usefixtures("needs_bfloat16")
def test_each_node_runs_in_its_own_type(tmp_path: Path) -> None:
    made = module(
        f"""g (float[1,32,64] x) => (float[1,32,64] y)
<float[64,64] w = {{{numbers(4096)}}}, float[64,64] v = {{{numbers(4096, 1)}}}>
{{
  b = Cast <to = 16> (x)
  u = Cast <to = 16> (w)
  [narrow] h = MatMul (b, u)
  m = Cast <to = 1> (h)
  [wide] y = MatMul (m, v)
}}"""
    )
    facts = build(made, tmp_path).facts
    found = read_back(tmp_path)
    assert (found["narrow"], found["wide"]) == ("bfloat16", "float")
    assert facts["kernels"]["products"] == {"bfloat16 x bfloat16": 1, "float x float": 1}


@needs_library
@pytest.mark.parametrize(
    ("made", "computes_in"),
    [
        (quantised("int8", "0"), "uint8"),
        (quantised("int8", "0", "int8", 0), "int8"),
        (quantised("uint8", "50"), "float"),
    ],
    ids=["uint8", "int8", "weights-with-a-zero-point"],
)
def test_the_type_that_multiplies_is_read_back(
    made: Module, computes_in: str, tmp_path: Path
) -> None:
    facts = build(made, tmp_path).facts
    (product,) = facts["kernels"]["products"]
    assert product.startswith(f"{computes_in} x ")
    feeds = next(iter(load_samples(None, made)))
    wanted = OrtSession(made, optimise=False).run(feeds)["y"]
    assert relative_error(Cpu().session(tmp_path, MODEL).run(feeds)["y"], wanted) < 1e-2


@needs_library
def test_a_module_runs_without_an_artifact() -> None:
    made = perceptron()
    feeds = next(iter(load_samples(None, made)))
    session = Cpu().open(made)
    assert session is not None
    assert relative_error(session.run(feeds)["y"], OrtSession(made).run(feeds)["y"]) < 1e-5


@needs_library
def test_functions_and_sub_graphs(tmp_path: Path) -> None:
    made = Module.parse(
        """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
g (bool c, float[2] x) => (float[2] y) {
  a = my.twice (x)
  y = If (c) <
    then_branch = t () => (float[2] p) { p = Tanh (a) },
    else_branch = e () => (float[2] q) { q = Identity (a) }
  >
}
<domain: "my", opset_import: ["" : 21]>
twice (x) => (y) { two = Constant <value = float {2}> () y = Mul (x, two) }"""
    )
    assert Cpu().check(made) == []
    lowered = build(made, tmp_path)
    session = Cpu().session(tmp_path, lowered.entry)
    x = np.array([1, 2], np.float32)
    assert (session.run({"c": np.array(False), "x": x})["y"] == 2 * x).all()
    assert len(made.model.functions) == 1


@needs_library
def test_types_that_numpy_lacks(tmp_path: Path) -> None:
    made = module("g (bfloat16[n,3] x) => (bfloat16[n,3] y) { y = Neg (x) }")
    lowered = build(made, tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    y = Cpu().session(tmp_path, lowered.entry).run({"x": x})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    assert (y == -x).all()
    program = Cpu().example(made, lowered.entry)
    (tmp_path / "example.py").write_text(program, "utf-8")
    command = [sys.executable, "example.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*command, "y=x.npy"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.startswith("there is no input 'y'; the inputs are x")


@needs_library
@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"z": np.zeros((1, 1, 64), np.float32)}, "no input 'z'"),
        ({}, "no value for the input 'x'"),
        ({"x": np.zeros((1, 1, 64), np.int8)}, "'x' takes f32, not int8"),
        ({"x": np.zeros((1, 1, 63), np.float32)}, "OpenVINO: "),
    ],
)
def test_wrong_feeds_are_explained(feeds: dict[str, Any], words: str) -> None:
    session = Cpu().open(perceptron())
    assert session is not None
    with pytest.raises(CompileError, match=words):
        session.run(feeds)


@needs_library
def test_a_refusal_names_the_node(tmp_path: Path) -> None:
    made = module("g (float[2] x) => (y) { [culprit] y = Mod (x, x) }")
    with pytest.raises(TargetError) as error:
        build(made, tmp_path)
    assert error.value.at == "node culprit (Mod)"
    assert "Exception from" not in error.value.what
    assert not list(tmp_path.iterdir())


def test_without_the_library_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError) as error:
        build(perceptron(), tmp_path)
    assert INSTALL in str(error.value)
    with pytest.raises(TargetError, match="OpenVINO is not installed"):
        aigcc.build(tmp_path / "never_read.onnx", "cpu", tmp_path / "out")
    assert Cpu().open(perceptron()) is None
    (library,) = Cpu().requirements()
    assert (library.present, library.fix) == (False, INSTALL)


def embedding(dtype: str) -> Module:
    """A time step and its sines, as diffusion models have them, before a product."""
    return module(
        f"""g ({dtype}[n] step) => (float[n,64] y)
<float[1,32] f = {{{",".join(f"{10000 ** (-i / 32):.6f}" for i in range(32))}}},
 float[64,64] w = {{{numbers(4096)}}}, int64[1] one = {{1}}>
{{
  s = Cast <to = 1> (step)
  c = Unsqueeze (s, one)
  a = Mul (c, f)
  u = Sin (a)
  v = Cos (a)
  e = Concat <axis = 1> (u, v)
  [product] y = MatMul (e, w)
}}"""
    )


@needs_library
@pytest.mark.usefixtures("needs_bfloat16")
@pytest.mark.parametrize("way", ["open", "lower"])
@pytest.mark.parametrize("dtype", ["float", "int64"])
def test_sines_of_large_numbers_survive_bfloat16(way: str, dtype: str, tmp_path: Path) -> None:
    made, target = embedding(dtype), Cpu(precision="bf16")
    feeds = {"step": np.array([842, 999], np.float32 if dtype == "float" else np.int64)}
    if way == "open":
        session = target.open(made)
    else:
        target.lower(made, tmp_path, Context(target=target, samples=load_samples(None, made)))
        session = target.session(tmp_path, MODEL)
    assert session is not None
    exact = OrtSession(made, optimise=False).run(feeds)["y"]
    error = np.abs(session.run(feeds)["y"] - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 0.02


@needs_library
@pytest.mark.usefixtures("needs_bfloat16")
@pytest.mark.parametrize(("mean", "bound"), [(0, 0.005), (8, 0.03), (-40, 0.2)])
def test_variances_survive_bfloat16(mean: int, bound: float, tmp_path: Path) -> None:
    same = ",".join(str(int(i % 33 == 0)) for i in range(32 * 32))
    made = module(
        f"""g (float[n,32,192,192] x) => (float[n,32,192,192] y)
<float[32,32,1,1] w = {{{same}}}, float[32] s = {{{numbers(32)}}}>
{{
  c = Conv (x, w)
  g = GroupNormalization <num_groups = 4> (c, s, s)
  y = Conv (g, w)
}}"""
    )
    target = Cpu(precision="bf16")
    PassManager(parse(target.pipeline())).run(made, Context(target=target))
    target.lower(made, tmp_path, Context(target=target, samples=load_samples(None, made)))
    assert "ReduceL2" in (tmp_path / MODEL).read_text()
    wide = mean + rng(0).standard_normal((1, 32, 192, 192), np.float32)
    x = wide.astype(ml_dtypes.bfloat16).astype(np.float32)
    exact = OrtSession(made, optimise=False).run({"x": x})["y"]
    error = target.session(tmp_path, MODEL).run({"x": x})["y"] - exact
    assert 1e-4 < np.sqrt(np.square(error).mean() / np.square(exact).mean()) < bound


@needs_library
@pytest.mark.usefixtures("needs_bfloat16")
def test_a_budget_decides_between_float32_and_bfloat16(tmp_path: Path) -> None:
    wide = numbers(1 << 16)
    made = module(
        f"""g (float[n,256] x) => (float[n,256] y)
<float[256,256] w = {{{wide}}}> {{ [product] y = MatMul (x, w) }}"""
    )
    found = {}
    for bound in (25, 90):
        built = aigcc.build(
            made,
            "cpu",
            tmp_path / str(bound),
            samples=lambda: [{"x": rng(i).standard_normal((512, 256), np.float32)} for i in (0, 1)],
            budget=f"sqnr>={bound}",
        )
        found[bound] = built.artifact.manifest["target"]
        (row,) = built.artifact.manifest["quality"]["outputs"]
        assert row["sqnr"] >= bound
    assert "precision=fp32" in found[90]
    assert "precision=auto" not in found[25]
