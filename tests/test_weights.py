"""Weights: constants are read, derived weights are lazy, duplicates are found."""

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from aigcc.errors import PassError
from aigcc.ir.storage.loading import load_model
from aigcc.ir.weights import (
    constant,
    derive,
    duplicates,
    fingerprint,
    is_small,
    raw_bytes,
    read,
    scalar,
)

SOURCE = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2] x, float[2] default) => (float[2] y)
<float[2] default = {9.0, 9.0}, float[2] w = {1.0, 2.0}, float one = {1.5}>
{
  a = Constant <value = float[1] {2.5}> ()
  b = Constant <value_int = 3> ()
  c = Constant <value_floats = [1.0, 2.0]> ()
  d = Constant <value_string = "text"> ()
  e = Constant <value_ints = [4]> ()
  y = Add (x, w)
}
"""


def values(source: str = SOURCE) -> dict[str | None, ir.Value]:
    graph = ir.from_onnx_text(source).graph
    inner = [value for node in graph for value in node.outputs]
    return {value.name: value for value in [*graph.inputs, *graph.initializers.values(), *inner]}


def test_constants_are_initializers_and_constant_nodes() -> None:
    found = values()
    arrays = {name: read(found[name]) for name in ("w", "one", "a", "b", "c", "e")}
    assert {name: array.tolist() for name, array in arrays.items() if array is not None} == {
        "w": [1.0, 2.0],
        "one": 1.5,
        "a": [2.5],
        "b": 3,
        "c": [1.0, 2.0],
        "e": [4],
    }
    assert read(found["d"]) is not None
    assert arrays["b"] is not None
    assert arrays["b"].dtype == np.int64


def test_what_an_input_can_change_is_no_constant() -> None:
    found = values()
    assert read(found["x"]) is read(found["y"]) is read(found["default"]) is read(None) is None


def test_an_attribute_of_the_caller_is_no_constant() -> None:
    function = onnx.parser.parse_function(
        '<opset_import: ["": 21], domain: "my"> f <v> () => (k) '
        "{ k = Constant <value: tensor = @v> () }"
    )
    (node,) = ir.serde.deserialize_function(function)
    assert constant(node.outputs[0]) is None


def test_scalars() -> None:
    found = values()
    assert {name: scalar(found[name]) for name in ("one", "a", "b", "e", "w", "d", "x")} == {
        "one": 1.5,
        "a": 2.5,
        "b": 3,
        "e": 4,
        "w": None,
        "d": None,
        "x": None,
    }
    assert isinstance(scalar(found["b"]), int)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array(1.5, ml_dtypes.bfloat16), 1.5),
        (np.array([-3], ml_dtypes.int4), -3),
        (np.array(True), 1),
        (np.array(2**63, np.uint64), 2**63),
        (np.array(1j), None),
    ],
)
def test_scalars_of_every_dtype(array: np.ndarray, expected: object) -> None:
    value = ir.Value(name="v", const_value=ir.tensor(array))
    assert scalar(value) == expected


def test_a_derived_weight_is_computed_when_it_is_read() -> None:
    calls = []

    def transpose(array: np.ndarray) -> np.ndarray:
        calls.append(1)
        return array.T

    source = ir.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    first = derive(transpose, source, dtype=source.dtype, shape=[3, 2], name="t")
    second = derive(
        lambda a, b: np.concatenate([a, b]), first, first, dtype=first.dtype, shape=[6, 2], name="c"
    )
    assert not calls
    assert second.numpy().tolist() == [[0, 3], [1, 4], [2, 5]] * 2
    assert second.tobytes() == second.numpy().tobytes()
    assert len(calls) == 6  # three readings of two sources: nothing is kept


def test_a_derived_weight_of_four_bits_is_packed() -> None:
    source = ir.tensor(np.array([1.0, -2.0, 3.0], np.float32))
    made = derive(
        lambda a: a.astype(ml_dtypes.int4), source, dtype=ir.DataType.INT4, shape=[3], name="q"
    )
    assert bytes(raw_bytes(made)) == bytes([0xE1, 0x03])


@pytest.mark.parametrize("wrong", [{"shape": [3, 2]}, {"dtype": ir.DataType.FLOAT16}])
def test_a_derived_weight_that_is_not_as_declared(wrong: dict) -> None:
    source = ir.tensor(np.ones((2, 3), np.float32))
    declared = {"dtype": source.dtype, "shape": [2, 3], **wrong}
    made = derive(lambda a: a, source, name="w", **declared)
    with pytest.raises(PassError, match="was declared") as caught:
        made.numpy()
    assert "weight 'w'" in str(caught.value)


def test_reading_mapped_weights_one_by_one_takes_the_memory_of_one(tmp_path: Path) -> None:
    arrays = [np.full((512, 1024), i, np.float32) for i in range(8)]  # 2 MiB each
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float x) => (float y) { y = Neg (x) }'
    )
    names = [f"w{i}" for i in range(8)]
    model.graph.initializer.extend(map(numpy_helper.from_array, arrays, names))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    del model, arrays
    initializers = load_model(tmp_path / "m.onnx").graph.initializers.values()
    tracemalloc.start()
    for value in initializers:
        assert value.const_value is not None
        doubled = derive(
            lambda w: w * 2,
            value.const_value,
            dtype=value.const_value.dtype,
            shape=[512, 1024],
            name="d",
        )
        assert doubled.numpy()[0, 0] == 2 * int(str(value.name)[1:])
        fingerprint(value.const_value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20


def test_small_means_a_kilobyte() -> None:
    assert is_small(ir.tensor(np.zeros(128)))
    assert not is_small(ir.tensor(np.zeros(129)))


def test_fingerprints_follow_the_content() -> None:
    array = np.arange(10, dtype=np.int16)
    lazy = derive(lambda a: a, ir.tensor(array), dtype=ir.DataType.INT16, shape=[10], name="l")
    assert (
        fingerprint(ir.tensor(array)) == fingerprint(lazy) == fingerprint(ir.tensor(array.copy()))
    )
    assert fingerprint(ir.tensor(array)) != fingerprint(ir.tensor(array + 1))
    assert fingerprint(ir.tensor(["a", "b"])) != fingerprint(ir.tensor(["ab", ""]))


def test_a_fingerprint_is_computed_once() -> None:
    calls = []
    lazy = derive(
        lambda: calls.append(1) or np.zeros(3), dtype=ir.DataType.DOUBLE, shape=[3], name="z"
    )
    assert fingerprint(lazy) == fingerprint(lazy)
    assert len(calls) == 1


def test_duplicates_hash_only_what_could_be_one() -> None:
    def value(name: str, array: np.ndarray) -> ir.Value:
        return ir.Value(name=name, const_value=ir.tensor(array))

    def never() -> ir.TensorProtocol:
        raise AssertionError("hashed a tensor that has no equal in dtype and shape")

    lone = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=ir.Shape([7]), name="lone")
    group = [
        value("a", np.zeros(3)),
        value("b", np.ones(3)),
        value("c", np.zeros(3)),
        value("d", np.zeros(3, np.int64)),
        value("e", np.zeros((3, 1))),
        ir.Value(name="lone", const_value=lone),
        ir.Value(name="not constant"),
        value("f", np.ones(3)),
    ]
    assert [[v.name for v in same] for same in duplicates(group)] == [["a", "c"], ["b", "f"]]
