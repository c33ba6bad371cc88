"""The mobile target: what it refuses, what it writes, and that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.tools.reduced_build_config_parser import parse_config

from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.passes.legal import PREFERENCES
from aigcc.passes.weights_fp16 import WeightsFp16
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets.mobile import CONFIG, TYPED_CONFIG, Mobile
from aigcc.targets.mobile.make_capabilities import Registry, make_table, to_toml
from aigcc.targets.mobile.operators import required_operators, to_config


def module(text: str, opset: int = 21) -> Module:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "my" : 1]>\n'
    return Module.parse(header + text)


def perceptron() -> Module:
    """Tokens through a table and a product; the table is large enough to be stored as float16."""
    text = """mlp (int64[batch,n] input_ids, float[batch,1] scale) => (float[batch,n,8] y)
<float[100,16] table = {TABLE}, float[16,8] w = {W}, float[8] b = {1,2,3,4,5,6,7,8}>
{
  h = Gather (table, input_ids)
  m = MatMul (h, w)
  a = Add (m, b)
  [act] s = Sigmoid (a)
  r = Mul (a, s)
  axes = Constant <value = int64[1] {2}> ()
  f = Unsqueeze (scale, axes)
  y = Mul (r, f)
}"""
    random = np.random.default_rng(0)
    for name, size in (("TABLE", 1600), ("W", 128)):
        text = text.replace(name, ",".join(f"{x:.4f}" for x in random.standard_normal(size)))
    return module(text)


def messages(made: Module, target: Mobile | None = None) -> list[str]:
    return [f"{p.node}: {p.message}" for p in (target or Mobile()).check(made)]


def test_the_table_is_what_the_installed_runtime_has() -> None:
    path = Path(sys.modules[Mobile.__module__].__file__ or "").with_name("capabilities.toml")
    text = path.read_text("utf-8")
    if f'"{onnxruntime.__version__}"' not in text:
        pytest.skip("the table is of another version of ONNX Runtime")
    assert to_toml(make_table(Registry())) == text


def test_what_runs_is_not_refused() -> None:
    assert messages(perceptron()) == []


@pytest.mark.parametrize(
    ("text", "opset", "problem"),
    [
        ("g (float[2] x) => (float[2] y) { [n] y = my.Op (x) }", 21, "n: no kernel for my::Op"),
        ("g (bool[2] x) => (bool[2] y) { [n] y = Where (x, x, x) }", 21, "n: Where has no bool"),
        (
            "g (bfloat16[1,1,3,3] x) => (bfloat16[1,1,1,1] y) { [n] y = Conv (x, x) }",
            22,
            "n: Conv has no bfloat16 kernel",
        ),
        (
            "g (double[1,1,3,3] x) => (double[1,1,3,3] y) <float[4] s = {1,1,1,1}>"
            " { [n] y = Resize (x, , s) }",
            21,
            "n: Resize has no double kernel",
        ),
        (
            "g (float[2] x) => (float[2] y) { [n] y = RandomNormalLike (x) }",
            22,
            "n: no kernel for RandomNormalLike of opset 22, only of from 7 to 21",
        ),
        (
            "g (bool c) => (float[2] y) { y = If (c) <"
            " then_branch = t () => (float[2] a) { [n] a = my.Op (c) },"
            " else_branch = e () => (float[2] b) { [n2] b = my.Op (c) }> }",
            21,
            "n2: no kernel for my::Op",
        ),
    ],
)
def test_what_does_not_run_is_refused(text: str, opset: int, problem: str) -> None:
    found = messages(module(text, opset))
    assert any(problem in message for message in found), found
    with pytest.raises(CompileError):
        OrtSession(module(text, opset))


def test_an_opset_that_is_too_new_names_the_pass() -> None:
    made = module("g (float[2] x) => (float[2] y) { y = Relu (x) }", 28)
    (problem,) = Mobile().check(made)
    assert problem.hint.startswith("run the pass convert-opset(version=26)")


@pytest.mark.parametrize(
    "text",
    [
        "g (float16[1,1,3,3] x) => (float16[1,1,1,1] y) { y = Conv (x, x) }",
        "g (float16[1,1,3,3] x) => (float16[1,1,3,3] y) <float[4] s = {1,1,1,1}>"
        " { y = Resize (x, , s) }",
        "g (bool[2] c, float16[2] x) => (float16[2] y) { y = Where (c, x, x) }",
        "g (float16[2,3] x, float16[3] b) => (float16[2,3] y)"
        " { a = Softmax (x) d = LeakyRelu (a) e = Sigmoid (d) y = ReduceSum (e) }",
        "g (float[4] x) => (float[4] y) { y = Swish (x) }",
        "g (float[2,4,3] x, float[4] s) => (float[2,4,3] y)"
        " { y = GroupNormalization <num_groups = 2> (x, s, s) }",
        "g (int4[4] x, float s) => (float[4] y) { y = DequantizeLinear (x, s) }",
        "g (float[2,8] x) => (float[2,8] y) { y = com.microsoft.QuickGelu (x) }",
    ],
)
def test_what_the_runtime_converts_or_expands_is_not_refused(text: str) -> None:
    made = module(text, 24)
    assert messages(made) == []
    OrtSession(made)


def test_ort_files_have_limits() -> None:
    assert "fp16 would be undone" in messages(perceptron(), Mobile(format="ort", weights="fp16"))[0]
    assert "inside" in messages(perceptron(), Mobile(format="ort", external=True))[0]
    large = perceptron()
    table = large.graph.initializers["table"]
    table.const_value = ir.LazyTensor(
        lambda: pytest.fail("nothing may be read"),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([1 << 25, 16]),
        name="table",
    )
    assert any("a .ort file ends at 2.15 GB" in m for m in messages(large, Mobile(format="ort")))


@pytest.mark.parametrize(
    ("target", "files"),
    [
        (Mobile(), {"model.onnx", CONFIG}),
        (Mobile(external=True), {"model.onnx", "model.onnx.data", CONFIG}),
        (Mobile(weights="fp16"), {"model.onnx", CONFIG}),
        (Mobile(format="ort"), {"model.ort", CONFIG, TYPED_CONFIG}),
    ],
    ids=str,
)
def test_artifacts_run(tmp_path: Path, target: Mobile, files: set[str]) -> None:
    original = perceptron()
    made = original.clone()
    if target.weights == "fp16":
        PassManager([WeightsFp16()]).run(made)
    lowered = target.lower(made, tmp_path, Context())
    assert set(lowered.files) == {path.name for path in tmp_path.iterdir()} == files
    assert lowered.entry in files
    assert ("float16" in lowered.facts["weights"]) == (target.weights == "fp16")

    feeds = next(iter(load_samples(None, original)))
    wanted = OrtSession(original, optimise=False).run(feeds)["y"]
    outputs = target.session(tmp_path, lowered.entry).run(feeds)
    error = np.abs(outputs["y"] - wanted).max() / np.abs(wanted).max()
    assert error <= (1e-3 if target.weights == "fp16" else 1e-5)

    (tmp_path / "example.py").write_text(target.example(made, lowered.entry), "utf-8")
    printed = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "y tensor(float) (1, 8, 8)" in printed
    assert printed.endswith(" ms\n")


def test_required_operators_hold_what_is_fused_on_loading(tmp_path: Path) -> None:
    lowered = Mobile().lower(perceptron(), tmp_path, Context())
    required, _ = parse_config(str(tmp_path / CONFIG), False)
    assert required["com.microsoft"] == {1: {"QuickGelu"}}
    assert "Sigmoid" in required["ai.onnx"][13]
    assert "com.microsoft::QuickGelu" in lowered.facts["operators"]


def test_ort_files_say_which_types_they_need(tmp_path: Path) -> None:
    Mobile(format="ort").lower(perceptron(), tmp_path, Context())
    required, types = parse_config(str(tmp_path / TYPED_CONFIG), True)
    assert required == parse_config(str(tmp_path / CONFIG), False)[0]
    assert types.is_typed_registration_needed("ai.onnx", "MatMul", "float")
    assert not types.is_typed_registration_needed("ai.onnx", "MatMul", "double")
    assert str(tmp_path) not in (tmp_path / TYPED_CONFIG).read_text("utf-8")


@pytest.mark.parametrize("target", [Mobile(), Mobile(format="ort")], ids=str)
def test_two_builds_are_equal_but_for_what_the_runtime_writes(
    tmp_path: Path, target: Mobile
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        target.lower(perceptron(), folder, Context())
    for path in folders[0].iterdir():
        if path.suffix != ".ort":
            assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name


def test_operators_inside_of_functions_and_sub_graphs() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
g (bool c, float[2] x) => (float[2] y) {
  a = my.twice (x)
  y = If (c) <
    then_branch = t () => (float[2] p) { p = Tanh (a) },
    else_branch = e () => (float[2] q) { q = Identity (a) }
  >
}
<domain: "my", opset_import: ["" : 13]>
twice (x) => (y) { two = Constant <value = float {2}> () y = Mul (x, two) }"""
    config = to_config(required_operators(Module.parse(text)))
    assert config == "ai.onnx;13;Mul,Tanh\nai.onnx;21;Identity,If\n"


def test_a_refusal_of_the_runtime_names_the_node(tmp_path: Path) -> None:
    bad = module("g (bool[2] x) => (bool[2] y) { [culprit] y = Where (x, x, x) }")
    with pytest.raises(CompileError, match="culprit"):
        Mobile(format="ort").lower(bad, tmp_path, Context())


def test_the_example_names_its_dims_and_takes_files(tmp_path: Path) -> None:
    made = module(
        """g (bfloat16[batch,3] x, float["2*batch"] z, bool[items] m, float[B,N] w)
=> (bfloat16[batch,3] y, bool[items] k) { y = Identity (x) k = Identity (m) }"""
    )
    Mobile().lower(made, tmp_path, Context())
    program = Mobile().example(made, "model.onnx")
    assert "batch = 1\n" in program
    (tmp_path / "example.py").write_text(program, "utf-8")
    np.save(tmp_path / "m.npy", np.ones(5, bool))
    command = [sys.executable, "example.py", "m=m.npy"]
    printed = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[:2] == ["y tensor(bfloat16) [1, 3]", "k tensor(bool) [5]"]
    np.save(tmp_path / "numbers.npy", np.ones(5, np.int64))
    for argument, words in (
        ("mm=m.npy", "there is no input 'mm'; the inputs are x, z, m, w"),
        ("m=n.npy", "there is no file 'n.npy'"),
        ("m=numbers.npy", "input 'm' is int64, and has to be bool"),
    ):
        done = subprocess.run(
            [*command[:2], argument], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.startswith(words)


def test_what_the_table_prefers_is_known_to_legalize() -> None:
    for name, options in Mobile().can.facts["prefer"].items():
        assert PREFERENCES[name](**options).name == name


def test_requirements_and_options() -> None:
    assert all(requirement.present for requirement in Mobile().requirements())
    assert Mobile(weights="fp16").pipeline().endswith(",weights-fp16")
    assert Mobile().tolerance < Mobile(weights="fp16").tolerance
