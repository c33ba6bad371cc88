"""What ONNX Runtime refuses of attention, recurrent layers and ranges, in forms that it takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def for_mobile(module: Module) -> Context:
    ctx = Context(target=make_target("mobile"))
    PassManager(parse(make_target("mobile").pipeline())).run(module, ctx)
    assert make_target("mobile").check(module) == []
    return ctx


def as_the_standard_says(module: Module, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto: onnx.ModelProto = ir.to_proto(module.model)
    made: list[np.ndarray] = ReferenceEvaluator(proto).run(None, feeds)
    return made


WINDOWS = ["left_window_size = 1", "left_window_size = 1, right_window_size = 1"]
WINDOWS += ["right_window_size = 0", "left_window_size = 2, is_causal = 1"]
WINDOWS += ["left_window_size = -1, right_window_size = -1"]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mask", ["", "bool[5,5] m", "float[1,1,5,5] m"])
@pytest.mark.parametrize("tokens", ["5", "T"])
def test_attention_in_a_window(window: str, mask: str, tokens: str) -> None:
    given = f", {mask.replace('5', tokens)}" if mask else ""
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 25]>
g (float[1,2,{tokens},4] q, float[1,2,{tokens},4] k{given}) => (y)
{{ y = Attention <{window}> (q, k, k{", m" if mask else ""}) }}""")
    feeds = {"q": draw(1, 2, 5, 4), "k": draw(1, 2, 5, 4)}
    if mask:
        shown = np.tri(5, dtype=bool) | np.eye(5, k=1, dtype=bool)
        feeds["m"] = shown if "bool" in mask else draw(1, 1, 5, 5)
    (expected,) = as_the_standard_says(module, feeds)
    for_mobile(module)
    (given_,) = OrtSession(module).run(feeds).values()
    np.testing.assert_allclose(given_, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("past", ["3", "P"])
def test_a_window_over_a_cache(past: str) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 25]>
g (float[1,2,8] q, float[1,2,8] k, float[1,2,{past},4] a, float[1,2,{past},4] b) => (y, pk, pv)
{{
  y, pk, pv = Attention <q_num_heads = 2, kv_num_heads = 2, left_window_size = 2> (q, k, k, , a, b)
}}""")
    feeds = {"q": draw(1, 2, 8), "k": draw(1, 2, 8), "a": draw(1, 2, 3, 4), "b": draw(1, 2, 3, 4)}
    expected = as_the_standard_says(module, feeds)
    for_mobile(module)
    for given, wanted in zip(OrtSession(module).run(feeds).values(), expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)


def test_a_window_of_given_lengths_is_refused_with_a_sentence() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 25]>
g (float[1,2,5,4] q, int64[1] n) => (y)
{ y = Attention <left_window_size = 1> (q, q, q, , , , n) }""")
    ctx = Context(target=make_target("mobile"))
    PassManager(parse(make_target("mobile").pipeline())).run(module, ctx)
    (problem,) = make_target("mobile").check(module)
    assert "left_window_size must be left out" in problem.message
    assert any("lengths of the sequences" in remark.message for remark in ctx.remarks)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layers_with_the_batch_first(kind: str, direction: str) -> None:
    ways, gates = (2 if direction[0] == "b" else 1), GATES[kind]
    outputs = "y, h, c" if kind == "LSTM" else "y, h"

    def text(layout: int, x: str, start: str) -> Module:
        return Module.parse(f"""<ir_version: 8, opset_import: ["" : 14]>
g (float[{x}] x, float[{ways},{gates * 4},3] w, float[{ways},{gates * 4},4] r, float[{start}] s)
  => ({outputs})
{{
  {outputs} = {kind} <hidden_size = 4, layout = {layout}, direction = "{direction}">
    (x, w, r, , , s)
}}""")

    feeds = {"w": draw(ways, gates * 4, 3), "r": draw(ways, gates * 4, 4)}
    x, start = draw(5, 2, 3), draw(ways, 2, 4)
    plain = text(0, "5,2,3", f"{ways},2,4")
    expected = OrtSession(plain).run({**feeds, "x": x, "s": start})
    module = text(1, "2,5,3", f"2,{ways},4")
    for_mobile(module)
    turned = {**feeds, "x": x.swapaxes(0, 1).copy(), "s": start.swapaxes(0, 1).copy()}
    given = OrtSession(module).run(turned)
    np.testing.assert_allclose(given["y"], expected["y"].transpose(2, 0, 1, 3), rtol=1e-5)
    np.testing.assert_allclose(given["h"], expected["h"].swapaxes(0, 1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["float", "int64"])
def test_ranges_of_tensors_with_one_element(kind: str) -> None:
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : 17]>
g ({kind}[1] a, {kind}[1] b, {kind} c) => (y) {{ y = Range (a, b, c) }}""")
    for_mobile(module)
    feeds = {"a": np.array([1]), "b": np.array([7]), "c": np.array(2)}
    dtype = np.float32 if kind == "float" else np.int64
    given = OrtSession(module).run({name: array.astype(dtype) for name, array in feeds.items()})
    np.testing.assert_array_equal(given["y"], [1, 3, 5])


def test_the_ir_version_is_one_that_runtimes_read() -> None:
    module = Module.parse("""<ir_version: 14, opset_import: ["" : 28]>
g (float[2] x) => (y) { y = Relu (x) }""")
    for_mobile(module)
    OrtSession(module).run({"x": np.ones(2, np.float32)})
