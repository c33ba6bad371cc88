"""Parse the text form: ONNX's own text syntax, with facts in the comments.

What a text may say beyond https://onnx.ai/onnx/repo-docs/Syntax.html:

- Facts, see `aigcc.ir.text.facts`: after a node the types of its outputs and where it came from;
  after an input, an initializer or the `{` of a graph its metadata.
- `b"\\x00"` for strings with control characters or bytes that are not UTF-8.
- Floats of less than 32 bits as decimals, `float16 k = {1.5}`; whole numbers are bit patterns
  there, as in ONNX. `0x7fc00001` is a bit pattern in any float. Types of less than 8 bits have one
  number an element.
- `?` as an unknown element type, `float[N:BATCH]:IMAGE` for denotations, quoted names of
  attributes, operators, domains and overloads, lists of graphs, tensors and types,
  `float[3,4] w = sparse {float[1] {2}, int64[1] {5}}`, and metadata of functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from aigcc.errors import did_you_mean
from aigcc.ir.storage.external import OPEN_FILES
from aigcc.ir.storage.mapped import SparseTensor
from aigcc.ir.text.attributes import AttributeReader
from aigcc.ir.text.builder import build_model
from aigcc.ir.text.dataref import Roots
from aigcc.ir.text.factreader import FactReader
from aigcc.ir.text.facts import Facts
from aigcc.ir.text.lexer import Lexer, Source
from aigcc.ir.text.records import SURROGATE
from aigcc.ir.text.syntax import (
    FunctionText,
    GraphText,
    Header,
    ModelText,
    Name,
    NodeText,
    ValueText,
)
from aigcc.ir.text.tensorreader import TensorReader, read_string_pairs
from aigcc.ir.text.tensortext import SparseConstant
from aigcc.ir.text.typetext import at_type, read_type, unknown_type

_LOCATION = re.compile(r'"location": ("[^"\n]*")')
_MODEL_KEYS = (
    "ir_version",
    "opset_import",
    "producer_name",
    "producer_version",
    "domain",
    "model_version",
    "doc_string",
    "metadata_props",
)
_FUNCTION_KEYS = ("opset_import", "domain", "overload", "doc_string", "metadata_props")
_INTEGERS = ("ir_version", "model_version")


def parse_model(
    text: str,
    base_dir: Path | None = None,
    filename: str = "<text>",
    *,
    roots: Iterable[Path] = (),
) -> ir.Model:
    """Parse the text form of a model.

    Args:
        text: The text.
        base_dir: The folder of the text, which its references to data are relative to and may not
            leave; the current folder if None.
        filename: What error messages call the text.
        roots: More folders that the text may refer to, with `..` or absolutely, and in which links
            are followed. A text can make the compiler read any file in them as weights: name
            folders that you trust.

    Raises:
        ModelError: The text is not a model; says at which line and column.
    """
    source = Source(text, filename)
    half = SURROGATE.search(text)
    if half:
        raise source.error(half.start(), "this is half a character (a surrogate)")
    keep = len(set(_LOCATION.findall(text))) <= OPEN_FILES
    parser = _Parser(source, Roots(Path() if base_dir is None else base_dir, roots, keep))
    return build_model(parser.model(), source)


class _Parser:
    """Recursive descent over the tokens of one source."""

    def __init__(self, source: Source, roots: Roots) -> None:
        self._source = source
        self._lexer = Lexer(source)
        self._facts = FactReader(source)
        self._tensors = TensorReader(self._lexer, roots)
        self._attributes = AttributeReader(self._lexer, self._tensors, self._graph)

    def model(self) -> ModelText:
        """A header, the main graph, and functions up to the end of the text."""
        header = self._header(_MODEL_KEYS)
        for key in ("ir_version", "opset_import"):
            if getattr(header, key) is None:
                raise self._source.error(
                    header.at,
                    f"the header of the model does not say {key}",
                    hint='start the text with <ir_version: 10, opset_import: ["" : 21]>',
                )
        graph = self._graph()
        functions = []
        while self._lexer.kind != "end":
            functions.append(self._function())
        return ModelText(header, graph, functions)

    def _header(self, keys: tuple[str, ...]) -> Header:
        lexer = self._lexer
        header = Header(lexer.start)
        if not lexer.accept("<"):
            return header
        for at in lexer.items(">", "after the header"):
            key = lexer.take("name", "for a key of the header")
            if key not in keys:
                raise self._source.error(
                    at, f"a header has no {key!r}", hint=did_you_mean(key, keys)
                )
            if getattr(header, key) is not None:
                raise self._source.error(at, f"the header says {key} twice")
            lexer.take(":", f"after {key}")
            setattr(header, key, self._header_value(key))
        return header

    def _header_value(self, key: str) -> int | str | dict[str, int] | dict[str, str]:
        if key in _INTEGERS:
            return self._lexer.take_integer()
        if key == "opset_import":
            return self._opsets()
        if key == "metadata_props":
            return read_string_pairs(self._lexer)
        at, text = self._lexer.start, self._lexer.take_string()
        if isinstance(text, bytes):
            raise self._source.error(at, f"{key} must be UTF-8")
        return text

    def _opsets(self) -> dict[str, int]:
        lexer = self._lexer
        opsets: dict[str, int] = {}
        lexer.take("[")
        for at in lexer.items("]", "after the opsets"):
            domain = lexer.take_name("for a domain")
            if domain in opsets:
                raise self._source.error(at, f"the domain {domain!r} is imported twice")
            lexer.take(":", "after the domain")
            opsets[domain] = lexer.take_integer("for a version")
        return opsets

    def _function(self) -> FunctionText:
        header = self._header(_FUNCTION_KEYS)
        at, name = self._lexer.start, self._lexer.take_name("for a function")
        attributes = self._parameters()
        graph = self._signature_and_body(name)
        return FunctionText(at, header, attributes, graph)

    def _parameters(self) -> list[ir.Attr]:
        """The attributes of a function: `<alpha, beta: int, gamma: float = 1.0>`."""
        lexer = self._lexer
        found: dict[str, ir.Attr] = {}
        if not lexer.accept("<"):
            return []
        for at in lexer.items(">", "after the attributes"):
            name = lexer.take_name("for an attribute")
            if name in found:
                raise self._source.error(at, f"the attribute {name!r} is declared twice")
            found[name] = self._parameter(name)
        return list(found.values())

    def _parameter(self, name: str) -> ir.Attr:
        at, type_ = self._lexer.start, None
        if self._lexer.accept(":"):
            type_ = self._attributes.attribute_type()
        if self._lexer.kind in (",", ">"):
            return ir.Attr(name, type_ or ir.AttributeType.UNDEFINED, None)
        attribute = self._attributes.value(name, type_)
        if not isinstance(attribute, ir.Attr):
            raise self._source.error(at, "the default of an attribute cannot be a graph")
        return attribute

    def _graph(self) -> GraphText:
        with self._lexer.nested():
            return self._signature_and_body(self._lexer.take_name("for a graph"))

    def _signature_and_body(self, name: str) -> GraphText:
        """`(inputs) => (outputs) <initializers and value infos> { nodes }`."""
        lexer = self._lexer
        lexer.take("(", "before the inputs")
        inputs = self._values(")", data=True)
        lexer.take("arrow", "after the inputs")
        lexer.take("(", "before the outputs")
        outputs = self._values(")", data=False)
        entries = self._values(">", data=True) if lexer.accept("<") else []
        opened_at = lexer.start
        lexer.take("{", "before the nodes")
        facts = self._untyped_facts()
        nodes = []
        while lexer.kind != "}":
            if lexer.kind == "end":
                raise self._source.error(opened_at, "this body is not closed with '}'")
            nodes.append(self._node())
        closed_at = lexer.start
        lexer.advance()
        return GraphText(name, inputs, outputs, entries, nodes, facts, closed_at)

    def _values(self, close: str, data: bool) -> list[ValueText]:
        return [self._value(data) for _ in self._lexer.items(close, "after the last value")]

    def _value(self, data: bool) -> ValueText:
        """`type name = data`, where the type and the data may be missing."""
        lexer = self._lexer
        type_at = lexer.start
        typed = read_type(lexer) if at_type(lexer) else None
        at, written = lexer.start, lexer.text
        name = Name(lexer.take_name("of a value"), at)
        if typed is None and lexer.kind in ("[", "(", "name", "string"):
            raise unknown_type(lexer, at, written)
        value = ValueText(name, typed)
        if data and lexer.accept("="):
            tensor = self._tensors.read(typed, type_at, name.text)
            if isinstance(tensor, SparseConstant):
                tensor = SparseTensor(tensor.values, tensor.indices, list(tensor.dims), name.text)
            value.tensor = tensor
        value.facts = self._untyped_facts()
        return value

    def _untyped_facts(self) -> Facts | None:
        """The facts of a value, whose type stands before its name, or of a graph."""
        facts = self._facts.after(self._lexer.last_end)
        if facts and facts.types:
            raise self._source.error(facts.at, "only the facts of a node have types")
        return facts

    def _node(self) -> NodeText:
        """`[name] outputs = domain.Op:overload <attributes> (inputs) <attributes>`."""
        lexer = self._lexer
        at, name = lexer.start, ""
        if lexer.accept("["):
            if lexer.kind != "]":
                name = lexer.take_name("of a node")
            lexer.take("]", "after the name of a node")
        outputs = self._names()
        lexer.take("=", "after the outputs of a node")
        node = NodeText(at, name, outputs, self._operator())
        node.attributes = self._attributes.attributes()
        lexer.take("(", "before the inputs of a node")
        node.inputs = self._names()
        lexer.take(")", "after the inputs of a node")
        if not node.attributes:
            node.attributes = self._attributes.attributes()
        node.facts = self._facts.after(lexer.last_end)
        if node.facts and len(node.facts.types) not in (0, len(outputs)):
            raise self._source.error(
                node.facts.at,
                f"there are {len(node.facts.types)} types here and {len(outputs)} outputs",
            )
        return node

    def _operator(self) -> tuple[str, str, str]:
        parts = [self._lexer.take_name("of an operator")]
        while self._lexer.accept("."):
            parts.append(self._lexer.take_name("of an operator"))
        overload = self._lexer.take_name("of an overload") if self._lexer.accept(":") else ""
        return ".".join(parts[:-1]), parts[-1], overload

    def _names(self) -> list[Name]:
        """Names with commas between them; one that is missing before a comma is empty."""
        lexer = self._lexer
        names = []
        while lexer.kind in ("name", "string", ","):
            at = lexer.start
            names.append(Name("" if lexer.kind == "," else lexer.take_name(), at))
            if not lexer.accept(","):
                break
        return names
