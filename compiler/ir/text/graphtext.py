"""Graphs and nodes as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.text.attributetext import AttributePrinter, Style
from aigcc.ir.text.facts import FactTable, node_facts, node_types
from aigcc.ir.text.lexer import DEEPEST
from aigcc.ir.text.literals import identifier_text, name_text, operator_text
from aigcc.ir.text.records import graph_record, value_record
from aigcc.ir.text.typetext import type_text

WIDTH = 100
_FACT_COLUMN = 60
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class GraphPrinter:
    """Prints graphs of one model; collects the records that are too long for their lines."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._attributes = AttributePrinter(style)
        self._scopes: list[dict[str, ir.Value]] = []
        self.table = FactTable()

    def graph(self, graph: ir.Graph, indent: str = "") -> list[str]:
        """A graph with its signature, as lines that start with `indent`."""
        return self._lines(graph, name_text(graph.name or ""), (), indent)

    def function(self, function: ir.Function) -> list[str]:
        """A function without its header."""
        parameters = function.attributes.values()
        texts = ", ".join(self._attributes.attribute(attr) for attr in parameters)
        name = name_text(function.name)
        return self._lines(
            function.graph, f"{name} <{texts}>" if texts else name, parameters, indent=""
        )

    def body(self, graph: ir.Graph) -> list[str]:
        """A graph without its signature."""
        return self._lines(graph, None, (), indent="")

    def _lines(
        self, graph: ir.Graph, head: str | None, parameters: Iterable[ir.Attr], indent: str
    ) -> list[str]:
        self._enter(graph)
        lines = [] if head is None else self._signature(graph, head, indent)
        lines += self._block(graph, indent)
        lines += self._body(graph, parameters, indent)
        self._scopes.pop()
        return lines

    def _enter(self, graph: ir.Graph) -> None:
        """Open a scope, and see that a name means one value in it."""
        if len(self._scopes) == DEEPEST:
            raise ModelError(f"graphs are nested deeper than {DEEPEST} levels")
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
            type_ = type_text(ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()))
            name = name_text(value.name or "")
            entries.append((f"{type_} {name} = {self._attributes.data(tensor)}", facts))
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
        texts = ", ".join(self._attributes.attribute(attr) for attr in attributes)
        return [f"{start} <{texts}> ({inputs})" if texts else f"{start} ({inputs})"]

    def _attribute_lines(self, attr: ir.Attr, indent: str) -> list[str]:
        """An attribute; one that holds graphs takes several lines."""
        if attr.type not in _GRAPHS or attr.is_ref():
            return [indent + self._attributes.attribute(attr)]
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


def _declaration(value: ir.Value) -> str:
    name = name_text(value.name or "")
    if value.type is None and value.shape is None:
        return name
    return f"{type_text(value.type, value.shape)} {name}"


def _listed(rows: list[tuple[str, str]], indent: str) -> list[str]:
    """Rows with commas between them and facts behind them."""
    lines = []
    for index, (text, facts) in enumerate(rows):
        line = f"{indent}{text}{',' if index + 1 < len(rows) else ''}"
        lines.append(f"{line:<{_FACT_COLUMN}}  # {facts}" if facts else line)
    return lines
