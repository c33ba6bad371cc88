"""What OpenVINO alone would get wrong is right on cpu: for fixed sizes and for any."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets.cpu import INSTALL, Cpu
from aigcc.targets.cpu.session import OpenVinoSession

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"needs OpenVINO: {INSTALL}"
)


def module(text: str, opset: int = 18, ir_version: int = 10) -> Module:
    return Module.parse(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\ng {text}')


def prepared(made: Module) -> Module:
    """A module as a build for cpu would lower it."""
    after = made.clone()
    PassManager(parse(Cpu().pipeline())).run(after, Context(target=Cpu()))
    assert Cpu().check(after) == []
    return after


def check(made: Module, tmp_path: Path, *samples: dict[str, Any], wanted: Any = None) -> None:
    """A program for any sizes, and one for each of the samples', give what ONNX Runtime gives."""
    after = prepared(made)
    after.save(tmp_path / "model.onnx", external=True)
    reference = None if wanted is not None else OrtSession(made, optimise=False)
    properties = Cpu().properties(1)
    anywhere = OpenVinoSession(tmp_path / "model.onnx", properties, specialise=False)
    for feeds in samples:
        feeds = {name: np.asarray(array) for name, array in feeds.items()}
        expected = wanted if reference is None else reference.run(feeds)
        here = OpenVinoSession(tmp_path / "model.onnx", properties)
        for session in (anywhere, here):
            given = session.run(feeds)
            assert list(given) == list(expected)
            for name, array in expected.items():
                assert given[name].shape == array.shape
                assert given[name].dtype == array.dtype
                np.testing.assert_allclose(given[name], array, 1e-4, 1e-5, err_msg=name)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def listed(array: np.ndarray) -> str:
    return ",".join(f"{number:.3f}" for number in array.ravel())


def test_an_operator_of_another_runtime_is_refused_with_a_way_out() -> None:
    made = Module.parse("""<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[4,1,2] x, int8[1,2,8] w, int8[1,2,8] r, float[1,8] s, uint8[1,8] z) => (y)
{ y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 2> (x, w, r, , , , , , s, z, s, z) }""")
    (problem,) = Cpu().check(made)
    assert problem.message == "no kernel for com.microsoft::DynamicQuantizeLSTM"
    assert "--target mobile" in problem.hint


@pytest.mark.parametrize("sizes", ["1,4,6,5", "N,4,6,5", "N,4,H,W"])
@pytest.mark.parametrize(
    "attributes",
    [
        'auto_pad = "SAME_UPPER", strides = [3, 2]',
        'auto_pad = "SAME_LOWER", strides = [2, 3], dilations = [2, 1]',
        'auto_pad = "SAME_LOWER", strides = [2, 2], output_padding = [1, 1]',
        'auto_pad = "SAME_UPPER", strides = [2, 2], group = 2',
        'auto_pad = "VALID", strides = [2, 2]',
        "output_shape = [12, 9], strides = [2, 2]",
        'output_shape = [12, 10], strides = [2, 2], auto_pad = "SAME_UPPER"',
        "output_shape = [11, 9], strides = [2, 2], output_padding = [1, 1], group = 2",
        "output_shape = [14, 12], strides = [2, 2]",
    ],
)
def test_transposed_convolutions_are_padded_as_asked(
    attributes: str, sizes: str, tmp_path: Path
) -> None:
    weight, bias = normal(4, 2, 3, 3), normal(4 if "group = 2" in attributes else 2)
    made = module(
        f"""(float[{sizes}] x) => (float[A,B,C,D] y)
<float[4,2,3,3] w = {{{listed(weight)}}}, float[{bias.size}] b = {{{listed(bias)}}}>
{{ y = ConvTranspose <{attributes}> (x, w, b) }}"""
    )
    others = [{"x": normal(2, 4, 7, 3)}] if sizes == "N,4,H,W" else []
    if "output_shape" in attributes:
        others = []
    check(made, tmp_path, {"x": normal(1, 4, 6, 5)}, *others)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 3])
def test_transposed_convolutions_of_any_rank(rank: int, kernel: int, tmp_path: Path) -> None:
    weight = normal(2, 1, *[kernel] * rank)
    dims = ",".join(["N", "2", *"DHW"[:rank]])
    made = module(
        f"""(float[{dims}] x) => (y)
<float[{",".join(map(str, weight.shape))}] w = {{{listed(weight)}}}>
{{ y = ConvTranspose <auto_pad = "SAME_UPPER", strides = [{",".join("3" * rank)}]> (x, w) }}"""
    )
    check(made, tmp_path, {"x": normal(1, 2, *range(4, 4 + rank))})


@pytest.mark.parametrize("sizes", ["1,4,6,5", "N,4,H,W"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]",
        "kernel_shape = [1, 1], strides = [2, 3]",
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], dilations = [2, 2]",
    ],
)
def test_windows_that_begin_in_the_padding_are_none(
    attributes: str, sizes: str, tmp_path: Path
) -> None:
    made = module(
        f"""(float[{sizes}] x) => (float[A,B,C,D] y, int64[A,B,C,D] i)
{{ y, i = MaxPool <{attributes}, ceil_mode = 1> (x) }}"""
    )
    check(made, tmp_path, {"x": normal(1, 4, 6, 5)})


@pytest.mark.parametrize("largest", [0, 1])
def test_the_first_of_equal_numbers_is_taken(largest: int, tmp_path: Path) -> None:
    made = module(
        f"""(float[N,S] x) => (float[N,K] v, int64[N,K] i) <int64[1] k = {{7}}>
{{ v, i = TopK <largest = {largest}> (x, k) }}"""
    )
    check(made, tmp_path, {"x": np.round(normal(3, 50))})


def test_topk_inside_of_a_branch(tmp_path: Path) -> None:
    made = module(
        """(bool c, float[N,S] x) => (int64[N,K] y) <int64[1] k = {7}>
{
  y = If (c) <
    then_branch = t () => (int64[N,K] p) { v, p = TopK (x, k) },
    else_branch = e () => (int64[N,K] q) { u, q = TopK <largest = 0> (x, k) }
  >
}"""
    )
    x = np.round(normal(3, 50))
    check(made, tmp_path, {"c": True, "x": x}, {"c": False, "x": x})


@pytest.mark.parametrize("limit", [0.5, 0.4999])
def test_boxes_that_overlap_by_the_limit_stay(limit: float, tmp_path: Path) -> None:
    made = module(
        f"""(float[1,3,4] b, float[1,1,3] s) => (int64[n,3] y)
<int64[1] m = {{3}}, float[1] t = {{{limit}}}> {{ y = NonMaxSuppression (b, s, m, t) }}"""
    )
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.1, 1, 1.1]]], np.float32)
    check(made, tmp_path, {"b": boxes, "s": np.array([[[0.9, 0.75, 0.6]]], np.float32)})


@pytest.mark.parametrize(("op", "end"), [("ReduceMax", -np.inf), ("ReduceMin", np.inf)])
def test_infinity_is_the_end_of_all_numbers(op: str, end: float, tmp_path: Path) -> None:
    made = module(
        f"(float[N,S] x) => (float[N,1] y) <int64[1] a = {{1}}> {{ y = {op} (x, a) }}", 20
    )
    masked = np.array([[end, end], [1, end], [3e38, -3e38]], np.float32)
    check(made, tmp_path, {"x": masked}, {"x": np.zeros((2, 0), np.float32)})


def test_an_input_that_is_always_empty_is_one(tmp_path: Path) -> None:
    made = module("(float[2] x, float[0] z) => (float[2] y) { y = Neg (x) }")
    check(made, tmp_path, {"x": normal(2), "z": np.zeros(0, np.float32)})


GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def layer(kind: str, lengths: str, attributes: str = "", states: str = "") -> Module:
    """A recurrent layer in two directions over inputs of 3 numbers, with biases."""
    gates = 2 * GATES[kind]
    w, r, b = normal(2, gates, 3), normal(2, gates, 2, seed=1), normal(2, 2 * gates, seed=2)
    outputs = ", ".join(
        ["y", "last", "cell"][: 3 if kind == "LSTM" and "clip" not in attributes else 2]
    )
    given = ["float[S,B,3] x", *(["int32[B] l"] if lengths == "l" else [])]
    given += [f"float[2,B,2] {name}" for name in states.split()]
    return module(
        f"""({", ".join(given)}) => ({outputs})
<float[2,{gates},3] w = {{{listed(w)}}}, float[2,{gates},2] r = {{{listed(r)}}},
 float[2,{2 * gates}] b = {{{listed(b)}}}, int32[3] k = {{4,1,2}}>
{{
  {outputs} = {kind} <hidden_size = 2, direction = "bidirectional" {attributes}>
    ({", ".join(["x", "w", "r", "b", lengths, *states.split()])})
}}""",
        17,
    )


@pytest.mark.parametrize(
    ("kind", "lengths", "attributes", "states"),
    [
        ("GRU", "k", "", ""),
        ("GRU", "l", "", "h"),
        ("GRU", "k", ", linear_before_reset = 1, clip = 0.3", ""),
        ("GRU", "l", ', activations = ["Sigmoid", "Relu", "Sigmoid", "Tanh"]', ""),
        ("GRU", "", "", "h"),
        ("LSTM", "k", "", ""),
        ("LSTM", "l", "", "h c"),
        ("LSTM", "k", ", clip = 0.3", ""),
        ("LSTM", "l", ', activations = ["Sigmoid","Relu","Tanh","Sigmoid","Tanh","Relu"]', ""),
        ("RNN", "k", "", ""),
        ("RNN", "l", ', activations = ["Relu", "Tanh"]', "h"),
    ],
)
def test_sequences_end_where_their_lengths_say(
    kind: str, lengths: str, attributes: str, states: str, tmp_path: Path
) -> None:
    made = layer(kind, lengths, attributes, states)
    samples = []
    for steps in (6, 4):
        feeds = {"x": normal(steps, 3, 3, seed=steps), "l": np.array([steps, 0, 2], np.int32)}
        feeds |= {name: normal(2, 3, 2, seed=3) for name in states.split()}
        samples.append({str(value.name): feeds[str(value.name)] for value in made.inputs})
    check(made, tmp_path, *samples)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("LSTM <hidden_size = 2> (x, w, r, , , , , p)", "first 7 inputs"),
        ("LSTM <hidden_size = 2, input_forget = 1> (x, w, r)", "input_forget must be 0"),
        (
            'LSTM <hidden_size = 2, activations = ["Sigmoid", "Elu", "Tanh"]> (x, w, r)',
            "Relu, Sigmoid or Tanh",
        ),
        ("LSTM <hidden_size = 2, clip = 0.5> (x, w, r, , l)", "'l' must be left out"),
    ],
)
def test_cells_that_openvino_lacks_are_refused(node: str, words: str) -> None:
    made = module(
        f"""(float[S,B,3] x, float[1,8,3] w, float[1,8,2] r, int32[B] l, float[1,6] p) => (y, h, c)
{{ y, h, c = {node} }}"""
    )
    PassManager(parse(Cpu().pipeline())).run(made, Context(target=Cpu()))
    assert any(words in problem.message for problem in Cpu().check(made))


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_batch_may_come_first(kind: str, tmp_path: Path) -> None:
    gates = GATES[kind]
    text = f"""(float[P,Q,3] x, float[P,1,2] h, int32[B] l) => (y, last)
<float[1,{2 * gates},3] w = {{{listed(normal(1, 2 * gates, 3))}}},
 float[1,{2 * gates},2] r = {{{listed(normal(1, 2 * gates, 2, seed=1))}}}>
{{ y, last = {kind} <hidden_size = 2, layout = 1> (x, w, r, , l, h) }}"""
    made = module(text)
    x, h, lengths = normal(3, 5, 3), normal(3, 1, 2, seed=1), np.array([5, 2, 4], np.int32)
    usual = module(
        text.replace("layout = 1", "layout = 0").replace("float[P,1,2] h", "float[1,P,2] h")
    )
    feeds = {"x": x.transpose(1, 0, 2), "h": h.transpose(1, 0, 2), "l": lengths}
    wanted = OrtSession(usual, optimise=False).run(feeds)
    wanted = {"y": wanted["y"].transpose(2, 0, 1, 3), "last": wanted["last"].transpose(1, 0, 2)}
    check(made, tmp_path, {"x": x, "h": h, "l": lengths}, wanted=wanted)


def refused(made: Module) -> str:
    """What a build for cpu would say that it cannot run."""
    after = made.clone()
    PassManager(parse(Cpu().pipeline())).run(after, Context(target=Cpu()))
    return "; ".join(f"{problem.node}: {problem.message}" for problem in Cpu().check(after))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Neg", "Abs"])
def test_small_integers_wrap(op: str, dtype: str, tmp_path: Path) -> None:
    pairs = op not in ("Neg", "Abs")
    if dtype == "uint8" and not pairs:
        return
    ends = np.iinfo(dtype)
    x = np.array([ends.max, ends.max - 1, 100, 7, ends.min + (op == "Div")], dtype)
    made = module(
        f"({dtype}[N] x, {dtype}[N] z) => ({dtype}[N] y) {{ y = {op} (x{', z' if pairs else ''}) }}"
    )
    feeds = {"x": x, "z": np.array([3, 100, 100, 2, 1], dtype)}
    check(made, tmp_path, feeds)


def test_quotients_of_small_integers_inside_of_a_branch(tmp_path: Path) -> None:
    made = module(
        """(bool c, uint8[4] x, uint8[4] z) => (uint8[4] y)
{
  y = If (c) < then_branch = t () => (uint8[4] p) { p = Div (x, z) },
               else_branch = e () => (uint8[4] q) { q = Max (x, z) } >
}"""
    )
    x, z = np.array([7, 9, 11, 100], np.uint8), np.array([2, 4, 3, 7], np.uint8)
    check(made, tmp_path, {"c": True, "x": x, "z": z})


@pytest.mark.parametrize("dtype", ["float", "int8"])
def test_tiles_whose_counts_are_computed(dtype: str, tmp_path: Path) -> None:
    made = module(f"({dtype}[A,B,C,D] x, int64[4] r) => ({dtype}[E,F,G,H] y) {{ y = Tile (x, r) }}")
    x = (10 * normal(2, 3, 4, 5)).astype("float32" if dtype == "float" else dtype)
    counts = [[7, 6, 4, 2], [1, 1, 1, 1], [2, 1, 3, 1]]
    check(made, tmp_path, *({"x": x, "r": np.array(count)} for count in counts))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("y, z, u = Split <num_outputs = 3, axis = 1> (x)", [(2, 7), (2, 6), (1, 5)]),
        ("y, z, u = Split <axis = 1> (x, s)", [(2, 7), (2, 9)]),
    ],
)
def test_splits_whose_parts_are_computed(
    text: str, parts: list[tuple[int, int]], tmp_path: Path
) -> None:
    given = ", int64[3] s" if "s)" in text else ""
    made = module(
        f"(float[A,B] x{given}) => (float[A,C] y, float[A,D] z, float[A,E] u) {{ {text} }}"
    )
    samples = []
    for shape in parts:
        sizes = {"s": np.array([2, 1, shape[1] - 3])} if given else {}
        samples.append({"x": normal(*shape), **sizes})
    check(made, tmp_path, *samples)


@pytest.mark.parametrize("sizes", ["1,2,6,5", "N,2,H,W"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]",
        "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 0, 0], dilations = [2, 2]",
    ],
)
def test_padding_that_counts_in_averages(attributes: str, sizes: str, tmp_path: Path) -> None:
    made = module(
        f"""(float[{sizes}] x) => (float[A,B,C,D] y)
{{ y = AveragePool <{attributes}, ceil_mode = 1, count_include_pad = 1> (x) }}""",
        19,
    )
    check(made, tmp_path, {"x": normal(1, 2, 6, 5)})


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_integers_of_half_a_byte_come_and_go(dtype: str, tmp_path: Path) -> None:
    made = module(
        f"""({dtype}[N,M] x) => ({dtype}[N,M] y, float[N,M] z)
{{ z = Cast <to = 1> (x)  h = Abs (z)  y = Cast <to = {22 if dtype == "int4" else 21}> (h) }}""",
        21,
    )
    low = -7 if dtype == "int4" else 0
    x = np.arange(low, low + 15).reshape(3, 5)
    own = getattr(ml_dtypes, dtype)
    wanted = {"y": np.abs(x).astype(own), "z": x.astype(np.float32)}
    check(made, tmp_path, {"x": x.astype(own)}, wanted=wanted)


IMAGE = "float[1,2,6,6] x"


@pytest.mark.parametrize(
    ("inputs", "nodes", "words"),
    [
        ("double[2] x", "y = Cast <to = 1> (x)", "input 'x' is a double"),
        ("float[2] x", "y = Cast <to = 11> (x)", "output 'y' is a double"),
        ("uint32[2] x", "y = Max (x, x)", "no uint32 kernel"),
        ("uint64[2] x", "y = Identity (x)", "no uint64 kernel"),
        ("int32[2,2] x", "y = MatMul (x, x)", "no int32 kernel"),
        ("uint8[2] x", 'y = BitShift <direction = "LEFT"> (x, x)', "y: BitShift: direction must"),
        ("float[2] x", "a = Cast <to = 17> (x) y = Cast <to = 1> (a)", "saturate must be 0"),
        ("int64[2] x", "y = Add (x, k)", "y: Add: its input 'k' needs more than 32 bits"),
        (
            "int64[2] x",
            "a = Concat <axis = 0> (x, k) y = Add (a, a)",
            "Concat: its input 'k' needs more than 32 bits",
        ),
        (
            "float v, int64[n] s",
            "x = Expand (v, s) y = MaxPool <kernel_shape = [2, 2]> (x)",
            "MaxPool: the number of dims of 'x' must be known",
        ),
        ("float[2] x, float v", "y = Pad (x, p, v)", "y: Pad: its input 'v' must be a constant"),
        ("float[1,1,2,2,2] x, float[1,1,1,1,3] g", "y = GridSample (x, g)", "must have 4 dims"),
        ("float[2,3] x, int64[n] a", "y = ReduceSum <keepdims = 0> (x, a)", "'a' must be a"),
        ("float[2,3] x, int64[1] a", "y = Unsqueeze (x, a)", "y: Unsqueeze: its input 'a' must"),
        (
            IMAGE,
            'y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2], auto_pad = "SAME_UPPER"> (x)',
            "y: MaxPool: auto_pad has no one meaning",
        ),
        (
            IMAGE,
            'y = LpPool <kernel_shape = [1, 1], strides = [2, 2], auto_pad = "SAME_LOWER"> (x)',
            "y: LpPool: auto_pad has no one meaning",
        ),
    ],
)
def test_what_openvino_gets_wrong_is_refused(inputs: str, nodes: str, words: str) -> None:
    made = module(
        f"""({inputs}) => (y) <int64[1] k = {{1099511627776}}, int64[2] p = {{1, 1}}>
{{ {nodes} }}""",
        21,
    )
    assert words in refused(made)


def test_a_body_that_reads_what_others_compute_is_refused() -> None:
    made = module(
        """(float[3] s, float[T,3] x, float[3] k) => (float[3] f, float[T,3] y)
{
  f, y = Scan <num_scan_inputs = 1,
    body = b (float[3] a, float[3] i) => (float[3] c, float[3] d) { c = Add (a, i) d = Mul (c, k) }
  > (s, x)
}"""
    )
    assert "its body reads 'k' from outside" in refused(made)


def test_branches_of_several_ranks_are_named() -> None:
    made = module(
        """(bool c, float[1,4,6] x) => (y) <float[2,4,3] w = {WEIGHT}, int64[1] a = {0}>
{
  z = If (c) < then_branch = t () => (float[4,6] p) { p = Squeeze (x, a) },
               else_branch = e () => (float[1,4,6] q) { q = Identity (x) } >
  y = Conv (z, w)
}""".replace("WEIGHT", listed(normal(2, 4, 3)))
    )
    assert "If: its branches make 2 and 3 dims of 'z'" in refused(made)
