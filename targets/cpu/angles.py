"""What stays in float32 whatever precision OpenVINO is asked for: what sines are taken of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_PERIODIC = ("Cos", "Sin")
_SOURCES = ("Constant", "Convolution", "MatMul", "Parameter")
_MARK = {"name": "precise", "version": "0"}


def save_model(model: Any, path: Path) -> None:
    """Write an `openvino.Model` with Sin and Cos, and all that leads to them, marked as float32.

    A diffusion model's time step or a position is a large number there: 842 is 840 in bfloat16, and
    its sine another one. `precise` is OpenVINO's own mark for operations that bear no narrow type;
    Python cannot set it, but a model.xml may say it.

    Args:
        model: Squeeze and Unsqueeze on the way to a sine become Reshape, which keeps the mark.
        path: The model.xml to write; weights go beside it.
    """
    import openvino

    kept = {_with_mark(op).get_friendly_name() for op in list(_angles(model))}
    openvino.save_model(model, path, compress_to_fp16=False)
    if not kept:
        return
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("layers/layer"):
        if layer.get("name") not in kept:
            continue
        facts = layer.find("rt_info")
        if facts is None:
            facts = ElementTree.SubElement(layer, "rt_info")
        ElementTree.SubElement(facts, "attribute", _MARK)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _angles(model: Any) -> Iterator[Any]:
    """Sin and Cos, and all between them and the last product or input."""
    pending = [op for op in model.get_ops() if op.get_type_name() in _PERIODIC]
    seen = set()
    while pending:
        op = pending.pop()
        if op.get_friendly_name() in seen or op.get_type_name() in _SOURCES:
            continue
        seen.add(op.get_friendly_name())
        pending += [port.get_source_output().get_node() for port in op.inputs()]
        yield op


def _with_mark(op: Any) -> Any:
    """The operation, or one in its place that does not lose its mark when it is compiled."""
    from openvino import opset13 as ops

    if op.get_type_name() not in ("Squeeze", "Unsqueeze"):
        return op
    source, target = op.input_value(0).get_partial_shape(), op.output(0).get_partial_shape()
    if source.rank.is_dynamic or target.rank.is_dynamic:
        return op
    sizes = []
    for index, size in enumerate(target):
        if size.is_static:
            sizes.append(size.get_length())
        else:
            same = index < len(source) and list(source)[: index + 1] == list(target)[: index + 1]
            sizes.append(0 if same else -1)
    if sizes.count(-1) > 1:
        return op
    reshape = ops.reshape(op.input_value(0), ops.constant(sizes, dtype="int64"), special_zero=True)
    reshape.set_friendly_name(op.get_friendly_name())
    op.output(0).replace(reshape.output(0))
    return reshape
