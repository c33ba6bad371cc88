"""The jetson target: sizes of dims, what it refuses, and programs that are compiled and run."""

from __future__ import annotations

import importlib.util
import platform
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import aigcc
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.ranges import Range, declare
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.target import Lowered
from aigcc.targets.jetson import INSTALL, Jetson
from aigcc.targets.jetson.machine_code import read_library
from aigcc.targets.jetson.parameters import TensorFile
from aigcc.targets.jetson.program import (
    LIBRARY,
    PARAMETERS,
    SIGNATURE,
    Input,
    NativeSession,
    Signature,
)
from aigcc.targets.jetson.toolchain import (
    INSTALL_QEMU,
    PREPARE,
    QEMU,
    cross_linker,
    find_runner,
    native_linker,
)

HAS_TVM = importlib.util.find_spec("tvm") is not None

needs_tvm = pytest.mark.skipif(not HAS_TVM, reason=f"needs Apache TVM: {INSTALL}")
needs_runner = pytest.mark.skipif(
    not HAS_TVM or find_runner() is None,
    reason=f"needs {QEMU} and the runner: {INSTALL_QEMU}; {PREPARE}",
)


def module(text: str, opset: int = 20) -> Module:
    made = Module.parse(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    infer_shapes(made.model)
    return made


def generator() -> Module:
    """Images of 8 by 8, and the sizes of the input, from 16 random numbers."""
    text = """generator (float[batch,16] z) => (float[batch,3,8,8] image, int64[2] sizes)
<float[16,64] w = {W}, int64[3] shape = {4,4,4}, float[4,3,4,4] k = {K}, int64[1] first = {0},
 int64[1] one = {1}>
{
  h = MatMul (z, w)
  r = Gelu (h)
  s = Shape (z)
  b = Slice (s, first, one)
  target = Concat <axis = 0> (b, shape)
  f = Reshape (r, target)
  c = ConvTranspose <pads = [1,1,1,1], strides = [2,2]> (f, k)
  image = Tanh (c)
  sizes = Identity (s)
}"""
    random = np.random.default_rng(0)
    for name, size in (("W", 1024), ("K", 192)):
        numbers = ",".join(f"{x:.3f}" for x in random.standard_normal(size))
        text = text.replace(f"{{{name}}}", "{" + numbers + "}")
    return module(text)


def noise(batch: int) -> dict[str, np.ndarray]:
    return {"z": np.random.default_rng(1).standard_normal((batch, 16)).astype(np.float32)}


def compile_for(target: Jetson, made: Module, folder: Path, ctx: Context) -> Lowered:
    made = target.prepare(made, ctx).clone()
    ctx.target = target
    PassManager(parse(target.pipeline())).run(made, ctx)
    return target.lower(made, folder, ctx)


def error_of(target: Jetson, made: Module, folder: Path, ctx: Context | None = None) -> str:
    ctx = ctx or Context()
    with pytest.raises(TargetError) as error:
        target.lower(target.prepare(made, ctx), folder, ctx)
    assert not list(folder.iterdir())
    return str(error.value)


@needs_tvm
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "dim 'batch' has no size"),
        ({}, "dims=[batch:SIZE]"),
        ({"dims": ("batsh:2",)}, "did you mean 'batch'"),
        ({"dims": ("batch:many",)}, "the form is dims=[NAME:SIZE]"),
        ({"dims": ("batch:2",), "board": "orin"}, "unknown board 'orin'"),
    ],
)
def test_wrong_options_are_explained(
    options: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigcc.targets.jetson.cross_linker", lambda: ["true"])
    assert words in error_of(Jetson(**options), generator(), tmp_path)  # type: ignore[arg-type]


def test_dims_are_fixed_before_the_first_pass() -> None:
    made = generator()
    ctx = Context(samples=load_samples(None, made))
    fixed = Jetson(dims=("batch:2",)).prepare(made, ctx)
    assert [list(value.shape) for value in fixed.inputs if value.shape] == [[2, 16]]
    assert [list(value.shape) for value in fixed.outputs if value.shape] == [[2, 3, 8, 8], [2]]
    assert not ctx.remarks
    assert next(iter(load_samples(None, made).fitted(fixed)))["z"].shape == (2, 16)
    assert str(made.inputs[0].shape) == "[batch,16]"


def test_dims_follow_from_samples_and_keep_to_what_is_declared() -> None:
    made = Module.parse(
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        'g (float["2*th"] x, float["th + past"] z) => (float["2*th"] y, float["th + past"] n)'
        " { y = Neg (x)  n = Neg (z) }"
    )
    declare(made, {"th": Range(1, 16), "past": Range(0, 4)})
    feeds = {"x": np.ones(6, np.float32), "z": np.ones(5, np.float32)}
    ctx = Context(samples=load_samples(feeds, made))
    fixed = Jetson().prepare(made, ctx)
    assert [str(value.shape) for value in fixed.inputs] == ["[6]", "[5]"]
    with pytest.raises(TargetError, match=r"'th' may be 1 to 16, as .* exported, and not 17"):
        Jetson(dims=("th:17",)).prepare(made, ctx)


def test_open_dims_are_fixed_at_their_size_in_the_samples() -> None:
    text = """g (float[1,past] cache, float[1,"past + new"] mask, float[1,new] x) => (y)
{ y = Neg (x) }"""
    made = module(text)
    ctx = Context(samples=load_samples(None, made))
    fixed = Jetson(dims=("past:5",)).prepare(made, ctx)
    assert [list(value.shape) for value in fixed.inputs if value.shape] == [[1, 5], [1, 13], [1, 8]]
    (remark,) = ctx.remarks
    assert "'new' is fixed at 8, its size in the samples" in remark.message


@pytest.mark.parametrize(
    ("dims", "batches", "words"),
    [
        (("batch:2",), (2, 3), "'batch' is 3 in sample 1, and 2 in dims"),
        (("batch:2",), (3,), "give dims=[batch:3], or samples with a size of 2"),
        ((), (2, 3), "'batch' is 2 in sample 0, and 3 in sample 1"),
    ],
)
def test_samples_of_other_sizes_are_refused(
    dims: tuple[str, ...], batches: tuple[int, ...], words: str
) -> None:
    made = generator()
    samples = load_samples(lambda: map(noise, batches), made)
    with pytest.raises(TargetError) as error:
        Jetson(dims=dims).prepare(made, Context(samples=samples))
    assert words in str(error.value)


@needs_tvm
def test_a_build_with_dims_compares_on_inputs_of_those_sizes(tmp_path: Path) -> None:
    made = aigcc.build(generator(), "jetson(board=host,dims=[batch:2])", tmp_path / "out")
    quality = made.artifact.manifest["quality"]
    assert quality["is_lowered"] and quality["count"] == 4
    assert made.artifact.manifest["inputs"][0]["shape"] == [2, 16]
    assert str(made.original.inputs[0].shape) == "[batch,16]"


def test_what_is_missing_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert INSTALL in error_of(Jetson(), generator(), tmp_path)
    missing = [r for r in Jetson().requirements() if not r.present]
    assert all(requirement.fix for requirement in missing)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("y = QuantizeLinear (x, t)", "no kernel for QuantizeLinear"),
        ('y = Resize <mode = "linear", antialias = 1> (x, , s)', "antialias must be 0"),
        ('y = Resize <mode = "linear"> (x, , s)', "Resize by 1.3 of a size of 8"),
        ('y = Resize <mode = "linear", axes = [2, 3]> (x, , p)', "axes must be left out"),
        ("y = ReduceSum (x, i)", "its input 'i' must be a constant"),
        ("y = IsInf <detect_negative = 0> (x)", "detect_negative must be 1"),
        ("h = Cast <to = 10> (x) y = Softmax (h)", "Softmax has no float16 kernel"),
        ("y = Pow (x, i)", "Pow has no int64 kernel"),
        ("y = Softmax (x)", ""),
    ],
)
def test_what_would_fail_or_be_wrong_is_named_beforehand(node: str, words: str) -> None:
    made = module(
        f"g (float[1,2,8,8] x, int64[8] i) => (y)"
        f" <float[4] s = {{1,1,1.3,1.3}}, float[2] p = {{2,2}}, float t = {{0.1}}> {{ {node} }}"
    )
    messages = [problem.message for problem in Jetson().check(made)]
    if words:
        assert any(words in message for message in messages), messages
    else:
        assert messages == []


def test_feeds_are_checked_against_the_signature() -> None:
    signature = Signature((Input("x", "float32", (2, 3)),), ("y",))
    good = np.zeros((2, 3), np.float32)
    assert signature.arrange({"x": good})[0].shape == (2, 3)
    for feeds, words in (
        ({"x": np.zeros((1, 3), np.float32)}, r"compiled for float32\[2, 3\]"),
        ({"x": np.zeros((2, 3))}, "is float64"),
        ({}, "no value for the input 'x'"),
        ({"x": good, "z": good}, "no input 'z'"),
    ):
        with pytest.raises(TargetError, match=words):
            signature.arrange(feeds)


def elf(machine: int, words: list[int]) -> bytes:
    """A library with one executable section."""
    code = b"".join(word.to_bytes(4, "little") for word in words)
    header = bytearray(64)
    header[:4], header[18:20] = b"\x7fELF", machine.to_bytes(2, "little")
    header[40:48] = (64 + len(code)).to_bytes(8, "little")
    header[58:62] = (64).to_bytes(2, "little") + (1).to_bytes(2, "little")
    section = bytearray(64)
    section[8:16], section[24:32] = (4).to_bytes(8, "little"), (64).to_bytes(8, "little")
    section[32:40] = len(code).to_bytes(8, "little")
    return bytes(header) + code + bytes(section)


def test_instructions_are_counted_in_the_bytes(tmp_path: Path) -> None:
    # fmla v0.4s; fmla v0.4s by lane; fmla v0.8h; fcvtl v0.4s; sdot; udot by lane; nop
    words = [0x4E22CC20, 0x4FA21820, 0x4E420C20, 0x0E217820, 0x4E829420, 0x6FA2E020, 0xD503201F]
    path = tmp_path / "lib.so"
    path.write_bytes(elf(183, words))
    assert read_library(path).machine == "aarch64"
    assert read_library(path).instructions == {
        "float32 multiply-add": 2,
        "float16 multiply-add": 1,
        "float16 to float32": 1,
        "dot product": 2,
    }
    path.write_bytes(elf(62, words))
    assert (read_library(path).machine, read_library(path).instructions) == ("x86-64", {})


@needs_tvm
def test_a_program_for_this_machine_equals_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, feeds = generator(), noise(3)
    target = Jetson(board="host")
    ctx = Context(samples=load_samples(lambda: iter([feeds]), made))
    lowered = compile_for(target, made, tmp_path, ctx)
    assert set(lowered.files) == {LIBRARY, PARAMETERS, SIGNATURE}
    assert {path.name for path in tmp_path.iterdir()} == set(lowered.files)
    assert lowered.facts["kernels"] > 0
    assert any("expect 10 to 100 times" in remark.message for remark in ctx.remarks)
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    assert_equal(session.run(feeds), OrtSession(made).run(feeds), target.tolerance)

    example = tmp_path / "example.py"
    example.write_text(target.example(made, lowered.entry), "utf-8")
    np.save(tmp_path / "z.npy", feeds["z"])
    monkeypatch.setattr(sys, "argv", [str(example), f"z={tmp_path / 'z.npy'}"])
    runpy.run_path(str(example), run_name="__main__")
    assert "image (3, 3, 8, 8)" in capsys.readouterr().out
    np.save(tmp_path / "wide.npy", feeds["z"].astype(np.float64))
    np.save(tmp_path / "short.npy", feeds["z"][:1])
    for argument, words in (
        ("zz=z.npy", "there is no input 'zz'"),
        (f"z={tmp_path / 'y.npy'}", "there is no file"),
        (f"z={tmp_path / 'wide.npy'}", "is float64, and has to be float32"),
        (f"z={tmp_path / 'short.npy'}", "was compiled for (3, 16)"),
    ):
        monkeypatch.setattr(sys, "argv", [str(example), argument])
        with pytest.raises(SystemExit, match=re.escape(words)):
            runpy.run_path(str(example), run_name="__main__")


@needs_tvm
@pytest.mark.parametrize("code", [183, 62, 8])
def test_the_example_says_which_machine_runs_the_program(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generator()
    made = Jetson(dims=("batch:1",)).prepare(made, Context())
    (tmp_path / "example.py").write_text(Jetson().example(made, LIBRARY), "utf-8")
    Signature.of(made).save(tmp_path / SIGNATURE)
    (tmp_path / LIBRARY).write_bytes(bytes(18) + bytes([code, 0]))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(sys, "argv", ["example.py"])
    machines = {183: "aarch64 or arm64", 62: "x86_64 or AMD64"}.get(code, "another machine")
    with pytest.raises(SystemExit, match=f"runs on {machines}, and this is riscv64"):
        runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")


@needs_runner
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_program_for_a_board_equals_onnx_runtime_in_qemu(precision: str, tmp_path: Path) -> None:
    made, feeds = generator(), noise(2)
    target = Jetson(precision=precision, dims=("batch:2",), emulate=True)  # type: ignore[arg-type]
    lowered = compile_for(target, made, tmp_path, Context())
    assert lowered.facts["machine"] == "aarch64"
    expected = "float16 to float32" if precision == "fp16" else "float32 multiply-add"
    assert lowered.facts["instructions"][expected] > 0
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    assert_equal(session.run(feeds), OrtSession(made).run(feeds), target.tolerance)
    assert Jetson(dims=("batch:2",)).session(tmp_path, lowered.entry) is None


def assert_equal(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float
) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        wide, right = actual[name].astype(np.float64), array.astype(np.float64)
        assert np.abs(wide - right).max() <= tolerance * np.abs(right).max()


@needs_tvm
def test_parameters_are_written_in_the_form_that_tvm_reads(tmp_path: Path) -> None:
    import tvm

    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(7, np.int64),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.arange(5, dtype=np.uint8),
    ]
    types = [(array.shape, array.dtype.name) for array in arrays]
    with TensorFile(tmp_path / "ours", types) as file:
        for index in (3, 0, 4, 1, 2):
            file.write(index, arrays[index])
    tensors = {str(index): tvm.runtime.tensor(array) for index, array in enumerate(arrays)}
    tvm.runtime.save_param_dict_to_file(tensors, str(tmp_path / "theirs"))
    read = tvm.runtime.load_param_dict_from_file(str(tmp_path / "ours"))
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(read[str(index)].numpy(), array)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


@needs_tvm
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_large_weights_are_prepared_a_part_at_a_time(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from aigcc.targets.jetson import compiler, parameters

    random = np.random.default_rng(0)
    table = random.standard_normal((64, 8)).astype(np.float32)
    numbers = ", ".join(f"{x:.9g}" for x in table.ravel())
    made = module(f"""g (int64[1,5] ids) => (y, z)
<float[64,8] t = {{{numbers}}}, int64[1] a = {{1}}>
{{ e = Gather (t, ids) m = ReduceMean <keepdims = 0> (e, a) u = Transpose <perm = [1,0]> (t)
   y = MatMul (m, u) h = Exp (t) z = MatMul (h, u) }}""")
    made.save(tmp_path / "model.onnx", external=True)
    monkeypatch.setattr(parameters, "_LARGE", 256)
    monkeypatch.setattr(parameters, "_TOGETHER", limit)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (weight,) = parameters.detach_large(model, tmp_path)
    assert isinstance(weight, np.memmap)
    request = {
        "onnx": str(tmp_path / "model.onnx"),
        "library": str(tmp_path / LIBRARY),
        "parameters": str(tmp_path / PARAMETERS),
        "target": None,
        "link": native_linker(),
    }
    compiler.compile_model(request, lambda text, fraction: None)
    Signature.of(made).save(tmp_path / SIGNATURE)
    feeds = {"ids": np.array([[3, 1, 4, 1, 5]])}
    assert_equal(
        NativeSession(tmp_path).run(feeds), OrtSession(made, optimise=False).run(feeds), 1e-5
    )


@needs_tvm
def test_norms_far_from_zero_are_right(tmp_path: Path) -> None:
    made = module(
        """g (float[1,4,6,8] x) => (float[1,4,6,8] groups, float[1,4,6,8] layers)
<float[4] s = {1, 1, 1, 1}, float[4] b = {0, 0, 0, 0}, float[8] g = {1, 1, 1, 1, 1, 1, 1, 1}>
{
  groups = GroupNormalization <num_groups = 2> (x, s, b)
  layers = LayerNormalization <axis = 2> (x, g, g)
}""",
        21,
    )
    target = Jetson(board="host")
    assert {p.message for p in target.check(made)} == {
        "no kernel for GroupNormalization",
        "no kernel for LayerNormalization",
    }
    x = 10000 + np.random.default_rng(0).standard_normal((1, 4, 6, 8))
    feeds = {"x": x.astype(np.float32)}
    lowered = compile_for(target, made, tmp_path, Context())
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    wide = feeds["x"].astype(np.float64)
    for name, rows, shift in (("groups", wide.reshape(1, 2, 96), 0), ("layers", wide, 1)):
        axes = (2,) if name == "groups" else (2, 3)
        centred = rows - rows.mean(axes, keepdims=True)
        right = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5) + shift
        assert np.abs(session.run(feeds)[name] - right.reshape(wide.shape)).max() < 1e-5


@needs_tvm
def test_operators_that_tvm_lacks_are_spelt(tmp_path: Path) -> None:
    made = module(
        """g (float[1,2,5,7] x, float[4,1,3] z, float[1,8,3] w, float[1,8,2] r, float[1,24] s)
  => (up, one, last, spectrum, shape)
<int64[2] sizes = {10, 3}, int64[4] corner = {1, 2, 1, 1}, int64 step = {4}, int64 width = {8}>
{
  up = Resize <mode = "linear", axes = [2, 3], antialias = 1> (x, , , sizes)
  one = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , corner)
  rows, last, cell = LSTM <hidden_size = 2> (z, w, r)
  spectrum = STFT <onesided = 0> (s, step, , width)
  shape = Shape (x)
}"""
    )
    same_as_onnx_runtime(made, tmp_path)


@needs_tvm
def test_nan_and_infinities_are_kept(tmp_path: Path) -> None:
    made = module(
        """g (float[5,4] x) => (relu, clip, most, least, rows, where, at, elu, erf)
<int64[1] last = {1}, float low = {-1}, float high = {1}, float[4] v = {0, 1, 2, 3}>
{
  relu = Relu (x)
  clip = Clip (x, low, high)
  most = Max (x, v)
  least = Min (x, v)
  peak = ReduceMax (x, last)
  rows = Sub (x, peak)
  soft = Softmax (x)
  hidden = IsNaN (soft)
  where = Where (hidden, v, soft)
  at = ArgMax <axis = 1> (x)
  elu = Elu (x)
  erf = Erf (x)
}"""
    )
    nan, inf = np.nan, np.inf
    x = [[nan, 1, -1, 2], [inf, 1, -1, 2], [-inf, 1, -1, 2], [-inf] * 4, [0.5, -0.5, 9, -9]]
    feeds = {"x": np.array(x, np.float32)}
    right = OrtSession(made, optimise=False).run(feeds)
    target = Jetson(board="host")
    lowered = compile_for(target, made, tmp_path, Context())
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    for name, array in session.run(feeds).items():
        rows = slice(1, None) if name == "at" else slice(None)  # of NaN it may be any
        np.testing.assert_allclose(array[rows], right[name][rows], 1e-4, 1e-5, err_msg=name)


def same_as_onnx_runtime(made: Module, folder: Path) -> None:
    random = np.random.default_rng(0)
    feeds = {
        value.name or "": random.standard_normal(value.shape.numpy()).astype(np.float32)
        for value in made.inputs
        if value.shape is not None
    }
    right = OrtSession(made, optimise=False).run(feeds)
    target = Jetson(board="host")
    lowered = compile_for(target, made, folder, Context())
    session = target.session(folder, lowered.entry)
    assert session is not None
    assert_equal(session.run(feeds), right, target.tolerance)


@needs_tvm
def test_float16_is_measured_as_it_is_shipped_and_keeps_what_overflows(tmp_path: Path) -> None:
    made = module(
        """g (float[2,8] x, float[8,8] w, float[8] s) => (float[2,8] y)
<float big = {1000}>
{
  a = MatMul (x, w)
  b = Mul (a, big)
  n = RMSNormalization (b, s)
  c = Mul (b, b)
  d = MatMul (c, w)
  y = Add (d, n)
}""",
        23,
    )
    build = aigcc.build(made, "jetson(precision=fp16)", tmp_path / "out")
    said = [remark.message for remark in build.remarks]
    assert "compared by the same program, made for this machine" in said
    assert any("kept float32" in message for message in said), said
    (output,) = build.artifact.manifest["quality"]["outputs"]
    assert 1e-5 < output["relative"] < 2e-2
    feeds = next(iter(build.samples))
    assert np.isfinite(Jetson().open(build.module).run(feeds)["y"]).all()


@needs_tvm
def test_a_float16_model_is_built_where_products_are_float16(tmp_path: Path) -> None:
    made = module(
        """g (float16[1,4,6,6] x) => (float16[1,4] y, bool[1,4] large)
<float16[4,4,1,1] w = {1.0,2.0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.1,0.2,0.3,0.4,0.5},
 float16 bound = {0.5}, int64[2] axes = {2, 3}>
{
  c = Conv (x, w)
  s = Sigmoid (c)
  m = Mul (c, s)
  y = ReduceMean <keepdims = 0> (m, axes)
  large = Greater (y, bound)
}"""
    )
    (hint,) = {problem.hint for problem in Jetson().check(made)}
    assert "jetson(precision=fp16)" in hint
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float16)
    right = OrtSession(made, optimise=False).run({"x": x})
    target = Jetson(board="host", precision="fp16")
    lowered = compile_for(target, made, tmp_path, Context())
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    assert_equal(session.run({"x": x}), right, 2e-3)


@needs_tvm
@pytest.mark.parametrize(
    "call",
    [
        "Conv <pads = [1,1,1,1], group = 2> (x, k)",
        "ConvTranspose <strides = [2,2]> (x, t)",
        "Gemm <transB = 1, alpha = 0.5> (z, w, b)",
        "MatMul (x, x)",
    ],
)
def test_float16_products_have_float32_sums(call: str, tmp_path: Path) -> None:
    made = module(f"""g (float[1,4,8,8] x, float[2,8] z, float[6,2,3,3] k, float[4,6,3,3] t,
  float[12,8] w, float[12] b) => (y) {{ y = {call} }}""")
    random = np.random.default_rng(0)
    feeds = {
        value.name or "": random.standard_normal(value.shape.numpy()).astype(np.float32)
        for value in made.inputs
        if value.shape is not None
    }
    target = Jetson(board="host", precision="fp16")
    lowered = compile_for(target, made, tmp_path, Context())
    session = target.session(tmp_path, lowered.entry)
    assert session is not None
    PassManager(parse(target.pipeline())).run(made)
    assert "Cast" in [node.op_type for node in made.nodes()]
    exact = OrtSession(made, optimise=False).run(feeds)["y"]
    assert np.abs(session.run(feeds)["y"] - exact).max() <= 1e-6 * np.abs(exact).max()


@needs_tvm
def test_a_refusal_names_the_node(tmp_path: Path) -> None:
    made = module(
        "g (float[2,4] x) => (y) <float[1] s = {2}> { [odd] y = LayerNormalization (x, s) }"
    )
    text = error_of(Jetson(board="host"), made, tmp_path)
    assert "node odd (LayerNormalization)" in text


@needs_tvm
def test_the_front_end_has_every_operator_of_the_table() -> None:
    from tvm.relax.frontend.onnx import onnx_frontend

    names = {name.rpartition("::")[2] for name in Jetson().can.ops}
    assert names - {"If"} <= set(onnx_frontend._get_convert_map())


def test_a_linker_is_found_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "ziglang" in (cross_linker() or [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cross_linker() is None
