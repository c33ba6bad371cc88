"""Values of two modules that stand for the same thing, and the nodes between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from aigcc.analysis.liveness import used_values
from aigcc.analysis.streaming.plan import constants_of
from aigcc.errors import ModelError
from aigcc.ir.draws import DRAWN, is_inner
from aigcc.ir.module import Module
from aigcc.ir.operators import op_key
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.text.facts import module_path, source_line
from aigcc.ir.weights import constant
from aigcc.passes.quant.quantise import PRECISION
from aigcc.target import node_label

_AROUND = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")
_NARROW = 16  # bits


@dataclasses.dataclass(frozen=True)
class Matched:
    """What matching found.

    Attributes:
        names: Of values that both modules compute, in the order of the rewritten one.
        unlike: Of values that have a name in common, and no type.
    """

    names: list[str]
    unlike: list[str]


@dataclasses.dataclass(frozen=True)
class Segment:
    """The nodes between matched values and the one that they make.

    Attributes:
        nodes: In graph order, constants left out; the last one makes the value.
        reads: The matched values that they start from.
    """

    nodes: tuple[ir.Node, ...]
    reads: tuple[str, ...]


def match(original: Module, other: Module) -> Matched:
    """The values of the main graphs that have the same name and may be compared.

    They are tensors of one type, or of two float types; sizes that both modules state are equal.
    """
    theirs = {value.name: value for value in _computed(original)}
    same = [value for value in _computed(other) if value.name in theirs]
    like = {str(value.name): _compare(theirs[value.name], value) for value in same}
    return Matched([n for n in like if like[n]], [n for n in like if not like[n]])


def typed(module: Module) -> Module:
    """A copy with types and shapes, where these do not contradict each other."""
    made = module.clone()
    try:
        infer_shapes(made.model)
    except ModelError:
        return module
    return made


def _computed(module: Module) -> Iterator[ir.Value]:
    constants = constants_of(module)
    for node in nodes_of(module):
        yield from (v for v in node.outputs if v.name and v.name not in constants)


def _compare(a: ir.Value, b: ir.Value) -> bool:
    if not all(isinstance(value.type, ir.TensorType | None) for value in (a, b)):
        return False
    kinds = {a.dtype, b.dtype} - {None}
    if ir.DataType.STRING in kinds:
        return False
    if len(kinds) > 1 and not all(dtype.is_floating_point() for dtype in kinds if dtype):
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int))
        for x, y in zip(a.shape, b.shape, strict=True)
    )


def nodes_of(module: Module) -> list[ir.Node]:
    """The nodes of the main graph that compute something when it runs."""
    return [node for node in module.graph if node.op_type != "Constant" and not is_inner(node)]


def segments_of(module: Module, names: Collection[str]) -> dict[str, Segment]:
    """By matched value, in graph order, what makes it of the matched ones before it."""
    matched = set(names)
    index = {node: number for number, node in enumerate(module.graph)}
    return {
        value.name: _segment(node, matched, index)
        for node in module.graph
        for value in node.outputs
        if value.name in matched
    }


def _segment(end: ir.Node, matched: Collection[str], index: Mapping[ir.Node, int]) -> Segment:
    found, reads, waiting = {end}, dict[str, None](), [end]
    while waiting:
        for value in used_values(waiting.pop()):
            node = value.producer()
            if node is None or node not in index or node.op_type == "Constant":
                continue
            if value.name in matched:
                reads[str(value.name)] = None
            elif node not in found:
                found.add(node)
                waiting.append(node)
    return Segment(tuple(sorted(found, key=index.__getitem__)), tuple(reads))


def describe(segment: Segment, origin: ir.Node) -> dict[str, Any]:
    """The node of a segment that people look for, in which precision it runs, and where it is from.

    Args:
        segment: Of the rewritten module.
        origin: The node of the original that makes the value.
    """
    node = _main(segment, origin)
    drawn = node.metadata_props.get(DRAWN)
    told = [node.metadata_props, segment.nodes[-1].metadata_props, origin.metadata_props]
    return {
        "node": node_label(node),
        "op": drawn or op_key(node).replace("::", "."),
        "precision": _precision(segment, node),
        "module": next(filter(None, map(module_path, told)), None),
        "source": next(filter(None, map(source_line, told)), None),
    }


def _main(segment: Segment, origin: ir.Node) -> ir.Node:
    """The one that does what the original's does, and not what stands around it."""
    if DRAWN in segment.nodes[-1].metadata_props:
        return segment.nodes[-1]
    for node in reversed(segment.nodes):
        if origin.op_type in node.op_type:
            return node
    node = segment.nodes[-1]
    while node.op_type in _AROUND and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        if before is None or before not in segment.nodes:
            break
        node = before
    return node


def _precision(segment: Segment, main: ir.Node) -> str:
    weights = dict.fromkeys(_stored(segment.nodes))
    activations = dict.fromkeys(_rounded(segment.nodes))
    words = [f"{name} weight" for name in weights]
    words += [f"{name} activation" for name in activations if name not in ("", None)]
    if not words and main.outputs[0].dtype is not None:
        words = [_name(main.outputs[0].dtype)]
    scheme = main.metadata_props.get(PRECISION)
    text = ", ".join(words)
    return f"{scheme}: {text}" if scheme and text else scheme or text


def _stored(nodes: Iterable[ir.Node]) -> Iterator[str]:
    """The narrow types of constant matrices."""
    for node in nodes:
        for value in node.inputs:
            tensor = constant(value)
            if tensor is not None and len(tensor.shape) > 1 and tensor.dtype.bitwidth <= _NARROW:
                yield _name(tensor.dtype)


def _rounded(nodes: Iterable[ir.Node]) -> Iterator[str]:
    """The types that activations are rounded to."""
    for node in nodes:
        if node.op_type == "DynamicQuantizeLinear":
            yield "uint8"
        elif node.op_type == "QuantizeLinear":
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            yield "uint8" if zero is None else _name(zero.dtype)


def _name(dtype: ir.DataType) -> str:
    return "" if dtype == ir.DataType.UNDEFINED else dtype.numpy().name
