"""Walks over a whole model: its graphs, and the places where a tensor can sit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import onnx
import onnx_ir

_TENSORS = (onnx_ir.AttributeType.TENSOR, onnx_ir.AttributeType.TENSORS)


@dataclass(frozen=True)
class Slot:
    """One place that holds a tensor.

    Attributes:
        tensor: What is there.
        where: The place, in words.
        value: The initializer that the tensor belongs to, or None if it is in an attribute.
        put: Put another tensor there.
        restore: Put back what was there when the slot was found.
    """

    tensor: onnx_ir.TensorProtocol
    where: str
    value: onnx_ir.Value | None
    put: Callable[[onnx_ir.TensorProtocol], None]
    restore: Callable[[], None]


def slots(model: onnx_ir.Model) -> Iterator[Slot]:
    """Every tensor of a model: main graph, functions, and all their sub-graphs."""
    for function in model.functions.values():
        yield from _in_attributes(function.attributes, f"function {function.name!r}")
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                put = partial(setattr, value, "const_value")
                restore = partial(put, value.const_value)
                yield Slot(value.const_value, f"initializer {value.name!r}", value, put, restore)
        for node in graph:
            yield from _in_attributes(node.attributes, f"node {node.name!r} ({node.op_type})")


def graphs(model: onnx_ir.Model) -> list[onnx_ir.Graph]:
    """The main graph, the functions' graphs, and the sub-graphs of all of them."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    return [graph for root in roots for graph in (root, *root.subgraphs())]


def graph_protos(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all sub-graphs, those of functions too."""
    waiting = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        if isinstance(graph, onnx.GraphProto):
            yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting += attribute.graphs


def _in_attributes(attributes: MutableMapping[str, onnx_ir.Attr], owner: str) -> Iterator[Slot]:
    for name, attribute in list(attributes.items()):
        if attribute.type not in _TENSORS or attribute.value is None:
            continue
        # not as_tensor(), whose check against the protocol evaluates every property
        single = attribute.type == onnx_ir.AttributeType.TENSOR
        tensors = (attribute.value,) if single else attribute.value
        for index, tensor in enumerate(tensors):
            yield Slot(
                tensor,
                f"attribute {name!r} of {owner}",
                None,
                partial(_put_in_attribute, attributes, name, index),
                partial(attributes.__setitem__, name, attribute),
            )


def _put_in_attribute(
    attributes: MutableMapping[str, onnx_ir.Attr],
    name: str,
    index: int,
    tensor: onnx_ir.TensorProtocol,
) -> None:
    old = attributes[name]
    value = tensor
    if old.type == onnx_ir.AttributeType.TENSORS:
        tensors = list(old.value)
        tensors[index] = tensor
        value = cast(onnx_ir.TensorProtocol, tensors)
    attributes[name] = onnx_ir.Attr(name, old.type, value, doc_string=old.doc_string)
