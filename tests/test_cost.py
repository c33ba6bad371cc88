"""Cost: operators, weights, zeros, operations and memory, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.analysis.cost import count_zeros, summarize
from aigcc.ir.module import Module


def module(text: str, opset: int = 23) -> Module:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    return Module.parse(header + text)


def flops(text: str, sizes: dict[str, int] | None = None) -> dict[str, int]:
    return dict(summarize(module(text), sizes).work.by_op)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "g (float[1,4,8,8] x, float[6,4,3,3] w) => (float[1,6,6,6] y) { y = Conv (x, w) }",
            {"Conv": 2 * 6 * 6 * 6 * 4 * 9},
        ),
        (
            "g (float[1,4,8,8] x, float[8,2,3,3] w) => (float[1,8,6,6] y)"
            " { y = Conv <group = 2> (x, w) }",
            {"Conv": 2 * 8 * 6 * 6 * 2 * 9},
        ),
        (
            "g (float[1,4,5,5] x, float[4,3,2,2] w) => (float[1,3,10,10] y)"
            " { y = ConvTranspose <strides = [2,2]> (x, w) }",
            {"ConvTranspose": 2 * 4 * 25 * 3 * 4},
        ),
        (
            "g (float[7,2,3] a, float[3,5] b) => (float[7,2,5] y) { y = MatMul (a, b) }",
            {"MatMul": 2 * 7 * 2 * 3 * 5},
        ),
        (
            "g (float[3,2] a, float[3,5] b) => (float[2,5] y) { y = Gemm <transA = 1> (a, b) }",
            {"Gemm": 2 * 2 * 3 * 5},
        ),
        (
            "g (float[2,3,4,8] q, float[2,3,6,8] k, float[2,3,6,8] v) => (float[2,3,4,8] y)"
            " { y = Attention (q, k, v) }",
            {"Attention": 2 * 2 * (2 * 3 * 4 * 6 * 8)},
        ),
        (
            "g (float[2,3] a, float[3,4] b) => (float[2,4] y)"
            ' { y = Einsum <equation = "ij,jk->ik"> (a, b) }',
            {"Einsum": 2 * 2 * 3 * 4},
        ),
        (
            "g (float[5,2,3] x, float[1,16,3] w, float[1,16,4] r) => (float[5,1,2,4] y)"
            " { y = LSTM <hidden_size = 4> (x, w, r) }",
            {"LSTM": 2 * 5 * 2 * (16 * 3 + 16 * 4)},
        ),
        (
            "g (float[2,3] x) => (float[3,2] y) { a = Relu (x) b = Softmax (a) y = Transpose (b) }",
            {"Softmax": 30, "Relu": 6},
        ),
        ("g (float[2,3] x) => (float[2,1] y) { y = ReduceMax (x) }", {"ReduceMax": 6}),
    ],
)
def test_operations(text: str, wanted: dict[str, int]) -> None:
    assert flops(text) == wanted


def test_symbolic_dims_take_the_sizes_that_are_given() -> None:
    text = """g (float[batch,n,4] x) => (float[batch,"n + n",4] y) {
  a = Relu (x)
  y = Concat <axis = 1> (a, x)
}"""
    assert flops(text, {"batch": 2, "n": 5}) == {"Relu": 40}
    made = summarize(module(text))
    assert made.sizes["batch"] == 1
    assert made.work.unknown == {}


def test_what_is_unknown_is_said() -> None:
    text = """g (float[2] x) => (float[2] y) { a = com.microsoft.Inverse (x) y = Relu (a) }"""
    assert summarize(module(text)).work.unknown["com.microsoft::Inverse"] == 1


def test_bodies_of_control_flow() -> None:
    text = """g (bool c, float[4] x) => (float[4] y, float[4] z)
<int64 n = {3}> {
  y = If (c) <
    then_branch = t () => (float[4] a) { a = Relu (x) },
    else_branch = e () => (float[4] b) { b1 = Relu (x) b = Relu (b1) }
  >
  z = Loop (n, c, x) <body = body (int64 i, bool go, float[4] s) => (bool on, float[4] r) {
    on = Identity (go)
    r = Tanh (s)
  }>
}"""
    made = summarize(module(text))
    assert made.work.by_op == {"Relu": 8, "Tanh": 12}
    assert made.ops["Relu"] == 3
    text = text.replace("{3}", f"{{{2**62}}}")
    made = summarize(module(text))
    assert (made.work.by_op["Tanh"], made.work.unknown) == (4, {"Loop": 1})


def test_a_function_counts_for_each_call() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
g (float[4] x) => (float[4] y) { a = my.twice (x) y = my.twice (a) }
<domain: "my", opset_import: ["" : 21]>
twice (x) => (y) { a = Relu (x) y = Relu (a) }"""
    assert summarize(Module.parse(text)).work.by_op == {"Relu": 16}


def test_weights_by_dtype() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] z)
<float[4] w = {0, 1, -0.0, 2}, float16[2] h = {0, 1}, int64[1] shape = {4}> {
  a = Add (x, w)
  b = Mul (a, w)
  c = Constant <value = float[4] {1, 1, 1, 1}> ()
  d = Add (b, c)
  y = Reshape (d, shape)
  e = Cast <to = 1> (h)
  two = Constant <value = int64[1] {2}> ()
  z = Tile (e, two)
}"""
    made = summarize(module(text))
    rows = {w.dtype: (w.tensors, w.elements, w.bytes, w.zeros) for w in made.weights}
    assert rows == {"float": (2, 8, 32, 2), "float16": (1, 2, 4, 1), "int64": (2, 2, 16, 0)}
    assert made.parameters == 10
    assert made.weights[0].sparsity == 0.25
    assert made.opset == 23


@pytest.mark.parametrize(
    "dtype",
    [
        ir.DataType.FLOAT,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT2,
        ir.DataType.BOOL,
    ],
)
@pytest.mark.parametrize("count", [1, 6, 7, 9])
def test_zeros(dtype: ir.DataType, count: int) -> None:
    array = (np.arange(count) % 2).astype(dtype.numpy())
    assert count_zeros(ir.Tensor(array, dtype=dtype)) == (count + 1) // 2


def test_peak_frees_after_the_last_use_and_shares_reshapes() -> None:
    text = """g (float[10] x) => (float[10] y) <int64[2] s = {2, 5}, int64[1] f = {10}> {
  [one] a = Relu (x)
  [two] b = Reshape (a, s)
  [three] c = Relu (b)
  [four] d = Relu (c)
  [five] y = Reshape (d, f)
}"""
    peak = summarize(module(text)).peak
    # x, a (shared with b) and c: three times ten floats
    assert (peak.bytes, peak.node, peak.unknown) == (120, "three", 0)


def test_peak_counts_what_a_sub_graph_holds_and_keeps_what_it_reads() -> None:
    text = """g (bool c, float[10] x) => (float[10] y) {
  [early] a = Relu (x)
  [late] y = If (c) <
    then_branch = t () => (float[10] p) { q = Relu (a) p = Relu (q) },
    else_branch = e () => (float[10] p2) { p2 = Relu (a) }
  >
}"""
    peak = summarize(module(text)).peak
    # c, x, a and y outside; q and p inside
    assert (peak.bytes, peak.node) == (1 + 5 * 40, "late")


def test_the_module_is_left_alone() -> None:
    made = module("g (float[n,4] x) => (float[n,4] y) { y = Relu (x) }")
    before = made.text()
    summarize(made, {"n": 3})
    assert made.text() == before
