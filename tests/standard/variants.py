"""The same case in another form: constants in the place of inputs, all nodes in a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from .cases import Case

FUNCTION = "whole"
DOMAIN = "own"


def plain(case: Case) -> Case:
    """The case as it is."""
    return case


def constant_tail(case: Case) -> Case | None:
    """All inputs but the first are constants; None where there are none."""
    return _with_constants(case, list(case.feeds)[1:])


def constant_head(case: Case) -> Case | None:
    """The first input is a constant; None where it is no tensor."""
    return _with_constants(case, list(case.feeds)[:1])


def constant_all(case: Case) -> Case | None:
    """All inputs are constants; None where that is one input alone."""
    return _with_constants(case, list(case.feeds)) if len(case.feeds) > 1 else None


def _with_constants(case: Case, names: Iterable[str]) -> Case | None:
    fixed = [name for name in names if isinstance(case.feeds[name], np.ndarray)]
    if not fixed:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)  # before, initializers had to be inputs as well
    kept = [value for value in model.graph.input if value.name not in fixed]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name in fixed:
        model.graph.initializer.append(_tensor(case.feeds[name], name, types[name]))
    feeds = {name: feed for name, feed in case.feeds.items() if name not in fixed}
    return dataclasses.replace(case, model=model, feeds=feeds)


def _tensor(array: np.ndarray, name: str, kind: int) -> onnx.TensorProto:
    if kind == onnx.TensorProto.STRING:
        array = np.asarray(array, object)
    return numpy_helper.from_array(array, name)


def in_function(case: Case) -> Case | None:
    """All nodes are the body of a function, which says nothing of the types in it."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    if not graph.node or graph.sparse_initializer:
        return None
    inputs = [value.name for value in graph.input]
    inputs += [tensor.name for tensor in graph.initializer if tensor.name not in inputs]
    outputs = [value.name for value in graph.output]
    if set(inputs) & set(outputs):
        return None
    body = onnx.helper.make_function(
        DOMAIN, FUNCTION, inputs, outputs, list(graph.node), list(model.opset_import)
    )
    call = onnx.helper.make_node(FUNCTION, inputs, outputs, domain=DOMAIN)
    del graph.node[:], graph.value_info[:]
    graph.node.append(call)
    model.functions.append(body)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    model.ir_version = max(model.ir_version, 8)  # the first that has functions
    return dataclasses.replace(case, model=model)


VARIANTS: dict[str, Callable[[Case], Case | None]] = {
    "plain": plain,
    "constant tail": constant_tail,
    "constant head": constant_head,
    "constants": constant_all,
    "function": in_function,
}
