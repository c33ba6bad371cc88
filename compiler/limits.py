"""Conditions on nodes that a table of operators cannot say: the `limits` of `capabilities.toml`.

`limits` maps an operator to alternatives, and a node must fulfil one of them. An alternative is a
table of conditions: `inputs` and `outputs` bound how many are used; `same_shape` and `same_dtype`
list positions of inputs that must agree; `absent`, `constant` and `static` those that must be left
out, that no input of the module may change, or whose shape must be known; `dtypes` lists the
element types of the first input, and `ranks` its numbers of dims; any other key is an attribute
with the values that it may have, where an empty list forbids it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from aigcc.ir.weights import constant

_FORMS: dict[str, tuple[str, Callable[[ir.Value], bool]]] = {
    "absent": ("be left out", lambda value: False),
    "constant": ("be a constant", lambda value: constant(value) is not None),
    "static": ("have a known shape", lambda v: v.shape is not None and v.shape.is_static()),
}

Limits = Sequence[Mapping[str, Any]]


def broken_limit(node: ir.Node, alternatives: Limits, opset: int) -> str:
    """Why a node fulfils none of the alternatives; empty where it fulfils one."""
    reasons = [_unmet(node, conditions, opset) for conditions in alternatives]
    return "" if "" in reasons else "; or ".join(dict.fromkeys(reasons))


def _unmet(node: ir.Node, conditions: Mapping[str, Any], opset: int) -> str:
    for key, wanted in conditions.items():
        if key in ("inputs", "outputs"):
            reason = _too_many(node, key, wanted)
        elif key in ("same_shape", "same_dtype"):
            reason = _differ(node, key.removeprefix("same_"), wanted)
        elif key in _FORMS:
            reason = _misshapen(node, key, wanted)
        elif key == "ranks":
            shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
            fits = shape is None or len(shape) in wanted
            reason = "" if fits else f"its input must have {_listed(wanted)} dims"
        elif key == "dtypes":
            dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
            fits = dtype is None or dtype.name.lower() in wanted
            reason = "" if fits else f"its input must be {_listed(wanted)}"
        else:
            reason = _bad_attribute(node, key, wanted, opset)
        if reason:
            return reason
    return ""


def _too_many(node: ir.Node, noun: str, most: int) -> str:
    values = node.inputs if noun == "inputs" else node.outputs
    used = [
        index
        for index, value in enumerate(values)
        if value is not None and (noun == "inputs" or value.uses() or value.is_graph_output())
    ]
    return "" if max(used, default=-1) < most else f"only the first {most} {noun} may be used"


def _misshapen(node: ir.Node, form: str, positions: Sequence[int]) -> str:
    words, fits = _FORMS[form]
    for position, value in enumerate(node.inputs):
        if position in positions and value is not None and not fits(value):
            return f"its input {value.name!r} must {words}"
    return ""


def _differ(node: ir.Node, what: str, positions: Sequence[int]) -> str:
    found = [
        getattr(node.inputs[position], what)
        for position in positions
        if position < len(node.inputs) and node.inputs[position] is not None
    ]
    known = [item for item in found if item is not None]
    same = all(item == known[0] for item in known)
    return "" if same else f"inputs {_listed(positions)} must have the same {what}"


def _bad_attribute(node: ir.Node, name: str, allowed: Sequence[Any], opset: int) -> str:
    given = node.attributes.get(name)
    if given is None and not allowed:
        return ""
    if given is None:
        value = _default(node, name, opset)
    elif given.is_ref():
        return ""
    else:
        value = given.value
    if value is None:
        return ""
    items = value if isinstance(value, list | tuple) else [value]
    if all(item in allowed for item in items):
        return ""
    return f"{name} must be {_listed(allowed)}" if allowed else f"{name} must be left out"


def _default(node: ir.Node, name: str, opset: int) -> Any:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset):
        return None
    attribute = onnx.defs.get_schema(node.op_type, opset).attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    default = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(default, list):
        return [item.decode() if isinstance(item, bytes) else item for item in default]
    return default.decode() if isinstance(default, bytes) else default


def _listed(items: Sequence[Any]) -> str:
    words = [str(item) for item in items]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"
