"""Where a number that is not finite comes from: a mask's infinity, or a node that goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.liveness import used_values
from aigcc.analysis.streaming.stream import Stream
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.signatures import node_text
from aigcc.ir.text.facts import source_line
from aigcc.ir.weights import constant, is_float

Array = npt.NDArray[Any]


def masked_values(
    module: Module, feeds: Mapping[str, Array], name: str, where: str
) -> frozenset[str]:
    """The values that `name` depends on whose infinities stem from a constant, such as a mask.

    Args:
        module: The model.
        feeds: The sample for which `name` is not finite everywhere.
        name: A value of the main graph.
        where: Names the sample in messages.

    Raises:
        CompileError: a node makes NaN, or infinity from finite numbers; names the first one.
    """
    search = _Search(module, name, where)
    with Stream(module, search.producers) as stream:
        stream.run(feeds, search.look)
    return frozenset(search.masked)


class _Search:
    def __init__(self, module: Module, name: str, where: str) -> None:
        self.where = where
        self.masked: set[str] = set()
        self.producers: dict[str, ir.Node] = {}
        needed = {name}
        for node in reversed(list(module.graph)):
            made = {value.name for value in node.outputs if value.name and _is_tensor(value)}
            if not made.isdisjoint(needed):
                self.producers.update(dict.fromkeys(made, node))
                needed.update(value.name or "" for value in used_values(node))

    def look(self, name: str, array: Array) -> None:
        """Remember a masked value; refuse any other that is not finite."""
        if not is_float(array) or np.isfinite(array).all():
            return
        node = self.producers[name]
        is_nan = bool(np.isnan(array).any())
        if not is_nan and self._reads_infinity(node):
            self.masked.add(name)
            return
        if is_nan:
            _refuse_nan_constants(node)
        count = int((~np.isfinite(array)).sum())
        line = source_line(node.metadata_props)
        raise CompileError(
            f"{count} of {array.size} values of {name!r} are "
            f"{'NaN' if is_nan else 'infinite'}, and nothing before it is",
            at=f"{node_text(node)}{f' from {line}' if line else ''}, {self.where}",
            hint="the model overflows or divides by zero on this sample: check the sample, "
            "or compute this node in a wider type",
        )

    def _reads_infinity(self, node: ir.Node) -> bool:
        if any(value.name in self.masked for value in used_values(node)):
            return True
        tensors = (constant(value) for value in used_values(node))
        return any(
            _is_infinite(tensor.numpy())
            for tensor in (*tensors, *_attributes(node))
            if tensor is not None
        )


def _refuse_nan_constants(node: ir.Node) -> None:
    for value in used_values(node):
        tensor = constant(value)
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        count = int(np.isnan(tensor.numpy()).sum())
        if count:
            raise CompileError(
                f"{count} of {tensor.size} numbers of the weight {value.name!r} are NaN",
                at=node_text(node),
                hint="was the model trained to its end, or converted to a type that overflowed?",
            )


def _attributes(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            yield attribute.as_tensor()


def _is_infinite(array: Array) -> bool:
    return is_float(array) and not np.isfinite(array).all()


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)
