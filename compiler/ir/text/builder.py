"""Build the IR from the syntax tree: resolve names, make values, nodes and graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from aigcc.errors import ModelError, did_you_mean
from aigcc.ir.text.facts import Facts
from aigcc.ir.text.lexer import Source
from aigcc.ir.text.syntax import (
    FunctionText,
    GraphsText,
    GraphText,
    ModelText,
    Name,
    NodeText,
    ValueText,
)
from aigcc.ir.text.typetext import type_text

_LONGEST_HINT = 200


def build_model(tree: ModelText, source: Source) -> ir.Model:
    """The model that a syntax tree describes.

    Raises:
        ModelError: A name is defined twice or not at all, or two places give a value two types.
    """
    header = tree.header
    functions: dict[ir.OperatorIdentifier, ir.Function] = {}
    for text in tree.functions:
        function = _function(text, source)
        if function.identifier() in functions:
            raise source.error(text.at, f"the function {text.graph.name!r} is defined twice")
        functions[function.identifier()] = function
    graph = _GraphBuilder(source, []).build(tree.graph)
    graph.opset_imports.update(header.opset_import or {})
    assert header.ir_version is not None
    return ir.Model(
        graph,
        ir_version=header.ir_version,
        producer_name=header.producer_name,
        producer_version=header.producer_version,
        domain=header.domain,
        model_version=header.model_version,
        doc_string=header.doc_string,
        functions=list(functions.values()),
        metadata_props=header.metadata_props,
    )


def _function(text: FunctionText, source: Source) -> ir.Function:
    header = text.header
    graph = _GraphBuilder(source, []).build(text.graph)
    graph.opset_imports.update(header.opset_import or {})
    if header.doc_string is not None:
        graph.doc_string = header.doc_string
    graph.metadata_props.update(header.metadata_props or {})
    graph.name = None
    function = ir.Function(
        header.domain or "",
        text.graph.name,
        header.overload or "",
        graph=graph,
        attributes=text.attributes,
    )
    if text.graph.facts:
        _restore_attributes(text.graph.facts, function.attributes, source)
    return function


class _GraphBuilder:
    """Builds one graph.

    Args:
        source: The text, for errors.
        outer: The values of the graphs around this one, outermost first.
    """

    def __init__(self, source: Source, outer: list[dict[str, ir.Value]]) -> None:
        self._source = source
        self._values: dict[str, ir.Value] = {}
        self._scopes = [*outer, self._values]
        self._defined_at: dict[str, int] = {}
        self._typed_by_data: set[str] = set()

    def build(self, text: GraphText) -> ir.Graph:
        """The graph. Nodes may stand before those whose outputs they use."""
        inputs = [self._define(declared) for declared in text.inputs]
        defaults = [value for value in inputs if value.const_value is not None]
        initializers = defaults + self._initializers(text.entries)
        produced = [self._outputs_of(node) for node in text.nodes]
        for entry in text.entries:
            if entry.tensor is None:
                self._value_info(entry)
        nodes = [
            self._node(node, outputs) for node, outputs in zip(text.nodes, produced, strict=True)
        ]
        graph = ir.Graph(
            inputs,
            [self._graph_output(declared) for declared in text.outputs],
            nodes=nodes,
            initializers=initializers,
            name=text.name or None,
        )
        if text.facts:
            text.facts.record.restore(graph)
        return graph

    def _define(self, declared: ValueText) -> ir.Value:
        """A new value for an input or an initializer."""
        if not declared.name.text:
            raise self._source.error(declared.name.at, "an input or an initializer needs a name")
        value = self._new(declared.name)
        if declared.typed is not None:
            value.type, value.shape = declared.typed.type, declared.typed.shape
        value.const_value = declared.tensor
        self._restore(value, declared.facts)
        return value

    def _new(self, name: Name) -> ir.Value:
        if name.text in self._values:
            line = self._source.line(self._defined_at[name.text])
            raise self._source.error(
                name.at, f"{name.text!r} is defined twice", hint=f"it is defined in line {line}"
            )
        value = ir.Value(name=name.text)
        if name.text:
            self._values[name.text] = value
            self._defined_at[name.text] = name.at
        return value

    def _initializers(self, entries: Iterable[ValueText]) -> list[ir.Value]:
        """The values of the entries with data, some of which are defaults of inputs."""
        values = []
        for entry in entries:
            if entry.tensor is None:
                continue
            value = self._values.get(entry.name.text)
            if value is None or value.const_value is not None:
                value = self._define(entry)
                self._typed_by_data.add(entry.name.text)
            else:
                value.const_value = entry.tensor
                self._restore(value, entry.facts)
            values.append(value)
        return values

    def _outputs_of(self, node: NodeText) -> list[ir.Value]:
        outputs = [self._new(name) for name in node.outputs]
        if node.facts:
            for value, typed in zip(outputs, node.facts.types, strict=False):
                value.type, value.shape = typed.type, typed.shape
            named = {value.name: value for value in outputs}
            for name, record in node.facts.record.outputs.items():
                if name not in named:
                    raise self._source.error(node.facts.at, f"the node has no output {name!r}")
                record.restore(named[name])
        return outputs

    def _value_info(self, entry: ValueText) -> None:
        """Give the type in a `<...>` block to the value that it names."""
        value = self._values.get(entry.name.text)
        if value is None:
            raise self._undefined(entry.name, [self._values])
        if entry.name.text in self._typed_by_data and entry.typed is not None:
            value.type, value.shape = entry.typed.type, entry.typed.shape
        else:
            self._check_type(value, entry)
        self._restore(value, entry.facts)

    def _check_type(self, value: ir.Value, declared: ValueText) -> None:
        """Give a value its type, or see that it has the same type already."""
        if declared.typed is None:
            return
        if value.type is None and value.shape is None:
            value.type, value.shape = declared.typed.type, declared.typed.shape
        known = type_text(value.type, value.shape)
        said = type_text(declared.typed.type, declared.typed.shape)
        if known != said:
            raise self._source.error(
                declared.name.at,
                f"{value.name!r} is {said} here and {known} where it is defined",
                hint="change the fact after the node and this type together, or drop the fact",
            )

    def _graph_output(self, declared: ValueText) -> ir.Value:
        value = self._values.get(declared.name.text)
        if value is None:
            if not any(declared.name.text in scope for scope in self._scopes):
                raise self._undefined(declared.name, self._scopes)
            # As onnx_ir has it: a graph owns its outputs, so an outer value cannot be one.
            value = ir.Value(name=declared.name.text)
        self._check_type(value, declared)
        self._restore(value, declared.facts)
        return value

    def _node(self, text: NodeText, outputs: list[ir.Value]) -> ir.Node:
        domain, op_type, overload = text.operator
        node = ir.Node(
            domain,
            op_type,
            [self._look_up(name) if name.text else None for name in text.inputs],
            [self._attribute(attribute) for attribute in text.attributes.values()],
            overload=overload,
            outputs=outputs,
            name=text.name,
        )
        if text.facts:
            text.facts.record.restore(node)
            _restore_attributes(text.facts, node.attributes, self._source)
        return node

    def _attribute(self, attribute: ir.Attr | GraphsText) -> ir.Attr:
        if isinstance(attribute, ir.Attr):
            return attribute
        graphs = [_GraphBuilder(self._source, self._scopes).build(g) for g in attribute.graphs]
        if attribute.type == ir.AttributeType.GRAPH:
            return ir.AttrGraph(attribute.name, graphs[0])
        return ir.AttrGraphs(attribute.name, graphs)

    def _look_up(self, name: Name) -> ir.Value:
        for scope in reversed(self._scopes):
            if name.text in scope:
                return scope[name.text]
        raise self._undefined(name, self._scopes)

    def _undefined(self, name: Name, scopes: list[dict[str, ir.Value]]) -> ModelError:
        hint = did_you_mean(name.text, {known for scope in scopes for known in scope})
        if len(hint) > _LONGEST_HINT:
            hint = "a value is an input, an initializer, or the output of a node"
        return self._source.error(name.at, f"nothing defines {name.text!r}", hint=hint)

    def _restore(self, value: ir.Value, facts: Facts | None) -> None:
        if facts is None:
            return
        facts.record.restore(value)
        if value.const_value is not None:
            facts.record.restore_tensors([value.const_value])


def _restore_attributes(facts: Facts, attributes: Mapping[str, ir.Attr], source: Source) -> None:
    try:
        facts.record.restore_attributes(attributes)
    except KeyError as error:
        raise source.error(facts.at, f"there is no attribute {error}") from error
