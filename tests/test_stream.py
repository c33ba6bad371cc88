"""Streams: every value of a model, bit by bit, however small the segments are."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigcc.analysis.streaming.plan import constants_of, cut, value_bytes
from aigcc.analysis.streaming.stream import Stream
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.weights import SMALL, derive
from aigcc.runtime import OrtSession

sys.path.insert(0, str(Path(__file__).parent))
from random_graphs import feeds, modules

Arrays = dict[str, np.ndarray]


def module(text: str) -> Module:
    return Module.parse(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')


def made_values(module: Module) -> list[str]:
    return [value.name for node in module.graph for value in node.outputs if value.name]


def look(module: Module, feeds: Arrays, wanted: list[str], limit: int = 1) -> tuple[Arrays, Arrays]:
    """Copies of the wanted values, and the outputs."""
    seen: Arrays = {}
    with Stream(module, wanted, limit=limit) as stream:
        outputs = stream.run(feeds, lambda name, array: seen.update({name: array.copy()}))
    return seen, outputs


def oracle(module: Module, feeds: Arrays, wanted: list[str]) -> Arrays:
    """The same values, as outputs of the whole model in one session."""
    whole = module.clone()
    outputs = {value.name for value in whole.graph.outputs}
    values = {value.name: value for node in whole.graph for value in node.outputs}
    whole.graph.outputs.extend(values[name] for name in wanted if name not in outputs)
    return OrtSession(whole, optimise=False, threads=1).run(feeds)


def assert_same(given: Arrays, expected: Arrays) -> None:
    for name, array in given.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


CHAIN = module(
    """g (float[n,8] x, float[n,8] unused) => (float[n,8] y, float[n,8] x)
  <float[8,8] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0,
    1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    0, 0, 0, 0, 1}>
{
  two = Constant <value = float {2}> ()
  a = MatMul (x, w)
  b = Neg (a)
  dead = Exp (unused)
  c = Mul (b, two)
  y = Add (c, a)
}"""
)


def chain_feeds(n: int = 2) -> Arrays:
    x = np.arange(8 * n, dtype=np.float32).reshape(n, 8)
    return {"x": x, "unused": x}


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(modules(), st.sampled_from([1, 300, 1 << 20]))
def test_every_value_is_what_one_session_computes(module: Module, limit: int) -> None:
    wanted = made_values(module)
    seen, outputs = look(module, feeds(module), wanted, limit)
    expected = oracle(module, feeds(module), wanted)
    assert set(seen) == set(wanted)
    assert_same(seen, expected)
    assert_same(outputs, expected)


def test_values_come_inputs_first_and_then_in_graph_order() -> None:
    names: list[str] = []
    with Stream(CHAIN, ["c", "two", "a", "x"], limit=1) as stream:
        outputs = stream.run(chain_feeds(), lambda name, array: names.append(name))
    assert names == ["two", "x", "a", "c"]
    assert list(outputs) == ["y", "x"]
    np.testing.assert_array_equal(outputs["y"], -chain_feeds()["x"])


def test_what_nothing_needs_does_not_run() -> None:
    seen, _ = look(CHAIN, {**chain_feeds(), "unused": np.full((2, 8), 1e9, np.float32)}, ["b"])
    assert set(seen) == {"b"}


def test_arrays_are_read_only() -> None:
    def write(name: str, array: np.ndarray) -> None:
        array[...] = 0

    with Stream(CHAIN, ["a"]) as stream, pytest.raises(ValueError, match="read-only"):
        stream.run(chain_feeds(), write)


def test_a_segment_holds_no_more_than_the_limit() -> None:
    text = "\n".join(f"v{i + 1} = Neg (v{i})" for i in range(20))
    chain = module(f"g (float[n,16] v0) => (float[n,16] v20) {{ {text} }}")
    sizes = value_bytes(chain, {"n": 4})
    assert sizes["v7"] == 256
    segments = cut(chain, constants_of(chain), made_values(chain), sizes, limit=1024)
    assert [len(segment.nodes) for segment in segments] == [4] * 5
    assert segments[1].inputs == ("v4",)
    assert segments[1].dead == ("v4", "v5", "v6", "v7")  # v8 is read by the next one
    (whole,) = cut(chain, constants_of(chain), [], sizes, limit=1024)
    assert whole.outputs == ("v20",)


def test_memory_is_that_of_a_segment_and_not_of_all() -> None:
    """One small value that stays alive keeps nothing else alive."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux")

    def anonymous() -> int:
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    steps = "\n".join(
        f"v{i + 1} = Neg (v{i})\n  s{i} = ReduceMax <keepdims = 1> (v{i})" for i in range(16)
    )
    sums = ", ".join(f"s{i}" for i in range(16))
    large = module(
        f"g (float[n] v0) => (float[n] y) {{ {steps}\n  m = Max ({sums})\n  y = Add (v16, m) }}"
    )
    wanted = made_values(large)
    size = 8 << 20
    levels: list[int] = []
    with Stream(large, wanted, limit=2 * size) as stream:
        fed = {"v0": np.ones(size // 4, np.float32)}
        stream.run(fed, lambda name, array: levels.append(anonymous()))
    assert max(levels) - levels[0] < 6 * size


def test_larger_samples_after_small_ones() -> None:
    with Stream(CHAIN, ["b"], limit=200) as stream:
        for n in (1, 7, 2):
            seen: Arrays = {}
            stream.run(chain_feeds(n), lambda name, array, to=seen: to.update(b=array.copy()))
            np.testing.assert_array_equal(seen["b"], -chain_feeds(n)["x"])


def test_threads_share_a_stream() -> None:
    def negated(n: int) -> np.ndarray:
        seen: Arrays = {}
        stream.run(chain_feeds(n), lambda name, array: seen.update({name: array.copy()}))
        return seen["b"]

    with Stream(CHAIN, ["b"], limit=1) as stream, ThreadPoolExecutor(4) as pool:
        for n, array in zip(range(1, 20), pool.map(negated, range(1, 20)), strict=True):
            np.testing.assert_array_equal(array, -chain_feeds(n)["x"])


def test_sub_graphs_read_what_earlier_segments_made() -> None:
    branching = module(
        """g (float[4] x, bool c, int64 n) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
  a = Neg (x)
  b = If (c) <
    then_branch = t () => (float[4] t1) { t0 = Mul (a, w)  t1 = Add (t0, x) },
    else_branch = e () => (float[4] e1) { e1 = Identity (a) }>
  go = Constant <value = bool {1}> ()
  y = Loop (n, go, b) <body = l (int64 i, bool k, float[4] v) => (bool k2, float[4] v2) {
    k2 = Identity (k)
    v2 = Add (v, a) }>
}"""
    )
    x = np.array([1, 2, 3, 4], np.float32)
    for c in (True, False):
        fed = {"x": x, "c": np.array(c), "n": np.array(3)}
        wanted = ["a", "b", "y"]
        assert_same(look(branching, fed, wanted)[0], oracle(branching, fed, wanted))


def test_model_local_functions() -> None:
    local = Module.parse(
        """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
g (float[4] x) => (float[4] y) { a = mine.double (x)  y = mine.double (a) }
<domain: "mine", opset_import: ["" : 21]>
double (x) => (y) { y = Add (x, x) }"""
    )
    fed = {"x": np.arange(4, dtype=np.float32)}
    seen, outputs = look(local, fed, ["a"])
    np.testing.assert_array_equal(seen["a"], 2 * fed["x"])
    np.testing.assert_array_equal(outputs["y"], 4 * fed["x"])


def weighted(weight: ir.TensorProtocol, text: str) -> Module:
    made = module(text)
    value = made.graph.initializers["w"]
    value.const_value = weight
    value.dtype, value.shape = weight.dtype, ir.Shape(weight.shape.numpy())
    return made


MATMUL = "g (float[2,32] x) => (float[2,32] y) <float w = {0}> { a = MatMul (x, w)  y = Neg (a) }"


def test_derived_weights_are_computed_once() -> None:
    calls = []

    def fn(array: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.ascontiguousarray(array.T)

    source = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    assert source.nbytes > SMALL
    weight = derive(fn, ir.tensor(source), dtype=ir.DataType.FLOAT, shape=(32, 32), name="w")
    fed = {"x": np.ones((2, 32), np.float32)}
    with Stream(weighted(weight, MATMUL), ["a"], limit=1) as stream:
        for _ in range(2):
            seen: Arrays = {}
            stream.run(fed, lambda name, array, to=seen: to.update(a=array.copy()))
            np.testing.assert_allclose(seen["a"], fed["x"] @ source.T, atol=1e-4)
    assert len(calls) == 1


@pytest.mark.parametrize("pad", range(4))
def test_weights_at_any_place_in_a_file(tmp_path: Path, pad: int) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    saved = weighted(ir.tensor(weight), MATMUL)
    saved.model.doc_string = "x" * pad
    saved.save(tmp_path / "m.onnx")
    loaded = Module.load(tmp_path / "m.onnx")
    fed = {"x": np.ones((2, 32), np.float32)}
    assert_same(look(loaded, fed, ["a"])[0], oracle(loaded, fed, ["a"]))


def test_large_weights_inside_of_sub_graphs(tmp_path: Path) -> None:
    text = """g (float[2,32] x, bool c) => (float[2,32] y) {
  y = If (c) <
    then_branch = t () => (float[2,32] t1) <float w = {0}> { t1 = MatMul (x, w) },
    else_branch = e () => (float[2,32] e1) {
      v = Constant <value = float {0}> ()
      e1 = MatMul (x, v) }>
}"""
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    made = module(text)
    (node,) = made.graph
    inner = node.attributes["then_branch"].as_graph().initializers["w"]
    inner.const_value, inner.shape = ir.tensor(weight), ir.Shape((32, 32))
    constant = node.attributes["else_branch"].as_graph()[0]
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(weight * 2))
    made.save(tmp_path / "m.onnx", external=True)
    loaded = Module.load(tmp_path / "m.onnx")
    x = np.ones((2, 32), np.float32)
    for c, factor in ((True, 1), (False, 2)):
        seen, _ = look(loaded, {"x": x, "c": np.array(c)}, ["y"])
        np.testing.assert_allclose(seen["y"], factor * (x @ weight), atol=1e-4)


def test_types_that_numpy_lacks() -> None:
    weight = np.arange(-8, 8).repeat(256).reshape(64, 64).astype(ml_dtypes.int4)
    narrow = weighted(
        ir.tensor(weight),
        """g (bfloat16[4] x) => (float[64,64] y, bfloat16[4] z) <int4 w = {0}> {
  half = Constant <value = float {0.5}> ()
  y = DequantizeLinear (w, half)
  a = Identity (x)
  z = Identity (a)
}""",
    )
    x = np.array([1, 2, 3, 4], ml_dtypes.bfloat16)
    seen, outputs = look(narrow, {"x": x}, ["x", "a", "y"])
    for array in (seen["x"], seen["a"], outputs["z"]):
        np.testing.assert_array_equal(array, x)
    np.testing.assert_array_equal(seen["y"], weight.astype(np.float32) / 2)


def test_sequences_pass_through() -> None:
    odd = module(
        """g (float[4] x) => (seq(float[2]) q, float[2] y) {
  split = Constant <value = int64 {2}> ()
  q = SplitToSequence (x, split)
  one = Constant <value = int64 {1}> ()
  y = SequenceAt (q, one)
}"""
    )
    fed = {"x": np.arange(4, dtype=np.float32)}
    seen, outputs = look(odd, fed, ["y"])
    np.testing.assert_array_equal(seen["y"], [2, 3])
    assert set(outputs) == {"y"}
    with Stream(odd, ["q"]) as stream, pytest.raises(CompileError, match="'q' is no tensor"):
        stream.run(fed, lambda name, array: None)


def test_text_inside_and_not_as_an_input() -> None:
    inside = module(
        """g (bool[2] c) => (string[2] t) {
  a = Constant <value = string[2] {"a", "b"}> ()
  b = Constant <value = string {"c"}> ()
  t = Where (c, a, b)
}"""
    )
    seen, _ = look(inside, {"c": np.array([True, False])}, ["t"])
    assert seen["t"].tolist() == ["a", "c"]
    text = module("g (string[2] s) => (string[2] t) { t = Identity (s) }")
    with pytest.raises(CompileError, match="the input 's' is text"):
        look(text, {"s": np.array(["a", "b"], object)}, ["t"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aa", "no value 'aa'.*\n.*\n.*did you mean 'a'"),
        ("w", "'w' is a weight"),
        ("nowhere", "no value 'nowhere'"),
    ],
)
def test_names_that_cannot_be_wanted(name: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        Stream(CHAIN, [name])


def test_feeds_that_do_not_fit() -> None:
    x = chain_feeds()["x"]
    with Stream(CHAIN, ["a"]) as stream:
        for bad, message in (
            ({"x": x}, "no value for the input 'unused'"),
            ({"x": x, "unused": x, "y": x}, "no input 'y'"),
            ({"x": x.astype(np.float64), "unused": x}, "takes float32, not float64"),
            ({"x": x[:, :3], "unused": x}, "ONNX Runtime"),
        ):
            with pytest.raises(CompileError, match=message):
                stream.run(bad, lambda name, array: None)


def test_the_module_stays_as_it_is_and_scratch_files_go() -> None:
    weight = derive(np.copy, ir.tensor(np.ones((32, 32), np.float32)), dtype=ir.DataType.FLOAT,
                    shape=(32, 32), name="w")  # fmt: skip
    made = weighted(weight, MATMUL)
    before = made.text()
    stream = Stream(made, ["a"])
    folder = stream._store.folder
    assert folder.is_dir()
    stream.run({"x": np.ones((2, 32), np.float32)}, lambda name, array: None)
    stream.close()
    assert not folder.exists()
    assert made.text() == before
    assert made.graph.initializers["w"].const_value is weight
