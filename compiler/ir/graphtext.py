"""Graphs, nodes and attributes as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.dataref import Place, WeightFile, place_of, reference_text
from aigcc.ir.facts import FactTable, node_facts, node_types
from aigcc.ir.literals import identifier_text, name_text, operator_text, string_text
from aigcc.ir.mapped import SparseTensor
from aigcc.ir.records import graph_record, value_record
from aigcc.ir.tensortext import SparseConstant, elements_text, floats_text
from aigcc.ir.typetext import type_text

WIDTH = 100
_FACT_COLUMN = 60
_DEEPEST = 32  # protobuf refuses graphs that are nested deeper than this
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True)
class Style:
    """What goes into the text.

    Attributes:
        folder: Where the text is going to be: references to data are relative to it.
        data: Takes the weights that are neither inline nor in a file yet.
        inline_limit: Up to how many elements a tensor is printed inline; None: all that no file
            holds.
        brief: Leave out what torch's exporter wrote, except the module path and the source line.
        bare: Leave out node names and all facts but types, and align these.
    """

    folder: Path = field(default_factory=Path)
    data: WeightFile | None = None
    inline_limit: int | None = None
    brief: bool = False
    bare: bool = False


class GraphPrinter:
    """Prints graphs of one model; collects the records that are too long for their lines."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._scopes: list[dict[str, ir.Value]] = []
        self.table = FactTable()

    def graph(self, graph: ir.Graph, indent: str = "") -> list[str]:
        """A graph with its signature, as lines that start with `indent`."""
        self._enter(graph)
        lines = self._signature(graph, name_text(graph.name or ""), indent)
        lines += self._block(graph, indent)
        lines += self._body(graph, (), indent)
        self._scopes.pop()
        return lines

    def function(self, function: ir.Function) -> list[str]:
        """A function without its header."""
        parameters = function.attributes.values()
        texts = ", ".join(self._attribute(attr) for attr in parameters)
        name = name_text(function.name) + (f" <{texts}>" if texts else "")
        self._enter(function.graph)
        lines = self._signature(function.graph, name, "")
        lines += self._block(function.graph, "")
        lines += self._body(function.graph, parameters, "")
        self._scopes.pop()
        return lines

    def body(self, graph: ir.Graph) -> list[str]:
        """A graph without its signature."""
        self._enter(graph)
        lines = [*self._block(graph, ""), *self._body(graph, (), "")]
        self._scopes.pop()
        return lines

    def _enter(self, graph: ir.Graph) -> None:
        """Open a scope, and see that a name means one value in it."""
        if len(self._scopes) == _DEEPEST:
            raise ModelError(f"graphs are nested deeper than {_DEEPEST} levels")
        scope: dict[str, ir.Value] = {}
        produced = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *produced):
            if value.name is None:
                raise ModelError("a value has no name", at=f"graph {graph.name!r}: {value!r}")
            if value.name and scope.setdefault(value.name, value) is not value:
                raise ModelError(
                    f"two values are called {value.name!r}", at=f"graph {graph.name!r}"
                )
        self._scopes.append(scope)

    def _name(self, value: ir.Value | None, node: ir.Node) -> str:
        """The name of an input, which must not mean another value where it is used."""
        if value is None or not value.name:
            return '""'
        for scope in reversed(self._scopes):
            if value.name in scope:
                if scope[value.name] is value:
                    break
                raise ModelError(
                    f"two values are called {value.name!r}, and the node uses the hidden one",
                    at=f"node {node.name!r} ({node.op_type})",
                )
        return name_text(value.name)

    def _signature(self, graph: ir.Graph, head: str, indent: str) -> list[str]:
        """`name (inputs) => (outputs)` in a line, or a value a line if that is too long."""
        inputs = [
            (_declaration(value), "" if value.is_initializer() else self._value_facts(value))
            for value in graph.inputs
        ]
        outputs = [
            (_declaration(value), "" if self._is_known(value) else self._value_facts(value))
            for value in graph.outputs
        ]
        groups = [", ".join(text for text, _ in group) for group in (inputs, outputs)]
        line = f"{indent}{head} ({groups[0]}) => ({groups[1]})"
        if len(line) <= WIDTH and not any(facts for _, facts in inputs + outputs):
            return [line]
        lines = [f"{indent}{head} "]
        for rows, arrow in ((inputs, " => "), (outputs, "")):
            lines[-1] += "("
            lines += [*_listed(rows, indent + "  "), indent] if rows else []
            lines[-1] += ")" + arrow
        return lines

    def _is_known(self, value: ir.Value) -> bool:
        return self._scopes[-1].get(value.name or "") is value

    def _block(self, graph: ir.Graph, indent: str) -> list[str]:
        """The initializers, one a line between `<` and `>`."""
        entries = []
        for value in graph.initializers.values():
            facts = self._value_facts(value)
            tensor = value.const_value
            if tensor is None:
                entries.append((f"{_declaration(value)} = ...", facts))
                continue
            type_ = type_text(ir.TensorType(tensor.dtype), _shape(tensor))
            name = name_text(value.name or "")
            entries.append((f"{type_} {name} = {self._data(tensor)}", facts))
            declared = type_text(value.type, value.shape)
            if declared != type_ and not value.is_graph_input():
                entries.append((f"{declared} {name}", ""))
        if not entries:
            return []
        return [f"{indent}<", *_listed(entries, indent + "  "), f"{indent}>"]

    def _body(self, graph: ir.Graph, parameters: Iterable[ir.Attr], indent: str) -> list[str]:
        rows: list[tuple[str, str]] = []
        for node in graph:
            *lines, last = self._node(node, indent + "  ")
            rows += [(line, "") for line in lines]
            facts = node_types(node) if self._style.bare else self._node_facts(node)
            rows.append((last, facts))
        column = _FACT_COLUMN
        if self._style.bare:
            column = min(column, max((len(line) for line, facts in rows if facts), default=0))
        record = graph_record(graph, parameters, self._style.brief)
        own = "" if self._style.bare else self.table.field(record)
        return [
            f"{indent}{{  # {own}" if own else f"{indent}{{",
            *(f"{line:<{column}}  # {facts}" if facts else line for line, facts in rows),
            f"{indent}}}",
        ]

    def _node_facts(self, node: ir.Node) -> str:
        if node.device_configurations:
            raise ModelError(
                "device configurations have no text form", at=f"node {node.name!r} ({node.op_type})"
            )
        return node_facts(node, self.table, self._style.brief)

    def _value_facts(self, value: ir.Value) -> str:
        if self._style.bare:
            return ""
        return self.table.field(value_record(value, self._style.brief))

    def _node(self, node: ir.Node, indent: str) -> list[str]:
        """`[name] outputs = domain.Op:overload <attributes> (inputs)`."""
        head = f"[{name_text(node.name)}] " if node.name and not self._style.bare else ""
        outputs = ", ".join(name_text(value.name or "") for value in node.outputs)
        operator = operator_text(node.domain, node.op_type, node.overload)
        inputs = ", ".join(self._name(value, node) for value in node.inputs)
        start = f"{indent}{head}{outputs} = {operator}"
        attributes = list(node.attributes.values())
        for attr in attributes:
            if attr.type == ir.AttributeType.UNDEFINED and not attr.is_ref():
                raise ModelError(
                    f"the attribute {attr.name!r} has no type and no value",
                    at=f"node {node.name!r} ({node.op_type})",
                )
        if any(attr.type in _GRAPHS and not attr.is_ref() for attr in attributes):
            lines = [f"{start} ({inputs}) <"]
            for attr in attributes:
                lines += self._attribute_lines(attr, indent + "  ")
                lines[-1] += ","
            lines[-1] = lines[-1].removesuffix(",")
            return [*lines, f"{indent}>"]
        texts = ", ".join(self._attribute(attr) for attr in attributes)
        return [f"{start} <{texts}> ({inputs})" if texts else f"{start} ({inputs})"]

    def _attribute_lines(self, attr: ir.Attr, indent: str) -> list[str]:
        """An attribute; one that holds graphs takes several lines."""
        if attr.type not in _GRAPHS or attr.is_ref():
            return [indent + self._attribute(attr)]
        head = f"{indent}{identifier_text(attr.name)}: {attr.type.name.lower()} = "
        if attr.type == ir.AttributeType.GRAPH:
            graph = attr.as_graph()
            first, *rest = self.graph(graph, indent)
            return [head + first.lstrip(), *rest]
        lines = [head + "["]
        for graph in attr.as_graphs():
            lines += self.graph(graph, indent + "  ")
            lines[-1] += ","
        lines[-1] = lines[-1].removesuffix(",")
        return [*lines, f"{indent}]"]

    def _attribute(self, attr: ir.Attr) -> str:
        """`name: type = value`; a function's attribute may lack the value, or both."""
        text = identifier_text(attr.name)
        if attr.type != ir.AttributeType.UNDEFINED:
            text += f": {attr.type.name.lower()}"
        if attr.ref_attr_name is not None:
            return f"{text} = @{identifier_text(attr.ref_attr_name)}"
        return text if attr.value is None else f"{text} = {self._value(attr)}"

    def _value(self, attr: ir.Attr) -> str:
        kind = attr.type.name
        plural = kind.endswith("S")
        values = attr.value if plural else (attr.value,)
        if kind in ("INT", "INTS"):
            texts = [str(value) for value in values]
        elif kind in ("FLOAT", "FLOATS"):
            with np.errstate(over="ignore"):
                texts = floats_text(np.array(values, np.float32))
        elif kind in ("STRING", "STRINGS"):
            texts = [string_text(value) for value in values]
        elif kind in ("TYPE_PROTO", "TYPE_PROTOS"):
            texts = [type_text(value.type, value.shape) for value in values]
        elif kind in ("SPARSE_TENSOR", "SPARSE_TENSORS"):
            texts = [self._sparse_constant(value) for value in values]
        else:
            texts = [self._tensor(value) for value in values]
        return f"[{', '.join(texts)}]" if plural else texts[0]

    def _tensor(self, tensor: ir.TensorProtocol) -> str:
        """A tensor in an attribute: `float[2] {1, 2}`."""
        text = type_text(ir.TensorType(tensor.dtype), _shape(tensor))
        if tensor.name:
            text += f" {name_text(tensor.name)}"
        data = self._data(tensor)
        return f"{text} {data}" if data.startswith("{") else f"{text} = {data}"

    def _sparse_constant(self, value: Any) -> str:
        type_ = type_text(ir.TensorType(value.values.dtype), ir.Shape(value.dims))
        return f"{type_} = {self._sparse(value)}"

    def _sparse(self, value: SparseTensor | SparseConstant) -> str:
        return f"sparse {{{self._tensor(value.values)}, {self._tensor(value.indices)}}}"

    def _data(self, tensor: ir.TensorProtocol) -> str:
        """The elements of a tensor, or a reference to where they are, or `...`."""
        if isinstance(tensor, SparseTensor):
            return self._sparse(tensor)
        style = self._style
        beside = style.data.path if style.data is not None else None
        place = place_of(tensor, style.inline_limit, beside)
        if place is Place.INLINE:
            return f"{{{', '.join(elements_text(tensor))}}}"
        if isinstance(tensor, ir.ExternalTensor) and place is Place.ITS_FILE:
            return reference_text(tensor, style.folder)
        if style.data is None:
            return "..."
        return reference_text(style.data.add(tensor), style.folder)


def _declaration(value: ir.Value) -> str:
    name = name_text(value.name or "")
    if value.type is None and value.shape is None:
        return name
    return f"{type_text(value.type, value.shape)} {name}"


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def _listed(rows: list[tuple[str, str]], indent: str) -> list[str]:
    """Rows with commas between them and facts behind them."""
    lines = []
    for index, (text, facts) in enumerate(rows):
        line = f"{indent}{text}{',' if index + 1 < len(rows) else ''}"
        lines.append(f"{line:<{_FACT_COLUMN}}  # {facts}" if facts else line)
    return lines
