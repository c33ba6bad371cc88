"""One legal model, and one corrupt model for each invariant that `verify` checks."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.errors import VerifyError
from aigcc.ir.verify import verify


def parse(body: str, *, header: str = 'ir_version: 10, opset_import: ["" : 21]') -> ir.Model:
    return ir.from_onnx_text(f"<{header}>\n{body}")


def small() -> ir.Model:
    """y = relu(x w) + x w, with an initializer w."""
    return parse("""
        main (float[2,3] x) => (float[2,2] y)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}>
        {
          m = MatMul (x, w)
          r = Relu (m)
          y = Add (m, r)
        }""")


def fault(model: ir.Model) -> VerifyError:
    with pytest.raises(VerifyError) as info:
        verify(model)
    return info.value


def test_a_legal_model_verifies() -> None:
    verify(small())


def test_subgraphs_see_the_values_around_them() -> None:
    verify(
        parse("""
        main (bool c, float[2] x) => (float[2] y)
        {
          h = Relu (x)
          y = If (c) <
            then_branch = yes () => (float[2] a) { a = Neg (h) },
            else_branch = no () => (float[2] a) { a = Add (h, x) }>
        }""")
    )


FUNCTIONS = """
    <domain: "local", opset_import: ["" : 21]>
    twice <scale> (v) => (w) { s = Constant <value_float: float = @scale> () w = Mul (v, s) }"""
CALLS = 'ir_version: 10, opset_import: ["" : 21, "local" : 1]'


def test_a_function_is_called_with_its_attributes() -> None:
    verify(
        parse(
            "main (float[2] x) => (float[2] y) { y = local.twice <scale = 2.0> (x) }" + FUNCTIONS,
            header=CALLS,
        )
    )


# Text that parses and is illegal, with what `verify` says of it.
ILLEGAL = {
    "an undefined value": (
        "main (float[2] hidden) => (float[2] y) { y = Relu (hiden) }",
        "value 'hiden' is no graph input.*did you mean 'hidden'",
    ),
    "a use before the definition": (
        "main (float[2] x) => (float[2] y) { y = Relu (h) h = Neg (x) }",
        "value 'h' is used before it is made, by a Neg",
    ),
    "a cycle": (
        "main (float[2] x) => (float[2] y) { a = Add (x, c) b = Neg (a) c = Relu (b) y = Neg (c) }",
        "value 'c' depends on itself: a -> b -> c -> a",
    ),
    "an input without a type": (
        "main (x) => (float[2] y) { y = Relu (x) }",
        "graph input 'x' has no type",
    ),
    "an output that nothing makes": (
        "main (float[2] x) => (float[2] z) { y = Relu (x) }",
        "graph output: value 'z' is no graph input",
    ),
    "a misspelt op": (
        "main (float[2] x) => (float[2] y) { y = Rellu (x) }",
        "ONNX has no op 'Rellu'.*did you mean 'Relu'",
    ),
    "an op newer than the opset": (
        "main (float[2] x) => (float[2] y) { y = RMSNormalization (x, x) }",
        "RMSNormalization came with opset 23, the model imports 21",
    ),
    "a withdrawn op": (
        "main (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample (x, s) }",
        "Upsample was withdrawn in opset 10",
    ),
    "a domain without an opset": (
        "main (float[2] x) => (float[2] y) { y = com.microsft.Gelu (x) }",
        "no opset of domain 'com.microsft' is imported",
    ),
    "too many inputs": (
        "main (float[2] x) => (float[2] y) { y = Relu (x, x) }",
        "Relu of opset 14 has at most 1 inputs, this node has 2",
    ),
    "too few inputs": (
        "main (float[2] x) => (float[2] y) { y = Add (x) }",
        "Add of opset 14 has at least 2 inputs, this node has 1",
    ),
    "a required input left out": (
        "main (float[2] x) => (float[2] y) { y = Clip (, x) }",
        "Clip needs its input 0",
    ),
    "too many outputs": (
        "main (float[2] x) => (float[2] y) { y, z = Relu (x) }",
        "Relu of opset 14 has at most 1 outputs, this node has 2",
    ),
    "an attribute that the op does not have": (
        "main (float[2] x) => (float[2] y) { y = Softmax <axes = 0> (x) }",
        "Softmax of opset 13 has no attribute 'axes'.*did you mean 'axis'",
    ),
    "an attribute of the wrong type": (
        "main (float[2] x) => (float[2] y) { y = Softmax <axis = 0.5> (x) }",
        "attribute 'axis' is a FLOAT, Softmax wants INT",
    ),
    "a required attribute left out": (
        "main (float[2] x) => (float[4] y) { y = Concat (x, x) }",
        "Concat needs the attribute 'axis'",
    ),
    "a Constant of two values": (
        "main () => (float y) { y = Constant <value_int = 1, value_float = 1.0> () }",
        "Constant needs exactly one attribute, this one has 2",
    ),
    "a type that the op does not take": (
        "main (string[2] x) => (string[2] y) { y = Relu (x) }",
        r"input 0 \(X\) of Relu may not be tensor\(string\)",
    ),
    "inputs of two types": (
        "main (float[2] x, int64[2] i) => (float[2] y) { y = Add (x, i) }",
        r"input 0 \(A\) and input 1 \(B\) of Add must have the same type, "
        r"they are tensor\(float\) and tensor\(int64\)",
    ),
    "an output of another type than the input": (
        "main (float[2] x) => (int64[2] y) { y = Relu (x) }",
        r"input 0 \(X\) and output 0 \(Y\) of Relu must have the same type",
    ),
    "a name repeated in a sub-graph": (
        """main (bool c, float[2] x) => (float[2] y) {
          y = If (c) <
            then_branch = yes () => (float[2] a) { x = Relu (x) a = Neg (x) },
            else_branch = no () => (float[2] b) { b = Neg (x) }>
        }""",
        "two values are named 'x'",
    ),
    "a value of a branch used outside": (
        """main (bool c, float[2] x) => (float[2] z) {
          y = If (c) <
            then_branch = yes () => (float[2] a) { a = Relu (x) },
            else_branch = no () => (float[2] b) { b = Neg (x) }>
          z = Add (y, a)
        }""",
        "value 'a' is no graph input, no initializer and no output of a node",
    ),
    "branches of different length": (
        """main (bool c, float[2] x) => (float[2] y) {
          y = If (c) <
            then_branch = yes () => (float[2] a, float[2] d) { a = Relu (x) d = Neg (x) },
            else_branch = no () => (float[2] b) { b = Neg (x) }>
        }""",
        "there are 2 outputs of then_branch, but 1 outputs of If",
    ),
    "a branch of another type": (
        """main (bool c, float[2] x) => (float[2] y) {
          y = If (c) <
            then_branch = yes () => (int64[2] a) { a = Cast <to = 7> (x) },
            else_branch = no () => (float[2] b) { b = Neg (x) }>
        }""",
        r"outputs of then_branch and outputs of If differ in type at 0: tensor\(int64\)",
    ),
    "a loop body without its state": (
        """main (int64 n, bool c, float[2] x) => (float[2] y) {
          y = Loop (n, c, x) <
            body = round (int64 i, bool go) => (bool on, float[2] z) {
              on = Identity (go) z = Neg (x)
            }>
        }""",
        "there are 0 state inputs of body, but 1 initial values",
    ),
    "a map whose body takes other elements": (
        """main (seq(float[2]) xs) => (seq(float[2]) ys) {
          ys = SequenceMap (xs) <
            body: graph = f (float16[2] x) => (float[2] y) { y = Cast <to: int = 1> (x) }>
        }""",
        "inputs of body and inputs of SequenceMap differ in type at 0",
    ),
    "a map whose body gives too much": (
        """main (seq(float[2]) xs) => (seq(float[2]) ys) {
          ys = SequenceMap (xs) <
            body: graph = f (float[2] x) => (float[2] y, float[2] z) { y = Neg (x) z = Neg (x) }>
        }""",
        "there are 2 outputs of body, but 1 outputs of SequenceMap",
    ),
    "an attribute reference in the main graph": (
        "main (float[2] x) => (float[2] y) { y = Softmax <axis: int = @axis> (x) }",
        "attribute reference @axis outside of a function",
    ),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_text(case: str) -> None:
    text, message = ILLEGAL[case]
    error = str(fault(parse(text)))
    assert re.search(message, error, re.DOTALL), error


# The same for models with functions.
ILLEGAL_CALLS = {
    "an unknown function": (
        "main (float[2] x) => (float[2] y) { y = local.twicee <scale = 2.0> (x) }" + FUNCTIONS,
        "there is no function local::twicee.*did you mean 'twice'",
    ),
    "too many inputs": (
        "main (float[2] x) => (float[2] y) { y = local.twice <scale = 2.0> (x, x) }" + FUNCTIONS,
        "function twice has 1 inputs, this call has 2",
    ),
    "an unknown attribute": (
        "main (float[2] x) => (float[2] y) { y = local.twice <scal = 2.0> (x) }" + FUNCTIONS,
        "function twice has no attribute 'scal'.*did you mean 'scale'",
    ),
    "recursion": (
        """main (float[2] x) => (float[2] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]> f (v) => (w) { w = local.g (v) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]> g (v) => (w) { w = local.f (v) }""",
        "the function calls itself.*also: the function calls itself",
    ),
    "functions that call the next one twice": (
        "main (float[2] x) => (float[2] y) { y = local.f0 (x) }"
        + "".join(
            f"""<domain: "local", opset_import: ["" : 21, "local" : 1]>
            f{i} (v) => (w) {{ u = local.f{i + 1} (v) w = local.f{i + 1} (u) }}"""
            for i in range(40)
        )
        + """<domain: "local", opset_import: ["" : 21]> f40 (v) => (w) { w = Neg (v) }""",
        "calls of functions stand for 1,099,511,627,776 nodes",
    ),
    "a capture": (
        """main (float[2] x) => (float[2] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 21]> f (v) => (w) { w = Add (v, x) }""",
        "value 'x' is no graph input",
    ),
    "no opset of its own": (
        """main (float[2] x) => (float[2] y) { y = local.f (x) }
        <domain: "local", opset_import: ["other" : 1]> f (v) => (w) { w = Relu (v) }""",
        "no opset of the default domain is imported",
    ),
}


@pytest.mark.parametrize("case", ILLEGAL_CALLS)
def test_illegal_calls(case: str) -> None:
    text, message = ILLEGAL_CALLS[case]
    error = str(fault(parse(text, header=CALLS)))
    assert re.search(message, error, re.DOTALL), error


def test_an_opset_from_the_future() -> None:
    text = "main (float[2] x) => (float[2] y) { y = Relu (x) }"
    error = fault(parse(text, header='ir_version: 10, opset_import: ["" : 99]'))
    assert "opset 99 of the default domain is newer than onnx" in error.what
    assert error.hint and "convert the model to opset" in error.hint


def test_ops_of_unknown_domains_are_taken_as_they_are() -> None:
    text = "main (float[2] x) => (float[2] y) { y = my.own.Thing <level = 3> (x) }"
    verify(parse(text, header='ir_version: 10, opset_import: ["" : 21, "my.own" : 1]'))


# Corruption that only the in-memory form can have.


def test_a_use_that_is_not_there() -> None:
    model = small()
    product, relu, _ = model.graph
    product.outputs[0]._add_usage(relu, 3)
    assert "value 'm' lists a use as input 3 that there is not" in fault(model).what


def test_a_use_that_is_not_listed() -> None:
    model = small()
    product, relu, _ = model.graph
    product.outputs[0]._remove_usage(relu, 0)
    assert "value 'm' does not list its use as input 0" in fault(model).what


def test_a_use_by_a_removed_node() -> None:
    model = small()
    product, *_ = model.graph
    ir.Node("", "Neg", [product.outputs[0]], name="stray")
    error = fault(model)
    assert "value 'm' lists a use by a node outside of the model" in error.what
    assert error.at == "node 'stray' (Neg)"


def test_a_value_of_a_removed_node() -> None:
    model = small()
    product, *_ = model.graph
    model.graph.remove(product)
    assert "value 'm' comes from a MatMul that is in no graph" in fault(model).what


def test_a_value_of_another_function() -> None:
    model = parse(
        "main (float[2] x) => (float[2] y) { y = local.twice <scale = 2.0> (x) }" + FUNCTIONS,
        header=CALLS,
    )
    (function,) = model.functions.values()
    function[1].replace_input_with(0, model.graph.inputs[0])
    error = fault(model)
    assert "value 'x' belongs to graph 'main', which is not visible here" in error.what
    assert error.hint and "pass the value as an input" in error.hint


def test_a_value_without_a_name() -> None:
    model = small()
    model.graph[0].outputs[0].name = None
    assert "a value that is used has no name" in fault(model).what


def test_two_values_of_one_name() -> None:
    model = small()
    model.graph[1].outputs[0].name = "m"
    assert "two values are named 'm'" in fault(model).what


def test_a_stranger_of_the_same_name() -> None:
    model = small()
    model.graph[1].replace_input_with(0, ir.Value(name="m"))
    assert "a value named 'm' is used that is not the 'm' of this graph" in fault(model).what


def test_an_initializer_without_data() -> None:
    model = small()
    model.graph.initializers["w"].const_value = None
    assert fault(model).what == "initializer 'w' has no data"


def test_an_initializer_of_another_type() -> None:
    model = small()
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((3, 2), np.float16))
    assert fault(model).what == "initializer 'w' is declared FLOAT, its data is FLOAT16"


def test_an_initializer_of_another_shape() -> None:
    model = small()
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((2, 3), np.float32))
    assert fault(model).what == "initializer 'w' is declared [3,2], its data has shape [2,3]"


def test_an_initializer_in_a_function() -> None:
    model = parse(
        "main (float[2] x) => (float[2] y) { y = local.twice <scale = 2.0> (x) }" + FUNCTIONS,
        header=CALLS,
    )
    (function,) = model.functions.values()
    weight = ir.Value(name="k", const_value=ir.tensor(np.float32(1.0)))
    function.graph.initializers.add(weight)
    assert "a function body cannot have initializers" in fault(model).what


def test_no_weight_is_read() -> None:
    def forbidden() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    model = small()
    weight = ir.LazyTensor(forbidden, dtype=ir.DataType.FLOAT, shape=ir.Shape([3, 2]), name="w")
    model.graph.initializers["w"].const_value = weight
    verify(model)


def test_the_message_shows_the_nodes_around_the_first_fault() -> None:
    model = small()
    model.graph[1].op_type = "Rellu"
    assert str(fault(model)) == (
        "ONNX has no op 'Rellu'\n"
        "  at: graph 'main', the Rellu that makes 'r'\n"
        "       m = MatMul (x, w)  # ?[?]\n"
        "    >> r = Rellu (m)  # ?[?]\n"
        "       y = Add (m, r)  # FLOAT[2,2]\n"
        "  hint: did you mean 'Relu'?"
    )


def test_ten_faults_are_shown_and_the_rest_are_counted() -> None:
    nodes = " ".join(f"v{i} = Rellu (x)" for i in range(13))
    error = fault(parse(f"main (float[2] x) => (float[2] v0) {{ {nodes} }}"))
    assert error.what.count("also: ") == 9
    assert error.what.endswith("and 3 more")


OPERATORS = {"Relu": 1, "Neg": 1, "Add": 2, "Mul": 2, "Max": 3}


@st.composite
def graphs(draw: st.DrawFn, depth: int = 1, outer: tuple[str, ...] = ("x",)) -> str:
    """The nodes of a random graph over `outer`, whose last value is named by the depth."""
    known, lines = list(outer), []
    for index in range(draw(st.integers(1, 5))):
        name = f"v{depth}_{index}_{len(outer)}"
        if depth < 3 and draw(st.integers(0, 4)) == 0:
            yes, no = (draw(graphs(depth + 1, tuple(known))) for _ in range(2))
            lines.append(
                f"{name} = If (c) <then_branch = yes () => (float[2] end{depth + 1}) {{ {yes} }},"
                f" else_branch = no () => (float[2] end{depth + 1}) {{ {no} }}>"
            )
        else:
            op = draw(st.sampled_from(sorted(OPERATORS)))
            operands = [draw(st.sampled_from(known)) for _ in range(OPERATORS[op])]
            lines.append(f"{name} = {op} ({', '.join(operands)})")
        known.append(name)
    lines.append(f"end{depth} = Identity ({known[-1]})")
    return "\n".join(lines)


def random_model(body: str) -> ir.Model:
    return parse(f"main (bool c, float[2] x) => (float[2] end1) {{ {body} }}")


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_valid_models_verify(body: str) -> None:
    model = random_model(body)
    onnx.checker.check_model(ir.to_proto(model))
    verify(model)
    verify(model.clone())


@settings(max_examples=40, deadline=None)
@given(graphs(), st.data())
def test_a_reversed_dependency_does_not_verify(body: str, data: st.DataObject) -> None:
    model = random_model(body)
    dependent = [node for node in model.graph if any(node.predecessors())]
    node = data.draw(st.sampled_from(dependent))
    model.graph.remove(node)
    model.graph.insert_before(model.graph[0], node)
    assert "is used before" in fault(model).what
