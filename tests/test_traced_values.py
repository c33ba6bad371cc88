"""What is computed by hand while tracing shapes is what the standard's own evaluator computes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from aigcc.errors import ModelError
from aigcc.ir.shapes.dims import UNKNOWN
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.shapes.values import RULES, Values

OPSETS = (6, 7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 23, 24, 25)
INTEGERS = (np.int32, np.int64)
FLOATS = (np.float16, np.float32, np.float64)
EDGES = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 2**31 - 1, 2**62, 2**63 - 1)
# The evaluator has no errors of its own.
REFUSED = (ValueError, TypeError, IndexError, RuntimeError, AttributeError, ArithmeticError)
Draw = st.DrawFn
Node = tuple[list["np.ndarray | None"], dict[str, Any]]
Case = Callable[[Draw, int], Node]


def numbers(draw: Draw, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if dtype is np.bool_:
        return draw(hnp.arrays(np.bool_, shape))
    if dtype in INTEGERS:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        edge = st.sampled_from([edge for edge in EDGES if low <= edge <= high])
        return draw(hnp.arrays(dtype, shape, elements=st.one_of(edge, st.integers(-9, 9))))
    simple = st.sampled_from([-2.5, -1.0, -0.5, -0.0, 0.0, 0.1, 0.7, 1.0, 1.5, 3.0, 100.0, 60000.0])
    array: np.ndarray = draw(hnp.arrays(np.float64, shape, elements=simple)).astype(dtype)
    return array


def shapes(draw: Draw, least: int = 0, most: int = 3) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(0, 3), min_size=least, max_size=most)))


def small(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def binary(*dtypes: type) -> Case:
    def case(draw: Draw, opset: int) -> Node:
        dtype, shape = draw(st.sampled_from(dtypes)), shapes(draw)
        narrow = tuple(draw(st.sampled_from((1, size))) for size in shape)
        narrow = narrow[draw(st.integers(0, len(shape))) :]
        operands = [numbers(draw, dtype, shape), numbers(draw, dtype, narrow)]
        return draw(st.permutations(operands)), {}

    return case


def unary(*dtypes: type) -> Case:
    return lambda draw, opset: ([numbers(draw, draw(st.sampled_from(dtypes)), shapes(draw))], {})


def variadic(draw: Draw, opset: int) -> Node:
    dtype, shape = draw(st.sampled_from((*INTEGERS, *FLOATS))), shapes(draw)
    return [numbers(draw, dtype, shape) for _ in range(draw(st.integers(1, 3)))], {}


def modulo(draw: Draw, opset: int) -> Node:
    inputs, _ = binary(*INTEGERS, *FLOATS)(draw, opset)
    is_float = inputs[0] is not None and inputs[0].dtype.kind == "f"
    fmod = 1 if is_float else draw(st.sampled_from((None, 0, 1)))
    return inputs, {} if fmod is None else {"fmod": fmod}


def where(draw: Draw, opset: int) -> Node:
    inputs, _ = binary(*INTEGERS, *FLOATS, np.bool_)(draw, opset)
    shape = draw(st.sampled_from((np.shape(inputs[0]), np.shape(inputs[1]), (), (1,))))
    return [numbers(draw, np.bool_, shape), *inputs], {}


def cast(draw: Draw, opset: int) -> Node:
    array = numbers(draw, draw(st.sampled_from((*INTEGERS, *FLOATS, np.bool_))), shapes(draw))
    goal = np.dtype(draw(st.sampled_from((*INTEGERS, *FLOATS, np.bool_, np.int8))))
    attributes = {"to": helper.np_dtype_to_tensor_dtype(goal)}
    return [array], with_saturate(draw, opset, attributes)


def cast_like(draw: Draw, opset: int) -> Node:
    array = numbers(draw, draw(st.sampled_from((*INTEGERS, *FLOATS, np.bool_))), shapes(draw))
    goal = draw(st.sampled_from((*INTEGERS, *FLOATS, np.bool_)))
    return [array, np.zeros((1,), goal)], with_saturate(draw, opset, {})


def with_saturate(draw: Draw, opset: int, attributes: dict[str, Any]) -> dict[str, Any]:
    if opset >= 19 and draw(st.booleans()):
        attributes["saturate"] = draw(st.sampled_from((0, 1)))
    if opset >= 24 and draw(st.booleans()):
        attributes["round_mode"] = draw(st.sampled_from(("up", "down", "nearest")))
    return attributes


def axes_of(draw: Draw, rank: int, *, least: int = 0) -> list[int]:
    axes = draw(st.lists(st.integers(0, max(rank - 1, 0)), unique=True, max_size=rank))
    assume(least <= len(axes))
    return [axis - rank if draw(st.booleans()) else axis for axis in axes]


def as_it_is_in(
    op: str, opset: int, inputs: list[Any], attributes: dict[str, Any], lists: dict[str, Any]
) -> Node:
    """Lists as attributes or as further inputs, as the opset has it."""
    schema = onnx.defs.get_schema(op, opset)
    for name, values in lists.items():
        if name in schema.attributes:
            if values is not None:
                attributes[name] = values
        else:
            inputs.append(None if values is None else small(values))
    return inputs, attributes


def reduction(op: str) -> Case:
    def case(draw: Draw, opset: int) -> Node:
        shape = shapes(draw)
        dtype = draw(st.sampled_from((*INTEGERS, np.float32)))
        axes = draw(st.sampled_from((None, [], axes_of(draw, len(shape)))))
        attributes: dict[str, Any] = {}
        if draw(st.booleans()):
            attributes["keepdims"] = draw(st.sampled_from((0, 1)))
        schema = onnx.defs.get_schema(op, opset)
        if "noop_with_empty_axes" in schema.attributes and draw(st.booleans()):
            attributes["noop_with_empty_axes"] = draw(st.sampled_from((0, 1)))
        if "axes" in schema.attributes and axes == []:
            axes = None
        inputs = [numbers(draw, dtype, shape)]
        return as_it_is_in(op, opset, inputs, attributes, {"axes": axes})

    return case


def slices(draw: Draw, opset: int) -> Node:
    shape = shapes(draw, 1)
    axes = axes_of(draw, len(shape), least=1)
    bound = st.one_of(st.integers(-5, 5), st.sampled_from((2**63 - 1, -(2**63), 2**31 - 1)))
    starts, ends = ([draw(bound) for _ in axes] for _ in range(2))
    steps = [draw(st.sampled_from((-2, -1, 1, 2, 2**62))) for _ in axes]
    lists: dict[str, Any] = {"starts": starts, "ends": ends}
    is_all = axes == list(range(len(axes))) and draw(st.booleans())
    lists["axes"] = None if is_all else axes
    if opset >= 10:
        lists["steps"] = draw(st.sampled_from((None, steps)))
    return as_it_is_in("Slice", opset, [numbers(draw, np.int64, shape)], {}, lists)


def split(draw: Draw, opset: int) -> Node:
    shape = shapes(draw, 1)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    attributes: dict[str, Any] = {"axis": axis}
    lists = {"split": sizes if draw(st.booleans()) else None}
    if lists["split"] is not None:
        shape = (*shape[: axis % len(shape)], sum(sizes), *shape[axis % len(shape) + 1 :])
    elif opset >= 18:
        attributes["num_outputs"] = len(sizes)
    array = numbers(draw, np.int64, shape)
    inputs, attributes = as_it_is_in("Split", opset, [array], attributes, lists)
    return inputs, {**attributes, "outputs": len(sizes)}


def reshape(draw: Draw, opset: int) -> Node:
    shape = shapes(draw)
    goal = list(draw(st.permutations(shape)))
    for axis in range(len(goal)):
        change = draw(st.sampled_from(("keep", "zero", "rest")))
        if change == "zero" and goal[axis] == shape[axis]:
            goal[axis] = 0
        elif change == "rest" and -1 not in goal:
            goal[axis] = -1
    attributes = {}
    if opset >= 14 and draw(st.booleans()):
        attributes["allowzero"] = draw(st.sampled_from((0, 1)))
    inputs = [numbers(draw, np.int32, shape), small(goal)]
    return inputs, attributes


def squeeze(draw: Draw, opset: int) -> Node:
    shape = tuple(draw(st.lists(st.sampled_from((1, 1, 2)), max_size=4)))
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    axes = draw(st.sampled_from((None, ones, ones[:1])))
    axes = axes and [axis - len(shape) if draw(st.booleans()) else axis for axis in axes]
    inputs = [numbers(draw, np.int64, shape)]
    return as_it_is_in("Squeeze", opset, inputs, {}, {"axes": axes or None})


def unsqueeze(draw: Draw, opset: int) -> Node:
    shape = shapes(draw, most=2)
    axes = sorted(axis % (len(shape) + 2) for axis in axes_of(draw, len(shape) + 2, least=2)[:2])
    if draw(st.booleans()):  # the reference adds one axis after the other, and counts from that
        axes = [-draw(st.integers(1, len(shape) + 1))]
    inputs = [numbers(draw, np.int64, shape)]
    return as_it_is_in("Unsqueeze", opset, inputs, {}, {"axes": axes})


def expand(draw: Draw, opset: int) -> Node:
    shape = shapes(draw)
    goal = [draw(st.sampled_from((1, size))) if size != 1 else 2 for size in shape]
    return [numbers(draw, np.int64, shape), small(draw(st.sampled_from((goal, [2, *goal]))))], {}


def gather(draw: Draw, opset: int) -> Node:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    index = st.integers(-shape[axis], shape[axis] - 1)
    indices = draw(
        hnp.arrays(draw(st.sampled_from(INTEGERS)), shapes(draw, most=2), elements=index)
    )
    return [numbers(draw, np.int64, shape), indices], draw(st.sampled_from(({"axis": axis}, {})))


def concat(draw: Draw, opset: int) -> Node:
    shape = list(shapes(draw, 1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    dtype = draw(st.sampled_from((np.int64, np.bool_, np.float32)))
    operands = []
    for _ in range(draw(st.integers(1, 3))):
        shape[axis] = draw(st.integers(0, 3))
        operands.append(numbers(draw, dtype, tuple(shape)))
    return list(operands), {"axis": axis}


def transpose(draw: Draw, opset: int) -> Node:
    shape = shapes(draw)
    perm = draw(st.permutations(range(len(shape))))
    attributes = {"perm": perm} if perm and draw(st.booleans()) else {}
    return [numbers(draw, np.int64, shape)], attributes


def constant(draw: Draw, opset: int) -> Node:
    name = draw(
        st.sampled_from(("value", "value_int", "value_float", "value_ints", "value_floats"))
    )
    assume(name == "value" or opset >= 12)
    if name == "value":
        array = numbers(draw, draw(st.sampled_from((*INTEGERS, *FLOATS, np.bool_))), shapes(draw))
        return [], {name: numpy_helper.from_array(array)}
    number = [0.1, 3.0, -2.5] if "float" in name else [-(2**63), 5, 0]
    return [], {name: number if name.endswith("s") else draw(st.sampled_from(number))}


def constant_of_shape(draw: Draw, opset: int) -> Node:
    shape = small(list(shapes(draw)))
    value = numbers(draw, draw(st.sampled_from((*INTEGERS, np.float32, np.bool_))), (1,))
    return [shape], draw(st.sampled_from(({}, {"value": numpy_helper.from_array(value)})))


def ranges(draw: Draw, opset: int) -> Node:
    dtype = draw(st.sampled_from((*INTEGERS, np.float32)))
    step = draw(st.integers(-3, 3).filter(bool))
    bounds = (draw(st.integers(-9, 9)), draw(st.integers(-9, 9)), step)
    return [np.array(bound, dtype) for bound in bounds], {}


def shape_of(draw: Draw, opset: int) -> Node:
    data, attributes = numbers(draw, np.float32, shapes(draw)), {}
    for name in ("start", "end") if opset >= 15 else ():
        if draw(st.booleans()):
            # the reference does not clamp what lies further before the first dim
            attributes[name] = draw(st.integers(-data.ndim, 5))
    return [data], attributes


CASES: dict[str, Case] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), binary(*INTEGERS, *FLOATS)),
    **dict.fromkeys(("And", "Or", "Xor"), binary(np.bool_)),
    **dict.fromkeys(
        ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"), binary(*INTEGERS, *FLOATS)
    ),
    "Equal": binary(*INTEGERS, *FLOATS, np.bool_),
    **dict.fromkeys(("Abs", "Neg"), unary(*INTEGERS, *FLOATS)),
    **dict.fromkeys(("Ceil", "Floor"), unary(*FLOATS)),
    "Not": unary(np.bool_),
    "Identity": unary(*INTEGERS, *FLOATS, np.bool_),
    "Size": unary(*INTEGERS),
    **dict.fromkeys(("Max", "Min"), variadic),
    **{op: reduction(op) for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")},
    "Cast": cast,
    "CastLike": cast_like,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Gather": gather,
    "Mod": modulo,
    "Range": ranges,
    "Reshape": reshape,
    "Shape": shape_of,
    "Slice": slices,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": where,
}


def test_every_operator_is_tried() -> None:
    assert CASES.keys() == RULES.keys()


@functools.cache
def since(op: str) -> int:
    versions = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op]
    return min(versions)


def model_of(op: str, opset: int, node: Node) -> onnx.ModelProto:
    inputs, attributes = node
    outputs = [f"y{index}" for index in range(attributes.pop("outputs", 1))]
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, **attributes)],
        "one",
        [],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(a, f"x{i}") for i, a in enumerate(inputs) if a is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def traced(model: onnx.ModelProto) -> list[np.ndarray | None]:
    module = ir.from_proto(model)
    infer_shapes(module)
    values = Values(module.opset_imports[""])
    return [values.get(value) for value in module.graph.outputs]


def options() -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    made.intra_op_num_threads = 1
    made.log_severity_level = 4
    return made


def agrees(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether all that is known is right; what is not finite is never known."""
    pairs = zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True)
    return found.shape == wanted.shape and all(a is UNKNOWN or a == b for a, b in pairs)


@pytest.mark.parametrize("op", sorted(CASES))
def test_traced_elements_are_those_of_the_reference(op: str) -> None:
    known = 0

    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal known
        opset = data.draw(st.sampled_from([opset for opset in OPSETS if opset >= since(op)]))
        node = data.draw(st.composite(lambda draw: CASES[op](draw, opset))())
        model = model_of(op, opset, node)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                found = traced(model)
            except ModelError:  # not legal in this opset
                assume(False)
            try:
                wanted = ReferenceEvaluator(model).run(None, {})
            except REFUSED:
                assume(False)
        for ours, theirs in zip(found, wanted, strict=True):
            if ours is not None:
                known += 1
                assert agrees(ours, np.asarray(theirs)), (ours, theirs)
        # The same where one of the inputs is known only when the model runs.
        names = [tensor.name for tensor in model.graph.initializer]
        if names:
            drop = data.draw(st.sampled_from(names))
            (tensor,) = (t for t in model.graph.initializer if t.name == drop)
            model.graph.initializer.remove(tensor)
            kind = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            model.graph.input.append(helper.make_value_info(drop, kind))
            for ours, theirs in zip(traced(model), wanted, strict=True):
                assert ours is None or agrees(ours, np.asarray(theirs)), (drop, ours, theirs)

    check()
    assert known, "nothing was traced"


NUMBERS = (-3, -1, 0, 1, 2, 3, 64)
STEPS = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "GreaterOrEqual")


@st.composite
def chains(draw: Draw) -> tuple[str, list[str]]:
    """Nodes that compute with the dims of `x`, each from two values made before."""
    dtype = draw(st.sampled_from(("INT64", "INT32", "FLOAT", "DOUBLE")))
    nodes = [f"s = Shape (x) v0 = Cast <to = {getattr(onnx.TensorProto, dtype)}> (s)"]
    made = ["v0"]
    for index in range(1, draw(st.integers(2, 5))):
        op = draw(st.sampled_from((*STEPS, "Floor", "Ceil", "Abs", "Neg", "Where")))
        number = draw(st.sampled_from(NUMBERS)) / (draw(st.sampled_from((1, 2, 3, 5))))
        text = str(number) if dtype in ("FLOAT", "DOUBLE") else str(int(number))
        nodes.append(f"k{index} = Constant <value = {dtype.lower()}[1] {{{text}}}> ()")
        a, b = (draw(st.sampled_from([*made, f"k{index}"])) for _ in range(2))
        if op in ("Floor", "Ceil"):
            assume(dtype in ("FLOAT", "DOUBLE"))
        if op in ("Div", "Mod"):
            assume(float(text) != 0)
            b = f"k{index}"
        if op in ("Equal", "Less", "GreaterOrEqual"):
            nodes.append(f"c{index} = {op} ({a}, {b}) v{index} = Where (c{index}, v0, {b})")
        elif op == "Where":
            nodes.append(f"c{index} = Less ({a}, {b}) v{index} = Where (c{index}, {a}, {b})")
        else:
            fmod = "<fmod = 1>" if op == "Mod" and dtype in ("FLOAT", "DOUBLE") else ""
            one = op in ("Floor", "Ceil", "Abs", "Neg")
            nodes.append(f"v{index} = {op} {fmod} ({a if one else f'{a}, {b}'})")
        made.append(f"v{index}")
    return dtype, [*nodes, f"y = Cast <to = 7> ({made[-1]})"]


@settings(max_examples=100, deadline=None)
@given(chains(), st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_symbolic_elements_hold_for_all_sizes(
    chain: tuple[str, list[str]], sizes: list[int]
) -> None:
    head = '<ir_version: 8, opset_import: ["" : 18]> g (float[H,W] x) => (y)'
    model = onnx.parser.parse_model(f"{head} {{ {' '.join(chain[1])} }}")
    (found,) = traced(model)
    if found is None:
        return
    session = ort.InferenceSession(model.SerializeToString(), options(), ["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": np.zeros(sizes, np.float32)})
    for element, number in zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True):
        if isinstance(element, int):
            assert element == number
        elif element is not UNKNOWN and min(sizes) > 0:
            named = {symbol: sizes["HW".index(symbol.name)] for symbol in element.free_symbols}
            assert element.subs(named) == number, element


@pytest.mark.parametrize(
    "node",
    [
        "y = Slice (a, start, end, axis, outside)",
        "y = Slice (a, start, end, outside)",
        "y, z = Split <axis = 0> (a, outside)",
        "y = ReduceSum (a, outside)",
        "y = Unsqueeze (a, outside)",
        "y = Squeeze (a, outside)",
        "y = Reshape (a, outside)",
        "y = Gather (a, outside)",
    ],
)
def test_what_is_known_only_at_run_time_is_left_alone(node: str) -> None:
    constants = "int64[6] a = {0,1,2,3,4,5}, int64[1] start = {0}, int64[1] end = {6}, "
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g (int64[k] outside) => (y)
        <{constants} int64[1] axis = {{0}}> {{ {node} }}"""
    assert traced(onnx.parser.parse_model(text)) == [None]
