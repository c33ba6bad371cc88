"""Random models survive the text form, and damaged texts end in a `ModelError`."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigcc.errors import ModelError
from aigcc.ir.slots import slots
from aigcc.ir.text.parser import parse_model
from aigcc.ir.text.printer import print_model

AT = ir.AttributeType
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.one_of(
    st.text(string.ascii_letters + "_", min_size=1, max_size=4),
    st.sampled_from(["float", "seq", "inf", "nan", "b", "sparse", "a.b", "x y", "#", '"', "@0"]),
    TEXTS.filter(bool),
)
METADATA = st.dictionaries(
    st.one_of(TEXTS, st.sampled_from(["aigcc.made_by", "aigcc.module", "aigcc.source", "#doc"])),
    st.one_of(TEXTS, st.sampled_from(["fuse/gelu", "blocks.0", "net.py:7", "x" * 80])),
    max_size=2,
)
DTYPES = st.sampled_from([dtype for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED])
FLOATS = st.floats(width=32)
INTS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tensors(draw: st.DrawFn) -> ir.TensorProtocol:
    dtype = draw(DTYPES)
    dims = draw(st.lists(st.integers(0, 3), max_size=3))
    size = int(np.prod(dims))
    named: dict[str, Any] = {
        "name": draw(NAMES | st.none()),
        "doc_string": draw(TEXTS.filter(bool) | st.none()),
        "metadata_props": draw(METADATA),
    }
    if dtype == ir.DataType.STRING:
        elements = draw(st.lists(st.binary(max_size=4), min_size=size, max_size=size))
        return ir.StringTensor(elements, shape=ir.Shape(dims), **named)
    width = dtype.numpy().itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size * width, max_size=size * width)), np.uint8)
    if dtype == ir.DataType.BOOL or dtype.bitwidth < 8:
        raw = raw & ((1 << min(dtype.bitwidth, 1 if dtype == ir.DataType.BOOL else 8)) - 1)
    return ir.Tensor(raw.view(dtype.numpy()).reshape(dims), dtype=dtype, **named)


@st.composite
def shapes(draw: st.DrawFn) -> ir.Shape | None:
    dims = draw(st.none() | st.lists(st.integers(0, 9) | NAMES | st.none(), max_size=3))
    if dims is None:
        return None
    denotations = draw(st.lists(NAMES | st.none(), min_size=len(dims), max_size=len(dims)))
    return ir.Shape(dims, denotations if draw(st.booleans()) else None)


def types() -> st.SearchStrategy[ir.TypeProtocol]:
    denotations = st.none() | NAMES
    leaves = st.builds(ir.TensorType, DTYPES, denotation=denotations) | st.builds(
        ir.SparseTensorType, DTYPES, denotation=denotations
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.builds(ir.SequenceType, inner, denotation=denotations)
            | st.builds(ir.OptionalType, inner, denotation=denotations)
        ),
        max_leaves=3,
    )


def _decoded(raw: bytes) -> str | bytes:
    """As onnx_ir holds a string: bytes only where they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


TYPE_PROTOS = st.builds(ir.TypeAndShape, types(), shapes())
SIMPLE_ATTRIBUTES = {
    AT.INT: INTS,
    AT.FLOAT: FLOATS,
    AT.STRING: TEXTS | st.binary(max_size=4).map(_decoded),
    AT.TENSOR: tensors(),
    AT.TYPE_PROTO: TYPE_PROTOS,
    AT.INTS: st.lists(INTS, max_size=3),
    AT.FLOATS: st.lists(FLOATS, max_size=3),
    AT.STRINGS: st.lists(TEXTS, max_size=3),
    AT.TENSORS: st.lists(tensors(), max_size=2),
    AT.TYPE_PROTOS: st.lists(TYPE_PROTOS, max_size=2),
}


@st.composite
def attributes(draw: st.DrawFn, name: str, scope: list[ir.Value], depth: int) -> ir.Attr:
    kinds = [*SIMPLE_ATTRIBUTES, *([AT.GRAPH, AT.GRAPHS] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    doc = draw(st.none() | TEXTS.filter(bool))
    if kind in SIMPLE_ATTRIBUTES and draw(st.integers(0, 5)) == 0:
        return ir.RefAttr(name, draw(NAMES), kind, doc_string=doc)
    if kind == AT.GRAPH:
        return ir.AttrGraph(name, draw(graphs(scope, depth - 1)), doc_string=doc)
    if kind == AT.GRAPHS:
        count = draw(st.integers(0, 2))
        found = [draw(graphs(scope, depth - 1)) for _ in range(count)]
        return ir.AttrGraphs(name, found, doc_string=doc)
    return ir.Attr(name, kind, draw(SIMPLE_ATTRIBUTES[kind]), doc_string=doc)


@st.composite
def values(draw: st.DrawFn, taken: set[str]) -> ir.Value:
    name = draw(NAMES.filter(lambda name: name not in taken))
    taken.add(name)
    type_ = draw(st.none() | types())
    value = ir.Value(
        name=name,
        type=type_,
        shape=draw(shapes()) if type_ else None,
        doc_string=draw(st.none() | TEXTS.filter(bool)),
        metadata_props=draw(METADATA),
    )
    if draw(st.integers(0, 5)) == 0:
        value.meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": draw(NAMES)}
    return value


@st.composite
def graphs(draw: st.DrawFn, outer: list[ir.Value], depth: int) -> ir.Graph:
    taken = {value.name or "" for value in outer}
    inputs = [draw(values(taken)) for _ in range(draw(st.integers(0, 2)))]
    initializers = [draw(values(taken)) for _ in range(draw(st.integers(0, 2)))]
    initializers += draw(st.lists(st.sampled_from(inputs), unique_by=id)) if inputs else []
    for value in initializers:
        value.const_value = draw(tensors())
        value.const_value.name = value.name
    scope = [*outer, *inputs, *(value for value in initializers if value not in inputs)]
    nodes = []
    for _ in range(draw(st.integers(0, 3))):
        made = [draw(values(taken)) for _ in range(draw(st.integers(0, 2)))]
        nodes.append(draw(calls(scope, made, depth)))
        scope += made
    own = [value for value in scope if value not in outer]
    return ir.Graph(
        inputs,
        draw(st.lists(st.sampled_from(own), max_size=2)) if own else [],
        nodes=nodes,
        initializers=initializers,
        name=draw(NAMES | st.none()),
        doc_string=draw(st.none() | TEXTS.filter(bool)),
        metadata_props=draw(METADATA),
    )


@st.composite
def calls(draw: st.DrawFn, scope: list[ir.Value], made: list[ir.Value], depth: int) -> ir.Node:
    choices = st.none() | st.sampled_from(scope) if scope else st.none()
    names = draw(st.lists(NAMES, max_size=2, unique=True))
    return ir.Node(
        draw(st.just("") | NAMES),
        draw(NAMES),
        draw(st.lists(choices, max_size=3)),
        [draw(attributes(name, scope, depth)) for name in names],
        outputs=made,
        overload=draw(st.just("") | NAMES),
        name=draw(st.just("") | NAMES),
        doc_string=draw(st.none() | TEXTS.filter(bool)),
        metadata_props=draw(METADATA),
    )


@st.composite
def functions(draw: st.DrawFn) -> ir.Function:
    graph = draw(graphs([], 1))
    graph.opset_imports.update(draw(st.dictionaries(NAMES | st.just(""), INTS, max_size=2)))
    names = draw(st.lists(NAMES, max_size=2, unique=True))
    declared = [
        draw(attributes(name, [], 0).filter(lambda attr: not attr.is_ref()))
        if draw(st.booleans())
        else ir.Attr(name, AT.UNDEFINED, None)
        for name in names
    ]
    return ir.Function(draw(NAMES), draw(NAMES), graph=graph, attributes=declared)


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    graph = draw(graphs([], 2))
    graph.opset_imports.update(draw(st.dictionaries(NAMES | st.just(""), INTS, max_size=2)))
    return ir.Model(
        graph,
        ir_version=draw(st.integers(10, 13)),
        producer_name=draw(st.none() | TEXTS),
        producer_version=draw(st.none() | TEXTS),
        domain=draw(st.none() | TEXTS),
        model_version=draw(st.none() | INTS),
        doc_string=draw(st.none() | TEXTS),
        functions=draw(st.lists(functions(), max_size=1)),
        metadata_props=draw(METADATA),
    )


def canonical(model: ir.Model) -> bytes:
    """The serialised model; tensors that hold the same bytes are equal."""
    for slot in slots(model):
        assert isinstance(slot.tensor, ir.Tensor | ir.StringTensor)
    return ir.to_proto(model).SerializeToString(deterministic=True)


SLOW = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


@SLOW
@given(models())
def test_random_models_round_trip(model: ir.Model) -> None:
    text = print_model(model)
    again = parse_model(text)
    assert canonical(again) == canonical(model)
    assert print_model(again) == text
    brief = print_model(model, brief=True)
    assert print_model(parse_model(brief), brief=True) == brief


@SLOW
@given(models(), st.data())
def test_damaged_texts_end_in_a_model_error(model: ir.Model, data: st.DataObject) -> None:
    text = print_model(model)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 9)))
    other = data.draw(st.text(max_size=3) | st.sampled_from([*'"{}()[]<>=,.:;?@#\n-\\', "=>"]))
    try:
        again = parse_model(text[:start] + other + text[stop:])
    except ModelError as error:
        assert "<text>:" in str(error)
    else:
        assert print_model(parse_model(print_model(again))) == print_model(again)


HEADER = '<ir_version: 10, opset_import: ["" : 21]> '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "\ud800",
        "(" * 100_000,
        '"' + "\\" * 99_999,
        " " * 100_000 + "$",
        "<ir_version: " + "9" * 100_000,
        '<metadata_props: ["a": "' + "x" * 100_000,
        HEADER + "g (" + "seq(" * 100_000,
        HEADER + 'g () => () { a = F () # {"a": ' + "[" * 100_000,
        HEADER + "g () => () { a = F <x = " + "[" * 100_000,
        HEADER + "g () => () " + "{ a = F () <x = g () => () " * 10_000,
        HEADER + "g () => () <float[" + "1," * 99 + "1] w = {0}> {}",
        HEADER + "g () => () <int8[" + "9" * 18 + ",9] w = {1}> {}",
        HEADER + "g () => () <int8[0," + "9" * 18 + ",99] w = {}> {}",
        HEADER + "g () => () <float w = {" + "1" * 100_000 + "}> {}",
        HEADER + "g () => () <int8 w = {" + "1" * 100_000 + "}> {}",
        HEADER + "g () => () <float w = {" + "1, " * 100_000,
    ],
    ids=range(18),
)
def test_hostile_texts_end_in_a_model_error_at_once(text: str) -> None:
    with pytest.raises(ModelError):
        parse_model(text)
