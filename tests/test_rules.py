"""The rule engine: what patterns match, what a rewrite does to a graph, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.ir.text.printer import print_body
from aigcc.ir.verify import verify
from aigcc.pipeline.context import Context
from aigcc.pipeline.pattern import NoMatch, either
from aigcc.pipeline.rules import Rule, apply_rules

HEADER = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>\n'


def rule(
    pattern: Callable[..., Any],
    rewrite: Callable[..., Any],
    *,
    opset: int = 0,
    shared: Iterable[str] = (),
) -> Rule:
    """A rule called "test" with the given sides."""
    members = {
        "__doc__": "old -> new",
        "name": "test",
        "opset": opset,
        "shared": frozenset(shared),
        "pattern": staticmethod(pattern),
        "rewrite": staticmethod(rewrite),
    }
    return type("TestRule", (Rule,), members)()


def applied(text: str, *rules: Rule, ctx: Context | None = None) -> tuple[str, Context]:
    """The body of the main graph after the rules, and what was said."""
    module = Module.parse(HEADER + text)
    ctx = ctx or Context(maker="family")
    apply_rules(module, rules, ctx)
    verify(module.model)
    return nodes(module.graph), ctx


def nodes(graph: ir.Graph | ir.Function) -> str:
    """The nodes of a printed body, without types and spaces at the margins."""
    lines = print_body(graph).splitlines()
    lines = [line.split("#")[0].strip() for line in lines[lines.index("{") + 1 :]]
    return "\n".join(line for line in lines if line not in ("", "}"))


def declined(ctx: Context) -> list[str]:
    return [remark.message for remark in ctx.remarks if remark.kind == "declined"]


TWO = np.array(2.0, np.float32)
SQUARE = rule(lambda op, x: op.Mul(x, x), lambda op, match: op.Pow(match.x, TWO))
SWISH = rule(
    lambda op, x: op.Mul(x, op.Sigmoid(x)), lambda op, match: op.HardSwish(match.x, _like=match.x)
)


GATED = "g (float[2] x) => (float[2] y) { s = Sigmoid (x)  y = Mul (x, s) }"


def test_commutative_operands_match_in_any_order() -> None:
    text = "g (float[2] x) => (float[2] y) { s = Sigmoid (x)  y = Mul (%s) }"
    for operands in ("x, s", "s, x"):
        assert applied(text % operands, SWISH)[0] == "y = HardSwish (x)"


def test_operands_of_a_difference_match_in_their_order() -> None:
    drop = rule(lambda op, x: op.Sub(x, 0.0), lambda op, match: op.Relu(match.x))
    text = "g (float[2] x) => (float[2] y) <float zero = {0}> { y = Sub (%s) }"
    assert applied(text % "x, zero", drop)[0] == "y = Relu (x)"
    assert applied(text % "zero, x", drop)[0] == "y = Sub (zero, x)"


def test_a_variable_used_twice_is_one_value() -> None:
    text = "g (float[2] x, float[2] z) => (float[2] y) { y = Mul (x, %s) }"
    assert "Pow" in applied(text % "x", SQUARE)[0]
    assert "Mul" in applied(text % "z", SQUARE)[0]


def test_a_node_bound_twice_is_one_node() -> None:
    def pattern(op: Any, x: Any) -> Any:
        return op.Add(op.Relu(op.Neg(x, _as="neg")), op.Abs(op.Neg(x, _as="neg")))

    merge = rule(pattern, lambda op, match: op.Exp(match.x, _like=match.x))
    text = """g (float[2] x) => (float[2] y) {
      a = Neg (x)  b = Neg (x)
      r = Relu (a)  s = Abs (%s)
      y = Add (r, s)
    }"""
    assert applied(text % "a", merge)[0] == "b = Neg (x)\ny = Exp (x)"
    assert "Exp" not in applied(text % "b", merge)[0]


def test_an_optional_variable_may_be_absent() -> None:
    def rewrite(op: Any, match: Any) -> Any:
        return op.Relu(match.x) if match.high is None else op.Abs(match.x)

    clip = rule(lambda op, x, low=None, high=None: op.Clip(x, low, high), rewrite)
    text = "g (float[2] x) => (float[2] y) <float k = {1}> { y = Clip (%s) }"
    assert applied(text % "x, k", clip)[0] == "y = Relu (x)"
    assert applied(text % "x, k, k", clip)[0] == "y = Abs (x)"
    assert applied(text % "x, , k", clip)[0] == "y = Abs (x)"


def test_a_required_variable_may_not() -> None:
    clip = rule(lambda op, x, low: op.Clip(x, low), lambda op, match: op.Relu(match.x))
    text = "g (float[2] x) => (float[2] y) <float k = {1}> { y = Clip (%s) }"
    assert applied(text % "x, , k", clip)[0] == 'y = Clip (x, "", k)'
    assert applied(text % "x, k, k", clip)[0] == "y = Clip (x, k, k)"


def test_further_inputs_only_where_the_pattern_allows_them() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Concat <axis = 0> (x, x) }"
    one = rule(lambda op, x: op.Concat(x), lambda op, match: op.Relu(match.x))
    more = rule(
        lambda op, x: op.Concat(x, _more=True),
        lambda op, match: op.Relu(match.x, _like=match.root.outputs[0]),
    )
    assert "Concat" in applied(text, one)[0]
    assert "Relu" in applied(text, more)[0]


def test_the_first_choice_that_matches_counts() -> None:
    double = rule(
        lambda op, x: op.Relu(either(op.Add(x, x), op.Mul(x, 2.0))),
        lambda op, match: op.Abs(match.x),
    )
    text = "g (float[2] x) => (float[2] y) <float two = {2}> { a = %s  y = Relu (a) }"
    assert applied(text % "Add (x, x)", double)[0] == "y = Abs (x)"
    assert applied(text % "Mul (two, x)", double)[0] == "y = Abs (x)"
    assert "Abs" not in applied(text % "Sub (x, two)", double)[0]


@pytest.mark.parametrize(
    ("dtype", "wanted", "written", "matches"),
    [
        ("float", 1.0, "1.0", True),
        ("float", 1.0, "1.00001", False),
        ("float", 0.044715, "0.0447150", True),
        ("float", 0.044715, "0.0447", False),
        ("float16", 0.7978845608, "0.798", True),
        ("float16", 0.7978845608, "0.79", False),
        ("int64", 3.0, "3", True),
        ("double[1,1]", 0.5, "0.5", True),
        ("double[2]", 0.5, "0.5, 0.5", False),
    ],
)
def test_numbers_match_within_the_rounding_of_their_type(
    dtype: str, wanted: float, written: str, matches: bool
) -> None:
    drop = rule(lambda op, x: op.Where(x, wanted, wanted), lambda op, match: op.Not(match.x))
    text = f"g (bool[2] x) => (y) <{dtype} k = {{{written}}}> {{ y = Where (x, k, k) }}"
    assert ("Not" in applied(text, drop)[0]) == matches


def test_attributes_must_have_the_value_that_the_pattern_names() -> None:
    drop = rule(lambda op, x: op.Softmax(x, axis=-1), lambda op, match: op.Relu(match.x))
    text = "g (float[2] x) => (float[2] y) { y = Softmax %s (x) }"
    assert applied(text % "<axis = -1>", drop)[0] == "y = Relu (x)"
    assert "Softmax" in applied(text % "<axis = 0>", drop)[0]
    assert "Softmax" in applied(text % "", drop)[0]


def test_a_value_that_escapes_keeps_the_pattern() -> None:
    body = "{ s = Sigmoid (x)  y = Mul (x, s)  z = Relu (s) }"
    for outputs in ("float[2] y", "float[2] y, float[2] s", "float[2] y, float[2] z"):
        text = f"g (float[2] x) => ({outputs}) {body}"
        assert "HardSwish" not in applied(text, SWISH)[0]


def test_a_value_that_a_sub_graph_captures_escapes() -> None:
    text = """g (float[2] x, bool c) => (float[2] y, float[2] z) {
      s = Sigmoid (x)
      y = Mul (x, s)
      z = If (c) <
        then_branch = yes () => (float[2] u) { u = Relu (s) },
        else_branch = no () => (float[2] v) { v = Relu (x) }
      >
    }"""
    assert "HardSwish" not in applied(text, SWISH)[0]


def test_a_shared_node_stays_for_its_other_users() -> None:
    share = rule(
        lambda op, x: op.Mul(x, op.Sigmoid(x, _as="gate")),
        lambda op, match: op.HardSwish(match.x, _like=match.x),
        shared=["gate"],
    )
    text = """g (float[2] x) => (float[2] y, float[2] z) {
      s = Sigmoid (x)
      y = Mul (x, s)
      z = Mul (s, x)
    }"""
    assert applied(text, share)[0] == "y = HardSwish (x)\nz = HardSwish (x)"


def test_what_only_the_match_used_is_removed() -> None:
    text = """g (float[2] x) => (float[2] y) <float[1] k = {3}, float[1] unused = {4}> {
      a = Neg (k)
      b = Abs (a)
      y = Relu (b)
    }"""
    drop = rule(lambda op, x: op.Relu(x), lambda op, match: op.Exp(match.root.graph.inputs[0]))
    module = Module.parse(HEADER + text)
    apply_rules(module, [drop], Context())
    assert nodes(module.graph) == "y = Exp (x)"
    assert list(module.graph.initializers) == ["unused"]


def test_an_output_keeps_its_name() -> None:
    drop = rule(lambda op, x: op.Identity(x), lambda op, match: match.x)
    text = "g (float[2] x) => (float[2] y) { a = Relu (x)  y = Identity (a) }"
    assert applied(text, drop)[0] == "y = Relu (x)"


def test_outputs_that_are_one_value_or_an_input_are_told_apart() -> None:
    drop = rule(lambda op, x: op.Abs(x), lambda op, match: match.x)
    text = "g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x)  y = Abs (a)  z = Abs (a) }"
    assert applied(text, drop)[0] == "y = Relu (x)\nz = Identity (y)"
    text = "g (float[2] x) => (float[2] y) { y = Abs (x) }"
    assert applied(text, drop)[0] == "y = Identity (x)"


def test_several_outputs_are_replaced_in_order() -> None:
    def rewrite(op: Any, match: Any) -> Any:
        return [op.Relu(match.x, _like=v) for v in match.root.outputs]

    halve = rule(lambda op, x: op.Split(x, _more=True), rewrite)
    text = "g (float[2] x) => (float[1] b, float[1] a) { a, b = Split <num_outputs = 2> (x)  }"
    assert applied(text, halve)[0] == "a = Relu (x)\nb = Relu (x)"


def test_an_output_that_is_left_out_must_be_unused() -> None:
    halve = rule(
        lambda op, x: op.Split(x, _more=True),
        lambda op, match: op.Relu(match.x, _like=match.root.outputs[0]),
    )
    text = "g (float[2] x) => (float[1] a%s) { a, b = Split <num_outputs = 2> (x) }"
    assert applied(text % "", halve)[0] == "a = Relu (x)"
    _, ctx = applied(text % ", float[1] b", halve)
    assert declined(ctx) == ["another output of the node is used as well"]


def test_a_replacement_of_another_type_is_refused() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    halve = rule(lambda op, x: op.Relu(x), lambda op, match: op.Cast(match.x, to=10))
    assert declined(applied(text, halve)[1]) == ["the replacement is FLOAT16, not FLOAT"]
    longer = rule(lambda op, x: op.Relu(x), lambda op, match: op.Concat(match.x, match.x, axis=0))
    (reason,) = declined(applied(text, longer)[1])
    assert reason.startswith("the replacement has the shape")


def test_a_refusal_becomes_one_remark_and_leaves_nothing_behind() -> None:
    def refuse(op: Any, match: Any) -> Any:
        op.Add(match.x, np.ones(2, np.float32))
        raise NoMatch("x is too small")

    text = "g (float[2] x, float[2] z) => (float[2] y) { y = Mul (x, z) }"
    module, ctx = Module.parse(HEADER + text), Context(maker="family")
    before = module.text()
    apply_rules(module, [rule(lambda op, x, z: op.Mul(x, z), refuse)], ctx)
    assert module.text() == before
    assert [str(remark) for remark in ctx.remarks] == ["[family/test] y: x is too small"]


def test_a_refusal_of_one_order_leaves_the_other_a_chance() -> None:
    def rewrite(op: Any, match: Any) -> Any:
        if match.k.const_value is None:
            raise NoMatch("k is not a constant")
        return op.Relu(match.x)

    scale = rule(lambda op, x, k: op.Mul(x, k), rewrite)
    text = "g (float[2] x) => (float[2] y) <float k = {3}> { y = Mul (k, x) }"
    body, ctx = applied(text, scale)
    assert body == "y = Relu (x)" and declined(ctx) == []


def test_none_says_nothing() -> None:
    ignore = rule(lambda op, x: op.Relu(x), lambda op, match: None)
    body, ctx = applied("g (float[2] x) => (float[2] y) { y = Relu (x) }", ignore)
    assert body == "y = Relu (x)" and ctx.remarks == []


def test_a_rule_waits_for_its_opset() -> None:
    later = rule(lambda op, x: op.Relu(x), lambda op, match: op.Abs(match.x), opset=21)
    _, ctx = applied("g (float[2] x) => (float[2] y) { y = Relu (x) }", later)
    assert declined(ctx) == ["needs opset 21, and this is opset 20"]


def test_new_nodes_name_their_maker_and_keep_their_source() -> None:
    module = Module.parse(
        HEADER + "g (float[2] x) => (float[2] y) { s = Sigmoid (x)  y = Mul (x, s) }"
    )
    (root,) = [node for node in module.graph if node.op_type == "Mul"]
    root.metadata_props.update({"namespace": "unet.act", "aigcc.made_by": "older"})
    apply_rules(module, [SWISH], Context(maker="family"))
    (made,) = module.graph
    assert made.metadata_props == {"namespace": "unet.act", "aigcc.made_by": "family/test"}


def test_facts_about_a_value_survive() -> None:
    module = Module.parse(
        HEADER + "g (float[2] x) => (float[2] y) { s = Sigmoid (x)  y = Mul (x, s) }"
    )
    module.outputs[0].metadata_props["aigcc.range"] = "0 6"
    apply_rules(module, [SWISH], Context())
    assert module.outputs[0].metadata_props["aigcc.range"] == "0 6"


def test_rules_apply_to_what_other_rules_made() -> None:
    first = rule(lambda op, x: op.Relu(x), lambda op, match: op.Abs(match.x))
    second = rule(lambda op, x: op.Neg(op.Abs(x)), lambda op, match: op.Exp(match.x))
    text = "g (float[2] x) => (float[2] y) { a = Relu (x)  y = Neg (a) }"
    assert applied(text, second, first)[0] == "y = Exp (x)"


def test_the_limit_stops_the_run() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Relu (x)  b = Relu (a)  y = Relu (b) }"
    swap = rule(lambda op, x: op.Relu(x), lambda op, match: op.Abs(match.x))
    body, ctx = applied(text, swap, ctx=Context(limit=2))
    assert body == "a = Abs (x)\nb = Abs (a)\ny = Relu (b)" and ctx.total == 2


def test_sub_graphs_are_rewritten_with_their_own_constants() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <
        then_branch = yes () => (float[2] u) { u = Mul (x, x) },
        else_branch = no () => (float[2] v) { v = Relu (x) }
      >
    }"""
    module = Module.parse(HEADER + text)
    apply_rules(module, [SQUARE], Context())
    verify(module.model)
    yes = module.graph[0].attributes["then_branch"].as_graph()
    assert [node.op_type for node in yes] == ["Pow"]
    assert len(yes.initializers) == 1 and not module.graph.initializers


def test_functions_are_rewritten_with_constant_nodes() -> None:
    text = """g (float[2] x) => (float[2] y) { y = local.f (x) }
    <domain: "local", opset_import: ["" : 20]>
    f (x) => (y) { y = Mul (x, x) }"""
    module = Module.parse(HEADER + text)
    apply_rules(module, [SQUARE], Context())
    verify(module.model)
    (function,) = module.model.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Pow"]


def test_a_new_domain_is_imported_where_it_is_used() -> None:
    quick = rule(
        lambda op, x: op.Mul(x, op.Sigmoid(x)),
        lambda op, match: op.QuickGelu(match.x, alpha=1.0, _domain="com.microsoft", _like=match.x),
    )
    text = """g (float[2] x) => (float[2] y) { y = local.f (x) }
    <domain: "local", opset_import: ["" : 20]>
    f (x) => (y) { s = Sigmoid (x)  y = Mul (x, s) }"""
    module = Module.parse(HEADER + text)
    apply_rules(module, [quick], Context())
    (function,) = module.model.functions.values()
    assert function.opset_imports["com.microsoft"] == 1
    assert module.model.opset_imports["com.microsoft"] == 1


def gated(count: int, others: int) -> Module:
    """A chain of x · Sigmoid(x), and after it as many `Neg`."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    made, last = [], x
    for kinds in [("Sigmoid", "Mul")] * count + [("Neg",)] * others:
        inputs = [last]
        for kind in kinds:
            made.append(ir.node(kind, inputs))
            (output,) = made[-1].outputs
            output.name, output.type, output.shape = f"v{len(made)}", x.type, x.shape
            inputs = [last, output]
        last = made[-1].outputs[0]
    graph = ir.Graph([x], [last], nodes=made, opset_imports={"": 20}, name="chain")
    return Module(ir.Model(graph, ir_version=10))


def test_time_grows_with_the_number_of_nodes_and_no_faster() -> None:
    def seconds(count: int) -> float:
        times = []
        for _ in range(3):
            module, ctx = gated(count, count), Context()
            start = time.process_time()
            assert apply_rules(module, [SWISH], ctx) == count
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(1600) < 16 * seconds(200)
