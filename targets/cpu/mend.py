"""What OpenVINO's reader of ONNX, or its CPU plugin, gets wrong, put right in OpenVINO's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from aigcc.targets.cpu.kernels import OWN_NAMES
from aigcc.targets.cpu.quotients import fold_quotient, mend_quotient
from aigcc.targets.cpu.signs import mend_signs

_FLOAT = float(np.finfo(np.float32).max)
_LARGEST = {"bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), "f16": _FLOAT, "f32": _FLOAT}


def read_model(core: Any, path: Path) -> Any:
    """The `openvino.Model` of a .xml file, or of a .onnx file as ONNX means it.

    Raises:
        RuntimeError: OpenVINO refuses it.
    """
    model = core.read_model(path)
    if path.suffix == ".onnx":
        for part in _with_bodies(model):
            for op in part.get_ordered_ops():
                if op.get_type_name() in _MENDS:
                    _MENDS[op.get_type_name()](op)
        _add_inputs(model, path)
    return model


def _with_bodies(model: Any) -> Iterator[Any]:
    """A model, and those inside its branches and loops."""
    yield model
    for op in model.get_ops():
        if op.get_type_name() == "If":
            bodies = [op.get_then_body(), op.get_else_body()]
        elif op.get_type_name() in ("Loop", "TensorIterator"):
            bodies = [op.get_function()]
        else:
            continue
        for body in bodies:
            yield from _with_bodies(body)


def _add_inputs(model: Any, path: Path) -> None:
    """Inputs that are always empty, which the reader leaves out: whoever feeds them would fail."""
    import openvino

    known = {name for port in model.inputs for name in port.names}
    graph = onnx.load(path, load_external_data=False).graph
    fixed = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in known or value.name in fixed:
            continue
        name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        kind = getattr(openvino.Type, OWN_NAMES[name])
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else -1
            for dim in value.type.tensor_type.shape.dim
        ]
        parameter = openvino.op.Parameter(kind, openvino.PartialShape(sizes))
        parameter.set_friendly_name(value.name)
        parameter.output(0).get_tensor().set_names({value.name})
        model.add_parameters([parameter])


def _drop_empty_windows(op: Any) -> None:
    """MaxPool with ceil_mode has no window that begins behind the last number and its padding."""
    from openvino import opset14

    facts = op.get_attributes()
    if facts["rounding_type"] == "ceil":
        pool = opset14.max_pool(
            op.input_value(0),
            facts["strides"],
            facts["dilations"],
            facts["pads_begin"],
            facts["pads_end"],
            facts["kernel"],
            "ceil_torch",
            facts["auto_pad"],
            facts["index_element_type"],
            facts["axis"],
        )
        _replace(op, pool.outputs())


def _take_first_of_equals(op: Any) -> None:
    """TopK takes the first of equal numbers, in their order."""
    from openvino import opset11

    facts = op.get_attributes()
    top = opset11.topk(
        op.input_value(0),
        op.input_value(1),
        facts["axis"],
        facts["mode"],
        "value" if facts["sort"] == "none" else facts["sort"],
        facts["index_element_type"],
        stable=facts["sort"] != "index",
    )
    _replace(op, top.outputs())


def _keep_the_limit(op: Any) -> None:
    """NonMaxSuppression keeps what overlaps just as much as its limit; OpenVINO drops it."""
    from openvino import opset13

    if op.get_input_size() < 4:
        return
    limit = op.input_value(3)
    if limit.get_node().get_type_name() == "Constant":
        data = limit.get_node().get_data()
        above = opset13.constant(np.nextafter(data, np.float32(np.inf), dtype=np.float32))
    else:
        above = opset13.multiply(
            limit, opset13.constant(np.nextafter(np.float32(1), np.float32(2)))
        )
    op.input(3).replace_source_output(above.output(0))


def _restore_infinity(op: Any) -> None:
    """ReduceMax and ReduceMin begin with the largest finite number instead of infinity."""
    from openvino import opset13

    result = op.output(0)
    kind = result.get_element_type()
    if kind.get_type_name() not in _LARGEST:
        return
    users, names = list(result.get_target_inputs()), result.get_names()
    wide = result if kind.get_type_name() == "f32" else opset13.convert(result, "f32").output(0)
    largest = _LARGEST[kind.get_type_name()]
    if op.get_type_name() == "ReduceMax":
        reached = opset13.less_equal(wide, opset13.constant(np.float32(-largest)))
        beyond = opset13.constant(np.float32(-np.inf))
    else:
        reached = opset13.greater_equal(wide, opset13.constant(np.float32(largest)))
        beyond = opset13.constant(np.float32(np.inf))
    right = opset13.select(reached, beyond, wide).output(0)
    if wide != result:
        right = opset13.convert(right, kind).output(0)
    for user in users:
        user.replace_source_output(right)
    result.get_tensor().set_names(set())
    right.get_tensor().set_names(names)


def _replace(op: Any, results: Sequence[Any]) -> None:
    results[0].get_node().set_friendly_name(op.get_friendly_name())
    for old, new in zip(op.outputs(), results, strict=True):
        old.replace(new)


_MENDS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(("Ceiling", "Convert", "Floor", "Round"), mend_quotient),
    "Concat": mend_signs,
    "Divide": fold_quotient,
    "MaxPool": _drop_empty_windows,
    "NonMaxSuppression": _keep_the_limit,
    "ReduceMax": _restore_infinity,
    "ReduceMin": _restore_infinity,
    "TopK": _take_first_of_equals,
}
