"""What stays in float32 whatever precision OpenVINO is asked for: angles, and sums of squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_PERIODIC = ("Cos", "Sin")
_SQUARES = "ReduceL2"
_SOURCES = ("Constant", "Convolution", "MatMul", "Parameter")
_MARK = {"name": "precise", "version": "0"}


def save_model(model: Any, path: Path) -> None:
    """Write an `openvino.Model` with some operations marked as float32.

    Sin and Cos, and all that leads to them: a diffusion model's time step or a position is a large
    number there, 842 is 840 in bfloat16, and its sine another one. And what is computed from sums
    of squares, of which a variance is a small difference. `precise` is OpenVINO's own mark for
    operations that bear no narrow type; Python cannot set it, but a model.xml may say it.

    Args:
        model: Squeeze and Unsqueeze on the way to a sine become Reshape, which keeps the mark.
        path: The model.xml to write; weights go beside it.
    """
    import openvino

    precise = [*_angles(model), *_variances(model)]
    kept = {_with_mark(op).get_friendly_name() for op in precise}
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
    starts = [op for op in model.get_ops() if op.get_type_name() in _PERIODIC]
    return _reached(starts, _producers, lambda op: True)


def _variances(model: Any) -> Iterator[Any]:
    """What sums of squares become, while it has one number for many places.

    And what that is computed with, down to other sums: those themselves read large tensors, and
    write float32 by themselves.
    """
    squares = [op for op in model.get_ops() if op.get_type_name() == _SQUARES]
    starts = [user for op in squares for user in _users(op)]
    return _reached(starts, lambda op: [*_users(op), *_producers(op)], _is_narrow)


def _reached(
    starts: Iterable[Any],
    neighbours: Callable[[Any], Iterable[Any]],
    is_wanted: Callable[[Any], bool],
) -> Iterator[Any]:
    """The operations that lead on from some, each once; it ends at products and inputs."""
    pending, seen = list(starts), set()
    while pending:
        op = pending.pop()
        name = op.get_friendly_name()
        if name in seen or op.get_type_name() in _SOURCES or not is_wanted(op):
            continue
        seen.add(name)
        pending += neighbours(op)
        yield op


def _users(op: Any) -> list[Any]:
    return [port.get_node() for port in op.output(0).get_target_inputs()]


def _producers(op: Any) -> list[Any]:
    return [port.get_source_output().get_node() for port in op.inputs()]


def _is_narrow(op: Any) -> bool:
    """Whether an operation reads and writes nothing that has a last axis of several numbers."""
    if op.get_output_size() != 1:
        return False
    shapes = [op.output(0).get_partial_shape(), *(p.get_partial_shape() for p in op.inputs()[:1])]
    return all(s.rank.is_static and (not len(s) or s[len(s) - 1] == 1) for s in shapes)


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
