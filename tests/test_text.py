"""The text form: what it looks like, that nothing is lost, and how errors point at the text."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigcc.ir.slots import slots
from aigcc.ir.storage.mapped import SparseTensor
from aigcc.ir.text.facts import module_path, source_line
from aigcc.ir.text.parser import parse_model
from aigcc.ir.text.printer import print_body, print_model
from aigcc.ir.text.tensortext import SparseConstant

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
ESCAPE = (
    HEADER
    + """escape (float[2,4] x, float[4,2] w, float[2] b) => (float[2,2] y, float[2,2] m)
{
  m = MatMul (x, w)  # float[2,2]
  y = Add (m, b)     # float[2,2]
}
"""
)


def canonical(model: ir.Model) -> bytes:
    """The serialised model, with every weight as raw bytes in the model."""
    found = list(slots(model))
    for slot in found:
        tensor = slot.tensor
        if tensor.dtype != ir.DataType.STRING:
            slot.put(
                ir.Tensor(
                    np.array(tensor.numpy()),
                    dtype=tensor.dtype,
                    name=tensor.name,
                    doc_string=tensor.doc_string,
                    metadata_props=dict(tensor.metadata_props),
                )
            )
    try:
        return ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for slot in found:
            slot.restore()


def check_round_trip(model: ir.Model) -> ir.Model:
    text = print_model(model)
    again = parse_model(text)
    assert canonical(again) == canonical(model), text
    assert print_model(again) == text
    return again


def parse_body(body: str) -> ir.Model:
    return parse_model(f"{HEADER}g (float[2] x) => (y)\n{{\n{body}\n}}\n")


def first_node(body: str) -> ir.Node:
    return parse_body(body).graph[0]


def test_a_golden_case() -> None:
    model = parse_model(ESCAPE)
    assert str(model.graph[0].outputs[0].shape) == "[2,2]"
    assert print_body(model.graph) == ESCAPE[ESCAPE.index("{") :]


def test_a_whole_model() -> None:
    text = """\
<ir_version: 10, opset_import: ["" : 21, "ms" : 1]>
main (float[N,4] x, float k) => (float[N,"4 + s0"] y)
<
  float[2] c = {1, 2.5},
  float "layer.0.scale" = {0.1},                              # {"aigcc.bits": "4"}
  int64[1] axes = {-1}
>
{
  [first] h, "" = ms.Norm:v2 <epsilon: float = 1e-05, axes: ints = [0, 1]> (x, "", c)  # \
float[N,4], ?[]; by: fuse/norm
  p = Loop (k, "", h) <
    body: graph = body (int64 i, bool go, float[] s) => (bool on, float[] t)
    {
      on = Identity (go)                                      # bool
      t = Mul (s, "layer.0.scale")                            # float[]; in: blocks.0; at: net.py:7
    },
    note: string = "a \\"quoted\\" word"
  >
  y = Concat <axis: int = -1> (h, p)                          # float[N,"4 + s0"]
}
"""
    model = parse_model(text)
    assert print_model(model) == text
    loop = model.graph[1]
    inner = loop.attributes["body"].as_graph()
    assert inner[1].inputs[1] is model.graph.initializers["layer.0.scale"]
    assert model.graph[0].metadata_props == {"aigcc.made_by": "fuse/norm"}
    assert model.graph.initializers["layer.0.scale"].metadata_props == {"aigcc.bits": "4"}
    assert (module_path(inner[1].metadata_props), source_line(inner[1].metadata_props)) == (
        "blocks.0",
        "net.py:7",
    )


def test_functions_keep_defaults_references_and_overloads() -> None:
    text = (
        HEADER
        + """main (float[2] x) => (float[2] y)
{
  y = local.Scale:twice <alpha: float = 2> (x)                # float[2]
}
<domain: "local", overload: "twice", opset_import: ["" : 18]>
Scale <alpha, mode: string, beta: float = 0.5> (x) => (y)
{
  a = Constant <value_float: float = @alpha> ()               # float
  y = Mul (x, a)
}
"""
    )
    model = parse_model(text)
    assert print_model(model) == text
    function = model.functions["local", "Scale", "twice"]
    assert function.opset_imports == {"": 18}
    assert function.attributes["alpha"].type == ir.AttributeType.UNDEFINED
    assert function.attributes["beta"].as_float() == 0.5
    assert function[0].attributes["value_float"].ref_attr_name == "alpha"
    check_round_trip(model)


def test_a_body_shows_initializers_and_leaves_names_and_metadata_out() -> None:
    model = parse_model(
        HEADER + "g (float[2] x) => (float[2] y)\n<float[2] k = {1, 2.5}>\n"
        "{\n[n] y = Add (x, k)  # float[2]; by: fold\n}\n"
    )
    assert print_body(model.graph) == (
        "<\n  float[2] k = {1, 2.5}\n>\n{\n  y = Add (x, k)  # float[2]\n}\n"
    )


def test_prose_in_comments_is_left_alone() -> None:
    model = parse_model(
        "# a file\n" + HEADER + "g (float[2] x) => (float[2] y)  # the graph\n"
        "{  # starts here\n  # by the way\n  y = Relu (x)  # More of it; in short: done.\n}\n# end"
    )
    assert not model.graph[0].metadata_props
    assert not model.graph.metadata_props


def test_value_infos_and_defaults_of_inputs() -> None:
    model = parse_model(
        HEADER + "g (float[2] x, float k = {3}) => (y)\n"
        "<float[2,2] tmp, float[2] w = {1, 2}, float[N] w>\n{ tmp = Foo (x, w) y = Bar (tmp, k) }"
    )
    assert str(model.graph[0].outputs[0].shape) == "[2,2]"
    assert list(model.graph.initializers) == ["k", "w"]
    assert str(model.graph.initializers["w"].shape) == "[N]"
    check_round_trip(model)


def test_nodes_may_stand_in_any_order_and_names_may_shadow() -> None:
    model = parse_body(
        "  y = Add (late, x)\n  late = If (x) <then_branch = t () => (x) { x = Neg (late) }>"
    )
    late = model.graph[1]
    assert model.graph[0].inputs[0] is late.outputs[0]
    assert late.attributes["then_branch"].as_graph()[0].inputs[0] is late.outputs[0]
    check_round_trip(model)


@pytest.mark.parametrize("inputs", ["", '""', "x", 'x, ""', '"", x', 'x, "", x'])
def test_empty_optional_inputs(inputs: str) -> None:
    node = first_node(f"  y = Op ({inputs})")
    assert [value.name if value else "" for value in node.inputs] == [
        name.strip('"') for name in inputs.split(", ") if name
    ]


def test_onnx_writes_an_empty_input_as_nothing_before_a_comma() -> None:
    node = first_node("  y = Op (, x,, x,)")
    assert [value and value.name for value in node.inputs] == [None, "x", None, "x"]


def test_onnx_reads_what_we_print() -> None:
    model = parse_model(
        HEADER + 'main (float[N,4] x, seq(float[]) s) => (float[N,"4 + 1"] y)\n'
        "<float[2] k = {1, -0.5}, int8[2] q = {-8, 7}>\n"
        '{\n  [a] "h.0" = Foo <i: int = 1, f: float = 1e-05, s: string = "q\\"\\\\", l: ints = [],'
        " t: tensor = float[1] {2}, p: type_proto = seq(float[2,?])> (x, k)  # float[2]; by: pass\n"
        '  y = If (x) <then_branch: graph = t () => (float z) { z = Neg ("h.0") }>\n}\n'
    )
    proto = onnx.parser.parse_model(print_model(model))
    theirs = ir.from_proto(proto)
    assert [n.op_type for n in theirs.graph.all_nodes()] == ["Foo", "If", "Neg"]
    for ours, other in zip(model.graph.all_nodes(), theirs.graph.all_nodes(), strict=True):
        assert ours.attributes.keys() == other.attributes.keys()
    assert print_model(theirs) == print_model(parse_model(onnx.printer.to_text(proto)))


@pytest.mark.parametrize(
    ("literal", "dtype", "bits"),
    [
        ("{1, -0, inf, nan}", "float", [0x3F800000, 0x80000000, 0x7F800000, 0x7FC00000]),
        ("{0.1, 0xffc00001}", "float", [0x3DCCCCCD, 0xFFC00001]),
        ("{0.1}", "double", [0x3FB999999999999A]),
        ("{1.5, 15360, 0x7e01}", "float16", [0x3E00, 0x3C00, 0x7E01]),
        ("{1.0, -0.0}", "bfloat16", [0x3F80, 0x8000]),
        ("{448.0, nan}", "float8e4m3fn", [0x7E, 0x7F]),
        ("{6.0, -0.5, 7}", "float4e2m1", [7, 9, 7]),
        ("{-8, 7}", "int4", [8, 7]),
        ("{-2, 1}", "int2", [2, 1]),
        ("{1, 0}", "bool", [1, 0]),
    ],
)  # fmt: skip
def test_literals(literal: str, dtype: str, bits: list[int]) -> None:
    node = first_node(f"  y = Constant <value = {dtype}[{len(bits)}] {literal}> ()")
    array = node.attributes["value"].as_tensor().numpy()
    assert array.view(f"u{array.itemsize}").tolist() == bits


def test_every_bit_pattern_of_every_narrow_float_round_trips() -> None:
    for dtype in ir.DataType:
        if dtype.name.startswith(("FLOAT", "BFLOAT")) and dtype.bitwidth <= 16:
            patterns = np.arange(1 << dtype.bitwidth, dtype=f"u{dtype.numpy().itemsize}")
            check_round_trip(_constant(ir.Tensor(patterns.view(dtype.numpy()), dtype=dtype)))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_any_float32_round_trips(patterns: list[int]) -> None:
    check_round_trip(_constant(ir.Tensor(np.array(patterns, np.uint32).view(np.float32))))


def _constant(tensor: ir.TensorProtocol) -> ir.Model:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="")
    node.outputs[0].name = "y"
    graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_strings_and_names_hold_anything() -> None:
    texts = [
        "",
        "a b",
        'say "hi"',
        "back\\slash",
        "two\nlines",
        "nul\0",
        "\x1b[0m",
        "é\u202e𝄞",
        "#",
    ]
    node = ir.Node("", "Op", [], [ir.AttrStrings("texts", texts)], name="a\r\n]")
    node.attributes.add(ir.Attr("raw", ir.AttributeType.STRING, b'\xff\x00\n"'))
    node.outputs[0].name = 'weird "\0" name'
    graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21}, name="float")
    again = check_round_trip(ir.Model(graph, ir_version=10, doc_string="a\nb"))
    assert again.graph[0].attributes["texts"].as_strings() == tuple(texts)
    assert again.graph[0].attributes["raw"].value == b'\xff\x00\n"'


def test_sparse_tensors() -> None:
    sparse = "float[3,4] = sparse {float[2] sparse {1, 2}, int64[2] {0, 5}}"
    attributes = f"v: sparse_tensor = {sparse}, l: sparse_tensors = [{sparse}]"
    text = (
        HEADER + "g () => (y)\n<\n  float[2,2] w = sparse {float[1] {3}, int64[1,2] {1, 0}}\n>\n"
        f"{{\n  y = Constant <{attributes}> (w)\n}}\n"
    )
    model = parse_model(text)
    assert print_model(model) == text
    constant = model.graph[0].attributes["v"].value
    assert isinstance(constant, SparseConstant)
    assert constant.dims == (3, 4)
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, SparseTensor)
    assert weight.numpy().tolist() == [[0, 0], [3, 0]]


def test_what_torch_wrote_goes_to_a_table_and_reads_back(torch_metadata: dict[str, str]) -> None:
    model = parse_body("  y = Relu (x)\n  z = Relu (y)")
    for node in model.graph:
        node.metadata_props.update(torch_metadata)
    text = print_model(model)
    facts = "in: blocks.0.act; at: net.py:6; @"
    assert text.count(facts) == 2
    assert text.count("stack_trace") == 1
    again = check_round_trip(model)
    assert again.graph[0].metadata_props == torch_metadata


def test_brief_text_keeps_the_module_and_the_line(torch_metadata: dict[str, str]) -> None:
    model = parse_body("  y = Relu (x)  # float[2]; by: fuse/gelu")
    model.graph[0].metadata_props.update(torch_metadata)
    text = print_model(model, brief=True)
    assert "# float[2]; by: fuse/gelu; in: blocks.0.act; at: net.py:6\n" in text
    again = parse_model(text)
    assert print_model(again) == text
    assert module_path(again.graph[0].metadata_props) == "blocks.0.act"
    assert source_line(again.graph[0].metadata_props) == "net.py:6"


@pytest.fixture
def torch_metadata() -> dict[str, str]:
    return {
        "namespace": ": net.Net/blocks.0.act: torch.nn.modules.activation.GELU/gelu: aten.gelu",
        "pkg.torch.onnx.name_scopes": "['', 'blocks.0', 'blocks.0.act', 'gelu']",
        "pkg.torch.onnx.stack_trace": 'File "/home/me/run.py", line 11, in forward\n    x = b(x)\n'
        '  File "/home/me/net.py", line 6, in forward\n    return self.act(x)\n'
        '  File "/lib/python3/site-packages/torch/nn/modules/activation.py", line 816, in forward',
    }
