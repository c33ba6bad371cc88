"""The FX view at the edges: numbers without a sign, sizes that are computed, empty sets, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from aigcc.errors import ModelError
from aigcc.ir.module import Module

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from aigcc.ir.fxview import to_fx, update_weights  # noqa: E402

Array = np.ndarray
KINDS = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def parse(body: str, opset: int = 20) -> Module:
    return Module.parse(f'<ir_version: 10, opset_import: ["": {opset}, "own": 1]>\n{body}')


def run(module: Module, *feeds: Array) -> Array:
    """What the FX view gives."""
    with torch.no_grad():
        made = to_fx(module)(*[torch.from_numpy(feed.copy()) for feed in feeds])
    return made.numpy()


def evaluated(module: Module, *feeds: Array) -> Array:
    """What ONNX's own evaluator gives."""
    import onnx_ir as ir

    names = [value.name for value in module.inputs]
    (made,) = ReferenceEvaluator(ir.to_proto(module.model)).run(
        None, dict(zip(names, feeds, strict=True))
    )
    return np.asarray(made)


def check(module: Module, *feeds: Array) -> None:
    right, mine = evaluated(module, *feeds), run(module, *feeds)
    assert (mine.shape, mine.dtype) == (right.shape, right.dtype)
    np.testing.assert_allclose(mine, right, 1e-5, 1e-6)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@st.composite
def pairs(draw: Any) -> tuple[int, Array, Array]:
    """Numbers of some width without a sign, at the ends of their range and between."""
    width = draw(st.sampled_from(sorted(KINDS)))
    top = 2**width - 1
    number = st.one_of(st.integers(0, 3), st.integers(0, top), st.integers(top // 2 - 2, top))
    count = draw(st.integers(1, 6))
    a, b = (draw(st.lists(number, min_size=count, max_size=count)) for _ in "ab")
    return width, np.array(a, KINDS[width]), np.array(b, KINDS[width])


OF_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Max": np.maximum,
    "Min": np.minimum,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Div": lambda a, b: a // np.maximum(b, 1),
    "Mod": lambda a, b: a % np.maximum(b, 1),
    "Pow": lambda a, b: np.power(a, b % a.dtype.type(9)),
    "PRelu": lambda a, b: a,
}


@settings(max_examples=40, deadline=None)
@given(numbers=pairs(), are_constants=st.sampled_from(["", "b", "ab"]))
def test_numbers_without_a_sign_equal_numpy(
    numbers: tuple[int, Array, Array], are_constants: str
) -> None:
    width, a, b = numbers
    for op, function in OF_TWO.items():
        second = {"Div": np.maximum(b, 1), "Mod": np.maximum(b, 1), "Pow": b % b.dtype.type(9)}
        given = {"a": a, "b": second.get(op, b)}
        stored = ", ".join(
            f"uint{width}[{len(a)}] {name} = {{{', '.join(map(str, given[name]))}}}"
            for name in are_constants
        )
        inputs = [name for name in given if name not in are_constants]
        heads = ", ".join(f"uint{width}[N] {name}" for name in inputs)
        kind = "bool" if function(a, b).dtype == bool else f"uint{width}"
        text = f"g ({heads}) => ({kind}[M] y) <{stored}> {{ y = {op} (a, b) }}"
        made = run(parse(text.replace("<>", "")), *[given[name] for name in inputs])
        np.testing.assert_array_equal(made, function(a, b), err_msg=op)


OF_ONE: dict[str, Callable[[Array], Array]] = {
    "BitwiseNot (x)": np.bitwise_not,
    "Abs (x)": lambda x: x,
    "Sign (x)": lambda x: (x > 0).astype(x.dtype),
    "ReduceMax <keepdims = 0> (x)": lambda x: x.max(),
    "ReduceMin <keepdims = 0> (x)": lambda x: x.min(),
    "ReduceSum <keepdims = 0> (x)": lambda x: x.sum(dtype=x.dtype),
    "ReduceProd <keepdims = 0> (x)": lambda x: x.prod(dtype=x.dtype),
    "CumSum (x, zero)": lambda x: x.cumsum(dtype=x.dtype),
    "Clip (x, low, high)": lambda x: np.clip(x, x.dtype.type(7), x.dtype.type(40000)),
    "Cast <to = 11> (x)": lambda x: x.astype(np.float64),
    "Concat <axis = 0> (x, x)": lambda x: np.concatenate([x, x]),
    "GatherElements (x, at)": lambda x: x[[-1, 0]],
    "Where (yes, x, high)": lambda x: x,
    "Slice (x, last, far, at0, back)": lambda x: x[::-1],
}


@settings(max_examples=40, deadline=None)
@given(numbers=pairs())
def test_functions_of_numbers_without_a_sign_equal_numpy(numbers: tuple[int, Array, Array]) -> None:
    width, x, _ = numbers
    for call, function in OF_ONE.items():
        kind = "double" if "Cast" in call else f"uint{width}"
        rank = "" if "keepdims" in call else "[M]"
        module = parse(
            f"g (uint{width}[N] x) => ({kind}{rank} y)"
            f"<int64 zero = {{0}}, uint{width} low = {{7}}, uint{width} high = {{40000}},"
            "int64[2] at = {-1, 0}, bool yes = {1}, int64[1] last = {-1}, int64[1] at0 = {0},"
            f"int64[1] far = {{{-(2**63)}}}, int64[1] back = {{-1}}> {{ y = {call} }}"
        )
        np.testing.assert_array_equal(run(module, x), function(x), err_msg=call)


def test_the_largest_numbers_come_first_without_a_sign() -> None:
    module = parse(
        "g (uint64[4] x) => (uint64[2] y) <int64[1] k = {2}> { y, i = TopK (x, k) }", opset=21
    )
    made = run(module, np.array([1, 2**63, 3, 2**64 - 1], np.uint64))
    assert made.tolist() == [2**64 - 1, 2**63]


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bits_are_moved_by_any_number_of_places(kind: str, direction: str) -> None:
    bounds = np.iinfo(kind)
    x = np.array([bounds.min, bounds.max, 5, 77, 1, 3], kind)
    places = np.array([1, 2, 0, bounds.bits - 1, bounds.bits, 100], kind)
    module = parse(
        f"g ({kind}[6] x, {kind}[6] n) => ({kind}[6] y)"
        f'{{ y = BitShift <direction = "{direction}"> (x, n) }}',
        opset=28,
    )
    check(module, x, places)


EMPTY = np.zeros(0, np.int64)
SHAPED: dict[str, tuple[str, list[Array]]] = {
    "a size of 0 keeps the dim": (
        "g (float[2,3,4] x, int64[4] s) => (float[a,b,c,d] y) { y = Reshape (x, s) }",
        [floats(2, 3, 4), np.array([2, 0, 4, 1])],
    ),
    "and one of a cast does": (
        "g (float[2,3,4] x, int32[n] s) => (float[a,b,c,d] y)"
        "{ t = Cast <to = 7> (s)  y = Reshape (x, t) }",
        [floats(2, 3, 4), np.array([2, 0, 1, -1], np.int32)],
    ),
    "nothing is reduced": (
        "g (float[3,2] x, int64[n] a) => (float[p,q] y)"
        "{ y = ReduceSum <noop_with_empty_axes = 1> (x, a) }",
        [floats(3, 2), EMPTY],
    ),
    "squares of what is not reduced": (
        "g (float[3,2] x, int64[n] a) => (float[p,q] y)"
        "{ y = ReduceSumSquare <noop_with_empty_axes = 1> (x, a) }",
        [floats(3, 2), EMPTY],
    ),
    "all axes": (
        "g (float[3,2] x, int64[n] a) => (float[p,q] y) { y = ReduceMean (x, a) }",
        [floats(3, 2), EMPTY],
    ),
    "computed axes, from the back": (
        "g (float[3,2,4] x, int64[n] a) => (float[p,q] y){ y = ReduceMax <keepdims = 0> (x, a) }",
        [floats(3, 2, 4), np.array([-2])],
    ),
    "new axes": (
        "g (float[3,2] x, int64[n] a) => (float[a,b,c,d] y) { y = Unsqueeze (x, a) }",
        [floats(3, 2), np.array([-1, 0])],
    ),
    "fewer axes": (
        "g (float[3,1,2,1] x, int64[n] a) => (float[a,b] y) { y = Squeeze (x, a) }",
        [floats(3, 1, 2, 1), np.array([-1, 1])],
    ),
    "computed scales": (
        "g (float[1,2,4,5] x, float[4] s) => (float[a,b,c,d] y)"
        '{ y = Resize <mode = "linear"> (x, , s) }',
        [floats(1, 2, 4, 5), np.array([1, 1, 0.5, 1.7], np.float32)],
    ),
}


@pytest.mark.parametrize("name", SHAPED)
def test_what_is_computed_decides_the_shape(name: str) -> None:
    text, feeds = SHAPED[name]
    check(parse(text), *feeds)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("kind", ["float", "int32", "uint8", "bool", "double"])
@pytest.mark.parametrize("size", ["0", "N"])
def test_the_extreme_of_nothing_is_the_end_of_the_range(op: str, kind: str, size: str) -> None:
    types = f"g ({kind}[2,{size},3] x) => ({kind}[2,1,3] y) <int64[1] a = {{1}}>"
    dtype = np.dtype({"float": "float32"}.get(kind, kind))
    made = run(parse(f"{types} {{ y = {op} (x, a) }}"), np.zeros((2, 0, 3), dtype))
    ends: tuple[Any, Any] = (-np.inf, np.inf)
    if dtype.kind == "b":
        ends = (False, True)
    elif dtype.kind in "iu":
        ends = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made, np.full((2, 1, 3), ends[op == "ReduceMin"], dtype))


def test_slopes_were_of_channels_before_opset_7() -> None:
    x, slope = floats(2, 3, 4, 5), floats(3, seed=1)
    text = "g (float[2,3,4,5] x, float[3] w) => (float[2,3,4,5] y) { y = PRelu (x, w) }"
    wanted = np.where(x < 0, x * slope.reshape(3, 1, 1), x)
    np.testing.assert_array_equal(run(parse(text, opset=6), x, slope), wanted)


WINDOWS = [(0, 0), (1, -1), (-1, 1), (2, 1), (-1, 0)]


@pytest.mark.parametrize(("left", "right"), WINDOWS)
@pytest.mark.parametrize("is_causal", [0, 1])
def test_attention_sees_its_window(left: int, right: int, is_causal: int) -> None:
    module = parse(
        "g (float[1,2,4,8] q, float[1,2,3,8] k, float[1,2,3,8] v, float[1,2,2,8] pk,"
        "float[1,2,2,8] pv, bool[4,5] m) => (float[1,2,4,8] y) { y, a, b = Attention"
        f"<left_window_size = {left}, right_window_size = {right}, is_causal = {is_causal}>"
        "(q, k, v, m, pk, pv) }",
        opset=25,
    )
    shapes = ((4, 8), (3, 8), (3, 8), (2, 8), (2, 8))
    q, k, v, pk, pv = (floats(1, 2, *shape, seed=i) for i, shape in enumerate(shapes))
    mask = np.ones((4, 5), bool)
    mask[:, 0] = False
    keys, values = np.concatenate([pk, k], 2), np.concatenate([pv, v], 2)
    place, at = np.arange(4)[:, None] + 2, np.arange(5)
    seen = mask & ((at <= place) | (not is_causal))
    seen &= ((at >= place - left) | (left < 0)) & ((at <= place + right) | (right < 0))
    scores = np.where(seen, q @ keys.transpose(0, 1, 3, 2) / np.sqrt(8), -np.inf)
    weight = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e9))
    total = weight.sum(-1, keepdims=True)
    wanted = np.where(total > 0, weight / np.where(total > 0, total, 1), 0) @ values
    np.testing.assert_allclose(run(module, q, k, v, pk, pv, mask), wanted, 1e-4, 1e-5)


ATTRIBUTES: dict[str, tuple[str, int, Array]] = {
    "SpaceToDepth": (
        "g (float[1,2,4,2] x) => (float[a,b,c,d] y)"
        '{ y = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) }',
        28,
        floats(1, 2, 4, 2),
    ),
    "LRN of an even size": (
        "g (float[5,5,3,2] x) => (float[5,5,3,2] y) { y = LRN <size = 4, alpha = 0.5> (x) }",
        13,
        floats(5, 5, 3, 2),
    ),
    "Attention with a softmax in doubles": (
        "g (float[1,2,4,8] x) => (float[1,2,4,8] y)"
        "{ y = Attention <softmax_precision = 11, is_causal = 1> (x, x, x) }",
        23,
        floats(1, 2, 4, 8),
    ),
    "QuantizeLinear to four bits of float": (
        "g (float[6] x) => (float[6] y) <float s = {0.5}> { q = QuantizeLinear"
        "<output_dtype = 23> (x, s)  y = DequantizeLinear (q, s) }",
        25,
        np.array([0.1, 0.6, -1.3, 2.2, 9, -0.3], np.float32),
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_of_new_versions_are_followed(name: str) -> None:
    text, opset, x = ATTRIBUTES[name]
    check(parse(text, opset), x)


def test_a_branch_fails_only_when_it_runs() -> None:
    module = parse(
        """g (bool c, float[4] x) => (float[1] y) <int64[4] s = {1, 2, 3, 4}> {
          y = If (c) <
            then_branch = t () => (float[1] a) { a, a1, a2, a3 = Split <num_outputs = 4> (x) },
            else_branch = e () => (float[1] b) {
              b0, b1, b2, b3, b4, b5 = Split <num_outputs = 6> (s)  b = Cast <to = 1> (b5) }
          >
        }"""
    )
    assert run(module, np.array(True), floats(4)).shape == (1,)


def test_a_function_is_typed_by_each_of_its_calls() -> None:
    module = parse(
        """g (float[N,3] x, int64[K] i) => (float[N,3] y, int64[1] z) {
          y = own.scaled <by = 3> (x)
          z = own.scaled (i)
        }
        <domain: "own", opset_import: ["": 20]>
        scaled <by: int = 2> (a) => (b) {
          t = Constant <value_int: int = @by> ()
          f = CastLike (t, a)
          m = Mul (a, f)
          s = Shape (m)
          n = Shape (s)
          last = Sub (n, n)
          r = ReduceMax (m, last)
          up = Greater (r, m)
          w = CastLike (up, m)
          b = Add (m, w)
        }"""
    )
    x, i = floats(2, 3), np.array([4, 7])
    y, z = to_fx(module)(torch.from_numpy(x), torch.from_numpy(i))
    big = x * 3
    np.testing.assert_allclose(y.numpy(), big + (big.max(0, keepdims=True) > big), 1e-6)
    np.testing.assert_array_equal(z.numpy(), [9, 14])


def test_the_weights_of_a_function_are_shared_by_its_calls_and_come_home() -> None:
    module = parse(
        """g (float[2] x) => (float[2] y) { h = own.layer (x)  y = own.layer (h) }
        <domain: "own", opset_import: ["": 20]>
        layer (a) => (b) { w = Constant <value_floats = [2.0, 3.0]> ()  b = Mul (a, w) }"""
    )
    graph = to_fx(module)
    (weight,) = graph.parameters()
    with torch.no_grad():
        weight.mul_(2)
        np.testing.assert_array_equal(graph(torch.ones(2)).numpy(), [16, 36])
    assert update_weights(module, graph) == ["w"]
    np.testing.assert_array_equal(run(module, np.ones(2, np.float32)), [16, 36])


def test_calls_that_double_and_double_are_refused() -> None:
    levels = "".join(
        f'<domain: "own", opset_import: ["": 20, "own": 1]>\n'
        f"f{level} (a) => (b) {{ c = own.f{level + 1} (a)  b = own.f{level + 1} (c) }}\n"
        for level in range(40)
    )
    last = '<domain: "own", opset_import: ["": 20]>\nf40 (a) => (b) { b = Neg (a) }'
    module = parse(f"g (float[2] x) => (float[2] y) {{ y = own.f0 (x) }}\n{levels}{last}")
    with pytest.raises(ModelError, match="the calls of functions come to"):
        to_fx(module)


def test_what_onnx_defines_by_other_operators_needs_no_converter() -> None:
    text = """g (float[2,3] x, int64[2] t) => (float y)
    { y = SoftmaxCrossEntropyLoss <reduction = "sum", ignore_index = 1> (x, t) }"""
    check(parse(text, 13), floats(2, 3), np.array([2, 1]))
    check(parse("g (int64 n) => (float[m] y) { y = HannWindow (n) }"), np.array(7))
