"""What cannot become torch: found by operator, attribute and type before anything is converted."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.fxview.bodies import default_of, is_defined, one_spelling, schema_of
from aigcc.ir.fxview.registry import CONVERTERS, Converter, key
from aigcc.ir.fxview.site import place

Operator = tuple[str, str, int]

NEWEST = 28
"""The opset of the default domain that the converters follow; what came later is not known."""

_LARGEST = 1_000_000
"""To so many nodes a module may come when each call of a function is written out."""

# A hint of opset 1 that memory may be used again.
_IDLE = frozenset({"consumed_inputs"})


def check(model: ir.Model, at: str | None) -> None:
    """Refuse what cannot be converted, all of it at once.

    Args:
        model: With the types that are known.
        at: Where it is from.

    Raises:
        ModelError: names each reason, how many nodes it has, and one of them.
    """
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for graph in _reached(model, at):
        imports = one_spelling(graph.opset_imports)
        for node in graph.all_nodes():
            if node.op_identifier() not in model.functions:
                reason = refusal(node, imports.get(key(node)[0], 1))
                if reason:
                    found[reason].append(node)
    if not found:
        return
    lines = [
        f"{reason}, {len(nodes)} of them, such as {place(nodes[0])}"
        for reason, nodes in sorted(found.items())
    ]
    raise ModelError(
        f"the module cannot become torch: {'; '.join(lines)}",
        at=at,
        hint="aigcc.ir.fxview.registry.converts registers a converter of your own",
    )


def _reached(model: ir.Model, at: str | None) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, and the functions that it calls or that those call.

    Raises:
        ModelError: written out, the calls would be too many.
    """
    sizes: dict[ir.Function | ir.Graph, int] = {}

    def size(graph: ir.Graph | ir.Function) -> int:
        if graph not in sizes:
            sizes[graph] = 0
            callees = (model.functions.get(node.op_identifier()) for node in graph.all_nodes())
            sizes[graph] = sum(1 if callee is None else size(callee) for callee in callees)
        return sizes[graph]

    total = size(model.graph)
    if total > _LARGEST:
        raise ModelError(
            f"the calls of functions come to {total:,} nodes, more than {_LARGEST:,}", at=at
        )
    yield from sizes


def refusal(node: ir.Node, version: int) -> str | None:
    """Why a node, of an opset of its domain, cannot become torch; None if it can, so far."""
    domain, op = key(node)
    name = f"{domain or 'ai.onnx'}::{op}"
    schema = schema_of(domain, op, version)
    if (domain, op) == ("", "Constant"):
        return None
    if not domain and version > NEWEST and not _is_as_before(schema, version):
        return f"{name} of opset {version} is not known, only those up to opset {NEWEST}"
    converter = CONVERTERS.get((domain, op))
    if converter is None:
        return None if is_defined(schema) else f"{name} has no torch form"
    if any(value is not None and value.dtype == ir.DataType.STRING for value in _values(node)):
        return f"{name} of strings, which torch has not"
    count = _most_inputs(converter)
    if len(node.inputs) > count:
        return f"{name} with {len(node.inputs)} inputs, of which {count} are known"
    for attribute in node.attributes.data.values():
        if not _is_followed(attribute, converter, (domain, op, version)):
            return f"{name} with {attribute.name}={_shown(attribute.value)}, which is not followed"
    return None


def _is_as_before(schema: onnx.defs.OpSchema | None, version: int) -> bool:
    """Whether an operator is known not to have changed since the newest opset that is known."""
    is_known = version <= onnx.defs.onnx_opset_version()
    return is_known and schema is not None and schema.since_version <= NEWEST


def _values(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from node.inputs
    yield from node.outputs


def _most_inputs(converter: Converter) -> float:
    """How many inputs a converter can be handed: its parameters but the first, and its settings."""
    parameters = list(inspect.signature(converter.function).parameters.values())[1:]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return float("inf")
    return len(parameters) + len(converter.settings)


def _is_followed(attribute: ir.Attr, converter: Converter, operator: Operator) -> bool:
    """Whether a converter follows an attribute, or that has the value that it has by default."""
    name = attribute.name
    if name in converter.attributes or name in _IDLE or attribute.is_ref():
        return True
    value = _plain(attribute.value)
    if name in converter.neutral:
        return bool(value == converter.neutral[name])
    default = _plain(default_of(*operator, name))
    return default is not None and bool(value == default)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | bytes) else type(value).__name__
