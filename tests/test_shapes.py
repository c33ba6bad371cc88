"""Shape inference: symbolic dims, sub-graphs, functions, ONNX Runtime's operators, huge models."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.shapes.dims import UNKNOWN, ceil_div, dim_text, floor_div, parse_dim, to_dims
from aigcc.ir.shapes.inference import Dropped, infer_node, infer_shapes
from aigcc.ir.shapes.rules import STANDARD
from aigcc.ir.shapes.site import Site
from aigcc.ir.shapes.values import Values

IMPORTS = '"" : 21, "com.microsoft" : 1, "local" : 1, "my.own" : 1'


def parse(text: str, imports: str = IMPORTS) -> ir.Model:
    return ir.from_onnx_text(f"<ir_version: 10, opset_import: [{imports}]>\n{text}")


def shape_of(model: ir.Model, name: str) -> str:
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name == name:
                return f"{value.type or '?'}{value.shape if value.shape is not None else '[?]'}"
    raise KeyError(name)


def inferred(inputs: str, nodes: str) -> str:
    """The type of value y after inference; nothing else is declared."""
    model = parse(f"main ({inputs}) => (y) {{ {nodes} }}")
    infer_shapes(model)
    return shape_of(model, "y")


# Inputs and nodes, with the type of y that follows.
SYMBOLIC = {
    "reshape to a computed shape": (
        "float[B,S,768] x",
        """s = Shape (x) zero = Constant <value_ints = [0]> ()
           b = Gather (s, zero) rest = Constant <value_ints = [-1, 12, 64]> ()
           shape = Concat <axis = 0> (b, rest) y = Reshape (x, shape)""",
        "FLOAT[B,S,12,64]",
    ),
    "merge two axes": (
        "float[B,S,768] x",
        "shape = Constant <value_ints = [-1, 768]> () y = Reshape (x, shape)",
        "FLOAT[B*S,768]",
    ),
    "divide what was merged": (
        "float[B,H,W,C] x",
        """flat = Constant <value_ints = [-1]> () f = Reshape (x, flat) s = Shape (x)
           i = Constant <value_ints = [0, 1, 2]> () front = Gather (s, i)
           shape = Concat <axis = 0> (front, flat) y = Reshape (f, shape)""",
        "FLOAT[B,H,W,C]",
    ),
    "torch's expand with -1": (
        "float[B,1,S] x",
        """shape = Constant <value_ints = [-1, 4, -1]> () s = Shape (x)
           n = Shape (shape) ones = ConstantOfShape <value = int64[1] {1}> (n)
           minus = Constant <value_int = -1> () neg = Mul (ones, minus)
           same = Equal (shape, neg) wanted = Where (same, s, shape) y = Expand (x, wanted)""",
        "FLOAT[B,4,S]",
    ),
    "convolution that keeps the size": (
        "float[B,4,H,W] x, float[8,4,3,3] w",
        "y = Conv <pads = [1,1,1,1]> (x, w)",
        "FLOAT[B,8,H,W]",
    ),
    "convolution that halves the size": (
        "float[B,4,H,64] x, float[8,4,3,3] w",
        "y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)",
        "FLOAT[B,8,floor(H/2 - 1/2) + 1,32]",
    ),
    "transposed convolution": (
        "float[B,8,H,W] x, float[8,4,4,4] w",
        "y = ConvTranspose <pads = [1,1,1,1], strides = [2,2]> (x, w)",
        "FLOAT[B,4,2*H,2*W]",
    ),
    "upsampling by two": (
        "float[B,8,H,W] x",
        "k = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () y = Resize (x, , k)",
        "FLOAT[B,8,2*H,2*W]",
    ),
    "resize to the size of another": (
        "float[B,8,H,W] x, float[B,4,P,Q] z",
        """xs = Shape <end = 2> (x) zs = Shape <start = 2> (z)
           sizes = Concat <axis = 0> (xs, zs) y = Resize (x, , , sizes)""",
        "FLOAT[B,8,P,Q]",
    ),
    "the last token": (
        "float[B,S,64] x",
        """last = Constant <value_ints = [-1]> ()
           far = Constant <value_ints = [9223372036854775807]> ()
           axis = Constant <value_ints = [1]> () y = Slice (x, last, far, axis)""",
        "FLOAT[B,1,64]",
    ),
    "a cache that grows": (
        "float[B,4,past,16] k, float[B,4,S,16] n",
        "y = Concat <axis = 2> (k, n)",
        "FLOAT[B,4,S + past,16]",
    ),
    "positions after a cache": (
        "float[B,4,past,16] k, int64[B,S] ids",
        """ks = Shape (k) is = Shape (ids)
           two = Constant <value_int = 2> () one = Constant <value_int = 1> ()
           p = Gather (ks, two) s = Gather (is, one) end = Add (p, s) y = Range (p, end, one)""",
        "INT64[S]",
    ),
    "halves": (
        "float[B,S,64] x",
        "y, z = Split <axis = 1, num_outputs = 2> (x)",
        "FLOAT[B,-floor(-S/2),64]",
    ),
    "flatten": ("float[B,C,H,W] x", "y = Flatten (x)", "FLOAT[B,C*H*W]"),
    "tile": (
        "float[B,S] x",
        "n = Constant <value_ints = [2, 3]> () y = Tile (x, n)",
        "FLOAT[2*B,3*S]",
    ),
    "pad": (
        "float[B,S] x",
        "n = Constant <value_ints = [0, 1, 0, 2]> () y = Pad (x, n)",
        "FLOAT[B,S + 3]",
    ),
    "a size rounded through floats": (
        "float[B,4,H,W] x",
        """s = Shape <start = 2> (x) f = Cast <to = 1> (s) half = Constant <value_float = 0.5> ()
           scaled = Mul (f, half) low = Floor (scaled) whole = Cast <to = 7> (low)
           front = Shape <end = 2> (x) sizes = Concat <axis = 0> (front, whole)
           y = Resize (x, , , sizes)""",
        "FLOAT[B,4,floor(H/2),floor(W/2)]",
    ),
    "what depends on data keeps its rank": (
        "float[B,S] x",
        "i = NonZero (x) y = Transpose (i)",
        "INT64[None,2]",
    ),
    "a computed constant": (
        "float[6,4] x",
        """s = Shape (x) n = ReduceProd <keepdims = 1> (s) y = Reshape (x, n)""",
        "FLOAT[24]",
    ),
}


@pytest.mark.parametrize("case", SYMBOLIC)
def test_symbolic_dims(case: str) -> None:
    inputs, nodes, expected = SYMBOLIC[case]
    assert inferred(inputs, nodes) == expected


def test_equal_dims_in_other_words_are_equal() -> None:
    model = parse("main (float[B,N] x, float[B,M] z) => (y) { y = Add (x, z) }")
    x, z = model.graph.inputs
    x.shape, z.shape = ir.Shape(["B", "past + S"]), ir.Shape(["B", "S + past"])
    infer_shapes(model)
    assert shape_of(model, "y") == "FLOAT[B,S + past]"


# What a value declares, and what it says after inference makes it float[B,8].
DECLARED = {
    "nothing": ("y", "FLOAT[B,8]"),
    "a rank": ("float[?,?] y", "FLOAT[B,8]"),
    "another name of the same dim": ("float[batch,8] y", "FLOAT[batch,8]"),
    "a name where the size is known": ("float[B,width] y", "FLOAT[B,8]"),
    "a name that says nothing": ("float[None,8] y", "FLOAT[B,8]"),
    "the name of another input's dim": ("float[C,8] y", "FLOAT[B,8]"),
    "more than follows": ("float[4,8] y", "FLOAT[B,8]"),
    "another size": ("float[B,9] y", "FLOAT[B,8]"),
    "another rank": ("float[B] y", "FLOAT[B,8]"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_a_node_makes_counts_more_than_what_is_declared(case: str) -> None:
    output, expected = DECLARED[case]
    model = parse(f"main (float[B,8] x, float[C] other) => ({output}) {{ y = Relu (x) }}")
    found = infer_shapes(model)
    assert shape_of(model, "y") == expected
    assert [type(each) for each in found] == [Dropped] * (case in ("another size", "another rank"))


def test_a_declaration_counts_where_nothing_is_inferred() -> None:
    model = parse("""
        main (float[B,8] x, float[2,8] c) => (float[n,8] y, float[n,8] z, float[B,4] w, s) {
          y = my.own.Thing (x)
          z = my.own.Thing (c)
          w = my.own.Thing (x)
          s = Add (y, y)
        }""")
    for node in model.graph:
        infer_node(node, 21)
    infer_shapes(model)
    assert [shape_of(model, name) for name in "yzw"] == ["FLOAT[n,8]", "FLOAT[n,8]", "FLOAT[B,4]"]


def test_a_name_for_two_dims_is_kept_for_the_first() -> None:
    model = parse("""
        main (float[A,8] x, float[B,8] y) => (float[T,8] v, float[T,8] w, float[T] z, float[T] u) {
          v = Neg (x)
          w = Neg (y)
          m = NonZero (y)
          flat = Constant <value_ints = [-1]> ()
          u = Reshape (v, flat)
          zero = Constant <value_int = 0> ()
          rows = Gather (m, zero)
          z = Cast <to = 1> (rows)
        }""")
    infer_shapes(model)
    assert [shape_of(model, name) for name in "vwzu"] == [
        "FLOAT[T,8]",
        "FLOAT[B,8]",
        "FLOAT[None]",
        "FLOAT[8*T]",
    ]


def test_a_false_shape_is_dropped_with_a_remark() -> None:
    model = parse("""
        main (bool c, float[2,8] x) => (float[3,s] y) {
          y = If (c) <
            then_branch = yes () => (float[1] a) { b = Neg (x) a = Neg (b) },
            else_branch = no () => (float[2,9] d) { d = Relu (x) }>
        }""")
    found = infer_shapes(model)
    assert [shape_of(model, name) for name in "bady"] == ["FLOAT[2,8]"] * 4
    assert [str(each) for each in found] == [
        "graph 'yes', the Neg that makes 'a': value 'a' is declared [1], but Neg makes [2,8]",
        "graph 'no', the Relu that makes 'd': value 'd' is declared [2,9], but Relu makes [2,8]",
        "graph 'main', the If that makes 'y': value 'y' is declared [3,s], but If makes [2,8]",
    ]


def test_the_shape_of_a_fresh_node_may_not_be_false() -> None:
    model = parse("main (float[B,8] x) => (float[B,9] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match=r"value 'y' is declared .*, but Relu makes") as info:
        infer_node(model.graph[0], 21)
    assert info.value.at == "graph 'main', the Relu that makes 'y'"


def test_a_false_type_is_an_error() -> None:
    model = parse("main (float[B,8] x) => (int64[B,8] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match=r"value 'y' is declared .*, but Relu makes") as info:
        infer_shapes(model)
    assert info.value.at == "graph 'main', the Relu that makes 'y'"


@pytest.mark.parametrize("name", ["None", "unk", "unk__12", "unknown", "dynamic", "DYN_3", "Any"])
def test_names_that_say_nothing_are_not_one_dim(name: str) -> None:
    model = parse(f"""
        main (float[{name},8] a, float[{name},8] b) => (float[{name},8] y) {{
          y = Concat <axis = 0> (a, b)
        }}""")
    infer_shapes(model)
    assert [str(value.shape) for value in model.graph.inputs] == ["[a_dim_0,8]", "[b_dim_0,8]"]
    assert shape_of(model, "y") == "FLOAT[a_dim_0 + b_dim_0,8]"


@pytest.mark.parametrize("name", ["N", "batch", "s0", "S", "E", "I", "lambda", "nonempty", "dim_0"])
def test_names_that_say_something_are_one_dim(name: str) -> None:
    model = parse(f"main (float[{name},8] a, float[{name},8] b) => (y) {{ y = Add (a, b) }}")
    infer_shapes(model)
    assert shape_of(model, "y") == f"FLOAT[{name},8]"


def test_inputs_that_contradict_each_other_are_an_error() -> None:
    model = parse("main (float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul (x, w) }")
    with pytest.raises(ModelError, match="MatMul does not accept its inputs") as info:
        infer_shapes(model)
    assert info.value.what.endswith("Incompatible dimensions for matrix multiplication")
    assert info.value.hint == "its inputs are x: FLOAT[2,3], w: FLOAT[4,5]"


def test_a_node_that_a_rule_cannot_read_is_an_error() -> None:
    text = "main (float[B,S,8] q) => (y) { y = com.microsoft.MultiHeadAttention (q, q, q) }"
    with pytest.raises(ModelError, match="MultiHeadAttention does not accept its inputs"):
        infer_shapes(parse(text))


def test_it_says_where_it_stopped_and_not_what_follows() -> None:
    model = parse("""
        main (float[2] x) => (float z) {
          a = my.own.Thing (x)
          b = Relu (a)
          z = my.own.Other (b)
        }""")
    (stop,) = infer_shapes(model)
    assert stop.node.op_type == "Thing"
    assert str(stop) == "graph 'main', the Thing that makes 'a': nothing is known of my.own:Thing"


def test_only_missing_leaves_the_rest_alone() -> None:
    model = parse("main (float[B,8] x) => (float[B,8] z) { y = Relu (x) z = Neg (y) }")
    infer_shapes(model)
    first, second = model.graph
    first.outputs[0].shape = ir.Shape(["other", 8])
    assert infer_shapes(model, only_missing=True) == []
    second.outputs[0].shape = None
    infer_shapes(model, only_missing=True)
    assert shape_of(model, "y") == "FLOAT[other,8]"
    assert shape_of(model, "z") == "FLOAT[other,8]"


def test_branches_are_inferred_and_what_they_share_is_the_result() -> None:
    model = parse("""
        main (bool c, float[B,8] x) => (y) {
          y = If (c) <
            then_branch = yes () => (a) { d = Relu (x) a = Concat <axis = 0> (d, d) },
            else_branch = no () => (b) { b = Neg (x) }>
        }""")
    infer_shapes(model)
    assert shape_of(model, "a") == "FLOAT[2*B,8]"
    assert shape_of(model, "b") == "FLOAT[B,8]"
    assert shape_of(model, "y") == "FLOAT[None,8]"
    (choice,) = model.graph
    choice.outputs[0].dtype = ir.DataType.FLOAT16
    assert shape_of(model, "a") == "FLOAT[2*B,8]"


def test_a_loop_keeps_what_no_round_changes() -> None:
    model = parse("""
        main (int64 n, bool c, float[B,8] x, float[1,8] grow) => (y, g, all) {
          y, g, all = Loop (n, c, x, grow) <
            body = round (int64 i, bool go, v, h) => (on, w, k, w2) {
              on = Identity (go)
              w = Relu (v)
              k = Concat <axis = 0> (h, h)
              w2 = Identity (w)
            }>
        }""")
    assert infer_shapes(model) == []
    assert shape_of(model, "y") == "FLOAT[B,8]"
    assert shape_of(model, "g") == "FLOAT[None,8]"
    assert shape_of(model, "all") == "FLOAT[None,B,8]"
    assert shape_of(model, "w") == "FLOAT[B,8]"
    assert shape_of(model, "k") == "FLOAT[None,8]"
    assert [len(value.uses()) for value in model.graph.inputs] == [1, 1, 1, 1]


def test_a_scan_walks_along_its_axis() -> None:
    model = parse("""
        main (float[B,8] s, float[B,T,8] x) => (last, all) {
          last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = step (h, e) => (k, o) { k = Add (h, e) o = Relu (k) }> (s, x)
        }""")
    assert infer_shapes(model) == []
    assert shape_of(model, "last") == "FLOAT[B,8]"
    assert shape_of(model, "all") == "FLOAT[B,T,8]"


def test_a_scan_of_opset_8_has_batches() -> None:
    model = parse(
        """
        main (float[B,8] s, float[B,T,8] x) => (last, all) {
          last, all = Scan <num_scan_inputs = 1,
            body = step (h, e) => (k, o) { k = Add (h, e) o = Concat <axis = 0> (k, k) }> ("", s, x)
        }""",
        '"" : 8',
    )
    assert infer_shapes(model) == []
    assert (shape_of(model, "k"), shape_of(model, "o")) == ("FLOAT[8]", "FLOAT[16]")
    assert shape_of(model, "last") == "FLOAT[B,8]"
    assert shape_of(model, "all") == "FLOAT[B,T,16]"


def test_a_map_over_a_sequence_gives_sequences() -> None:
    model = parse("""
        main (seq(float[N,4]) xs, float[4] w) => (ys, sizes) {
          k = Neg (w)
          ys, sizes = SequenceMap <body = f (x, v) => (y, n) {
            s = Add (x, v)
            y = Mul (s, k)
            n = Shape (x)
          }> (xs, w)
        }""")
    assert infer_shapes(model) == []
    assert (shape_of(model, "y"), shape_of(model, "n")) == ("FLOAT[None,4]", "INT64[2]")
    ys, sizes = model.graph.outputs
    assert (str(ys.type), str(ys.shape)) == ("Sequence(Tensor(FLOAT))", "[None,4]")
    assert (str(sizes.type), str(sizes.shape)) == ("Sequence(Tensor(INT64))", "[2]")


def test_graphs_of_an_unknown_operator_are_inferred() -> None:
    model = Module.parse("""<ir_version: 10, opset_import: ["" : 21, "my.own" : 1]>
        main (float[3] x) => (float[3] y) {
          y = my.own.Switch <cases: graphs = [a () => (k) { k = Relu (x) }]> (x)
        }""").model
    infer_shapes(model)
    assert shape_of(model, "k") == "FLOAT[3]"


def test_functions_are_inferred_for_each_call() -> None:
    model = parse("""
        main (float[B,8] x, float[3,4] z) => (y, q) {
          y = local.swap <axes = [1, 0]> (x)
          q = local.swap <axes = [0, 1]> (z)
        }
        <domain: "local", opset_import: ["" : 21]>
        swap <axes> (v) => (w) { t = Relu (v) w = Transpose <perm: ints = @axes> (t) }""")
    assert infer_shapes(model) == []
    assert shape_of(model, "y") == "FLOAT[8,B]"
    assert shape_of(model, "q") == "FLOAT[3,4]"
    (function,) = model.functions.values()
    relu, _ = function
    assert str(relu.outputs[0].shape) == "[None,None]"
    assert relu.outputs[0].dtype == ir.DataType.FLOAT


def test_functions_that_call_each_other_twice_are_inferred_once_for_each_type() -> None:
    functions = "".join(
        f"""<domain: "local", opset_import: ["" : 21, "local" : 1]>
        f{i} (v) => (w) {{ u = local.f{i + 1} (v) w = local.f{i + 1} (u) }}"""
        for i in range(40)
    )
    model = parse(f"""
        main (float[B,8] x, float16[3] z) => (y, q) {{ y = local.f0 (x) q = local.f0 (z) }}
        {functions}
        <domain: "local", opset_import: ["" : 21]> f40 (v) => (w) {{ w = Neg (v) }}""")
    assert infer_shapes(model) == []
    assert (shape_of(model, "y"), shape_of(model, "q")) == ("FLOAT[B,8]", "FLOAT16[3]")


def test_functions_called_in_too_many_ways_are_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aigcc.ir.shapes.inference._MOST_CALLS", 1)
    model = parse("""
        main (float[2] x, float[3] z) => (y, q) { y = local.f (x) q = local.f (z) }
        <domain: "local", opset_import: ["" : 21]> f (v) => (w) { w = Neg (v) }""")
    (left,) = infer_shapes(model)
    assert left.reason == "functions are called in too many ways"
    assert shape_of(model, "y") == "FLOAT[2]"


def test_a_stop_in_a_function_names_its_own_node() -> None:
    model = parse("""
        main (float[2] x) => (float y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 21, "my.own" : 1]>
        f (v) => (w) { w = my.own.Thing (v) }""")
    (function,) = model.functions.values()
    stops = infer_shapes(model)
    assert [stop.node for stop in stops] == [function[0]]


def test_one_fresh_node() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 8]))
    shape = ir.Value(name="s", const_value=ir.tensor([-1, 2, 4]))
    shape.type, shape.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    node = ir.Node("", "Reshape", [x, shape])
    infer_node(node, 21)
    assert str(node.outputs[0].type) == "FLOAT"
    assert str(node.outputs[0].shape) == "[B,2,4]"


def forbidden() -> ir.TensorProtocol:
    raise AssertionError("the weight was read")


def test_a_model_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    rows, columns = 30_000, 20_000
    path = tmp_path / "weights.bin"
    path.touch()
    with path.open("r+b") as file:
        # A sparse file: it has a length and takes no room.
        file.truncate(rows * columns * 4)
    dims, single = ir.Shape([rows, columns]), ir.DataType.FLOAT
    weights = [
        ir.ExternalTensor(path.name, 0, None, single, shape=dims, name="w0", base_dir=tmp_path),
        ir.LazyTensor(forbidden, dtype=single, shape=dims, name="w1"),
    ]
    model = parse(f"main (float[B,{rows}] x) => (y) {{ h = Relu (x) y = Relu (h) }}")
    for node, weight in zip(list(model.graph), weights, strict=True):
        value = ir.Value(name=weight.name, const_value=weight)
        model.graph.initializers.add(value)
        product = ir.Node("", "MatMul", [node.outputs[0], value], name=f"product_{weight.name}")
        model.graph.insert_after(node, product)
    assert infer_shapes(model) == []
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert str(products[0].outputs[0].shape) == f"[B,{columns}]"
    assert weights[0].raw is None
    path.unlink()


def test_large_constants_are_not_serialised() -> None:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", forbidden_tensor())])
    infer_node(node, 21)
    assert str(node.outputs[0].shape) == "[5,7]"


def forbidden_tensor() -> ir.LazyTensor:
    return ir.LazyTensor(forbidden, dtype=ir.DataType.FLOAT, shape=ir.Shape([5, 7]), name="w")


# Operators of ONNX Runtime: what it computes has the types that we infer.
CONTRIB = {
    "BiasGelu": ("float[2,4] x, float[4] b", "y = com.microsoft.BiasGelu (x, b)"),
    "FastGelu": ("float[2,4] x", "y = com.microsoft.FastGelu (x)"),
    "Gelu": ("float[2,4] x", "y = com.microsoft.Gelu (x)"),
    "QuickGelu": ("float[2,4] x", "y = com.microsoft.QuickGelu (x)"),
    "SkipLayerNormalization": (
        "float[2,3,4] x, float[2,3,4] s, float[4] g, float[4] b",
        "y, , , sum = com.microsoft.SkipLayerNormalization (x, s, g, b)",
    ),
    "SkipSimplifiedLayerNormalization": (
        "float[2,3,4] x, float[2,3,4] s, float[4] g",
        "y, , , sum = com.microsoft.SkipSimplifiedLayerNormalization (x, s, g)",
    ),
    "SimplifiedLayerNormalization": (
        "float[2,3,4] x, float[4] g",
        "y, inverse = SimplifiedLayerNormalization <axis = -1> (x, g)",
    ),
    "FusedMatMul": (
        "float[5,2,3] a, float[5,4,3] b",
        "y = com.microsoft.FusedMatMul <transB = 1> (a, b)",
    ),
    "FusedMatMul of batches": (
        "float[3,5,2] a, float[5,3,4] b",
        "y = com.microsoft.FusedMatMul <transBatchA = 1, transA = 1> (a, b)",
    ),
    "FusedConv": (
        "float[1,3,8,8] x, float[4,3,3,3] w",
        'y = com.microsoft.FusedConv <activation = "Relu", strides = [2,2]> (x, w)',
    ),
    "FusedGemm": (
        "float[3,2] a, float[3,4] b",
        'y = com.microsoft.FusedGemm <activation = "Relu", transA = 1> (a, b)',
    ),
    "MatMulNBits": (
        "float[2,3,32] a, uint8[6,1,16] b, float[6] s",
        "y = com.microsoft.MatMulNBits <K = 32, N = 6, bits = 4, block_size = 32> (a, b, s)",
    ),
    "GatherBlockQuantized": (
        "uint8[6,16] w, int64[2,3] i, float[6,1] s",
        "y = com.microsoft.GatherBlockQuantized <block_size = 32, quantize_axis = 1> (w, i, s)",
    ),
    "RotaryEmbedding": (
        "float[2,4,3,8] x, int64[2,3] p, float[16,4] c, float[16,4] s",
        "y = com.microsoft.RotaryEmbedding (x, p, c, s)",
    ),
    "EmbedLayerNormalization": (
        "int32[2,3] ids, int32[2,3] seg, float[9,4] w, float[9,4] p, float[2,4] t, "
        "float[4] g, float[4] b",
        "y, mask = com.microsoft.EmbedLayerNormalization (ids, seg, w, p, t, g, b)",
    ),
    "Attention": (
        "float[2,3,8] x, float[8,24] w, float[24] b, float[2,2,2,5,4] past",
        "y, present = com.microsoft.Attention <num_heads = 2> (x, w, b, , past)",
    ),
    "MultiHeadAttention": (
        "float[2,3,8] q, float[2,5,8] k, float[2,5,12] v",
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)",
    ),
    "MultiHeadAttention with a cache": (
        "float[2,3,8] q, float[2,3,8] k, float[2,3,8] v, float[2,2,5,4] pk, float[2,2,5,4] pv",
        "y, nk, nv = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, , , , pk, pv)",
    ),
    "GroupQueryAttention": (
        "float[1,3,32] q, float[1,3,16] k, float[1,3,16] v, int32[1] lengths, int32 total",
        "y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> "
        "(q, k, v, , , lengths, total)",
    ),
    "QLinearAdd": (
        "uint8[2,4] a, float s, uint8 z, uint8[4] b",
        "y = com.microsoft.QLinearAdd (a, s, z, b, s, z, s, z)",
    ),
    "QLinearSigmoid": (
        "uint8[2,4] x, float s, uint8 z",
        "y = com.microsoft.QLinearSigmoid (x, s, z, s, z)",
    ),
    "QLinearConcat": (
        "uint8[2,4] a, uint8[2,3] b, float s, uint8 z",
        "y = com.microsoft.QLinearConcat <axis = 1> (s, z, a, s, z, b, s, z)",
    ),
    "QLinearGlobalAveragePool": (
        "uint8[1,3,4,4] x, float s, uint8 z",
        "y = com.microsoft.QLinearGlobalAveragePool (x, s, z, s, z)",
    ),
    "QLinearAveragePool": (
        "uint8[1,3,6,6] x, float s, uint8 z",
        "y = com.microsoft.QLinearAveragePool <kernel_shape = [2,2], strides = [2,2]> (x,s,z,s,z)",
    ),
    "QGemm": (
        "uint8[2,3] a, uint8[3,4] b, float s, uint8 z",
        "y = com.microsoft.QGemm (a, s, z, b, s, z)",
    ),
    "DynamicQuantizeMatMul": (
        "float[2,3] a, uint8[3,4] b, float s",
        "y = com.microsoft.DynamicQuantizeMatMul (a, b, s)",
    ),
    "MatMulIntegerToFloat": (
        "uint8[2,3] a, uint8[3,4] b, float s",
        "y = com.microsoft.MatMulIntegerToFloat (a, b, s, s)",
    ),
}


@pytest.mark.parametrize("case", CONTRIB)
def test_operators_of_onnx_runtime(case: str) -> None:
    inputs, nodes = CONTRIB[case]
    names = nodes.split(" = ")[0].split(",")
    outputs = ", ".join(name.strip() for name in names if name.strip())
    model = parse(f"main ({inputs}) => ({outputs}) {{ {nodes} }}")
    assert infer_shapes(model) == []
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {value.name: feed_for(value) for value in model.graph.inputs}
    for value, array in zip(model.graph.outputs, session.run(None, feeds), strict=True):
        assert value.dtype is not None and value.dtype.numpy() == array.dtype
        assert is_instance_of(array.shape, value.shape)


def feed_for(value: ir.Value) -> np.ndarray:
    assert value.dtype is not None and value.shape is not None
    feeds = {"lengths": np.array([2]), "total": np.array(3)}
    array = feeds.get(value.name or "", np.ones(value.shape.numpy()))
    return array.astype(value.dtype.numpy())


def is_instance_of(actual: tuple[int, ...], shape: ir.Shape | None) -> bool:
    if shape is None or len(shape) != len(actual):
        return False
    pairs = zip(shape, actual, strict=True)
    return all(not isinstance(dim, int) or dim == size for dim, size in pairs)


# ONNX's own operator tests, with every dim of the inputs made symbolic.


def operator_tests() -> Iterator[tuple[str, onnx.ModelProto, list[np.ndarray], list[np.ndarray]]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if case.name.endswith("_expanded"):
            continue
        inputs, outputs = case.data_sets[0]
        if all(isinstance(array, np.ndarray) for array in (*inputs, *outputs)):
            yield case.name, case.model, inputs, outputs


def forget_types(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.type = value.shape = None


def symbolic(proto: onnx.ModelProto, inputs: list[np.ndarray]) -> tuple[ir.Model, dict[str, int]]:
    """The model with all extents above 1 named after their size, and small operands constant."""
    model = ir.from_proto(proto)
    model.ir_version = max(model.ir_version, 4)
    sizes: dict[str, int] = {}
    for value, array in list(zip(model.graph.inputs, inputs, strict=True))[1:]:
        if array.size <= 64 and array.dtype in (np.int64, np.int32, np.bool_):
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array)
            model.graph.initializers.add(value)
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        sizes |= {f"d{dim}": dim for dim in dims if isinstance(dim, int)}
        value.shape = ir.Shape([dim if dim in (0, 1) else f"d{dim}" for dim in dims])
    forget_types(model)
    return model, sizes


def test_what_is_inferred_of_symbolic_dims_is_what_comes_out() -> None:
    wrong, resolved, total = [], 0, 0
    for name, proto, inputs, outputs in operator_tests():
        model, sizes = symbolic(proto, inputs)
        infer_shapes(model)
        values = {sympy.Symbol(d, integer=True, positive=True): n for d, n in sizes.items()}
        for value, array in zip(model.graph.outputs, outputs, strict=True):
            dims = to_dims(value.shape)
            total += 1
            if dims is None:
                continue
            actual = [dim if isinstance(dim, int) else dim.subs(values) for dim in dims]
            resolved += UNKNOWN not in actual
            pairs = list(zip(actual, array.shape, strict=False))
            if len(dims) != array.ndim or any(a not in (n, UNKNOWN) for a, n in pairs):
                wrong.append((name, str(value.shape), array.shape))
    assert wrong == []
    assert resolved > 0.85 * total


names = st.sampled_from(["B", "S", "past_len", "ids.1_dim_0"])
expressions = st.recursive(
    names | st.integers(1, 9).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.integers(1, 9)).map(lambda t: f"floor({t[0]}/{t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"Min({t[0]}, {t[1]})"),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(expressions)
def test_the_text_of_a_dim_reads_back(text: str) -> None:
    dim = parse_dim(text)
    assert dim is UNKNOWN or parse_dim(dim_text(dim)) == dim


@pytest.mark.parametrize("text", ["batch size", "a..b", "9**9**9", "f(x)", "__import__('os')"])
def test_a_text_that_is_no_expression_is_one_symbol(text: str) -> None:
    assert parse_dim(text) == sympy.Symbol(text, integer=True, positive=True)


sizes = st.integers(-40, 40)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), sizes, sizes, st.integers(1, 4))
def test_a_symbolic_slice_is_a_slice(size: int, start: int, end: int, step: int) -> None:
    data = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["S"]))
    bounds = [
        ir.Value(name=f"b{i}", const_value=ir.tensor([bound]))
        for i, bound in enumerate((start, end, 0, step))
    ]
    node = ir.Node("", "Slice", [data, *bounds])
    ((dim,),) = STANDARD["Slice"](Site(node, 21, Values(21).get))  # type: ignore[misc]
    symbol = sympy.Symbol("S", integer=True, positive=True)
    assert sympy.sympify(dim).subs(symbol, size) == len(range(size)[start:end:step])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(-5, 5), st.integers(1, 7), st.integers(1, 7))
def test_rounding_twice(size: int, offset: int, first: int, second: int) -> None:
    symbol = sympy.Symbol("S", integer=True, positive=True)
    total = size + offset
    down = floor_div(floor_div(symbol + offset, first), second)
    up = ceil_div(ceil_div(symbol + offset, first), second)
    assert sympy.sympify(down).subs(symbol, size) == total // first // second
    assert sympy.sympify(up).subs(symbol, size) == math.ceil(math.ceil(total / first) / second)
