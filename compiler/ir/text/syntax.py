"""The syntax tree of the text form: what was written and where, before names are resolved."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from aigcc.ir.text.facts import Facts


@dataclass(slots=True)
class Name:
    """A name and where it stands."""

    text: str
    at: int


@dataclass(slots=True)
class ValueText:
    """A declaration: an input, an output, or an entry of the `<...>` block of a graph.

    `typed` is None where no type is written, `tensor` where no data is.
    """

    name: Name
    typed: ir.TypeAndShape | None
    tensor: ir.TensorProtocol | None = None
    facts: Facts | None = None


@dataclass(slots=True)
class GraphsText:
    """An attribute that holds a graph, or a list of graphs."""

    name: str
    type: ir.AttributeType
    graphs: list[GraphText]


@dataclass(slots=True)
class NodeText:
    """A node: one statement of a body."""

    at: int
    name: str
    outputs: list[Name]
    operator: tuple[str, str, str]
    inputs: list[Name] = field(default_factory=list)
    attributes: dict[str, ir.Attr | GraphsText] = field(default_factory=dict)
    facts: Facts | None = None


@dataclass(slots=True)
class GraphText:
    """A graph, a sub-graph, or the graph of a function."""

    name: str
    inputs: list[ValueText]
    outputs: list[ValueText]
    entries: list[ValueText]
    nodes: list[NodeText]
    facts: Facts | None
    closed_at: int


@dataclass(slots=True)
class Header:
    """The `<key: value, ...>` before a model or a function; None is what it does not say."""

    at: int = 0
    ir_version: int | None = None
    opset_import: dict[str, int] | None = None
    producer_name: str | None = None
    producer_version: str | None = None
    domain: str | None = None
    overload: str | None = None
    model_version: int | None = None
    doc_string: str | None = None
    metadata_props: dict[str, str] | None = None


@dataclass(slots=True)
class FunctionText:
    """A model-local function."""

    at: int
    header: Header
    attributes: list[ir.Attr]
    graph: GraphText


@dataclass(slots=True)
class ModelText:
    """A model: its header, its main graph and its functions."""

    header: Header
    graph: GraphText
    functions: list[FunctionText]
