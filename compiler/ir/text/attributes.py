"""Attributes, read from tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.errors import did_you_mean
from aigcc.ir.text.lexer import Lexer
from aigcc.ir.text.literals import TYPE_WORDS
from aigcc.ir.text.syntax import GraphsText, GraphText
from aigcc.ir.text.tensorreader import TensorReader
from aigcc.ir.text.tensortext import (
    ElementError,
    SparseConstant,
    read_floats,
)
from aigcc.ir.text.typetext import read_type

_WORDS = {type_.name.lower(): type_ for type_ in ir.AttributeType if type_}
_ONE_OF = {
    ir.AttributeType[plural]: ir.AttributeType[plural.removesuffix("S")]
    for plural in (
        "INTS",
        "FLOATS",
        "STRINGS",
        "TENSORS",
        "GRAPHS",
        "SPARSE_TENSORS",
        "TYPE_PROTOS",
    )
}
_MANY_OF = {one: many for many, one in _ONE_OF.items()}
_SIMPLE = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_WHOLE = re.compile(r"-?[0-9]+")
_FLOAT_WORD = re.compile(r"(?i:inf|infinity|nan)")


class AttributeReader:
    """Reads attribute lists at the tokens of one lexer.

    Args:
        lexer: Where the tokens come from.
        tensors: Reads a tensor at the same lexer.
        read_graph: Reads a sub-graph at the same lexer.
    """

    def __init__(
        self, lexer: Lexer, tensors: TensorReader, read_graph: Callable[[], GraphText]
    ) -> None:
        self._lexer = lexer
        self._tensors = tensors
        self._read_graph = read_graph

    def attributes(self) -> dict[str, ir.Attr | GraphsText]:
        """Read `<name: type = value, ...>` if it is there."""
        lexer = self._lexer
        found: dict[str, ir.Attr | GraphsText] = {}
        if not lexer.accept("<"):
            return found
        for at in lexer.items(">", "after the attributes"):
            name = lexer.take_name("for an attribute")
            if name in found:
                raise lexer.source.error(at, f"the attribute {name!r} is given twice")
            type_ = self.attribute_type() if lexer.accept(":") else None
            found[name] = self.value(name, type_)
        return found

    def value(self, name: str, declared: ir.AttributeType | None) -> ir.Attr | GraphsText:
        """Read what follows the name and the type of an attribute: `= value`."""
        lexer = self._lexer
        lexer.take("=", "before the value of an attribute")
        if lexer.accept("@"):
            reference = lexer.take_name("of the function's attribute")
            return ir.RefAttr(name, reference, declared or ir.AttributeType.UNDEFINED)
        at = lexer.start
        if lexer.kind == "[":
            type_, value = self._list(declared)
        else:
            type_, value = self._single(declared)
        if declared is not None and type_ != declared:
            raise lexer.source.error(
                at, f"{name!r} is declared {declared.name.lower()} and is {type_.name.lower()}"
            )
        if type_ in _GRAPHS:
            return GraphsText(name, type_, value if isinstance(value, list) else [value])
        return ir.Attr(name, type_, value)

    def attribute_type(self) -> ir.AttributeType:
        """Read the word for a type of attribute."""
        at, word = self._lexer.start, self._lexer.take("name", "for the type of an attribute")
        if word not in _WORDS:
            raise self._lexer.source.error(
                at, f"no attribute has the type {word!r}", did_you_mean(word, _WORDS)
            )
        return _WORDS[word]

    def _list(self, declared: ir.AttributeType | None) -> tuple[ir.AttributeType, list[Any]]:
        lexer = self._lexer
        start = lexer.start
        lexer.take("[")
        one = _ONE_OF.get(declared) if declared else None
        types, values = set(), []
        for at in lexer.items("]", "after the elements"):
            type_, value = self._single(one)
            types.add(type_)
            values.append(value)
            if len(types) > 1 and types != {ir.AttributeType.INT, ir.AttributeType.FLOAT}:
                raise lexer.source.error(at, "the elements of a list have different types")
        if not values:
            if declared not in _ONE_OF:
                raise lexer.source.error(
                    start, "an empty list needs a type of list", hint="write it as `x: ints = []`"
                )
            return declared, []
        return _MANY_OF[max(types, key=lambda type_: type_ == ir.AttributeType.FLOAT)], values

    def _single(self, declared: ir.AttributeType | None) -> tuple[ir.AttributeType, Any]:
        lexer = self._lexer
        word = lexer.text if lexer.kind == "name" else ""
        if declared == ir.AttributeType.GRAPH:
            return ir.AttributeType.GRAPH, self._read_graph()
        if lexer.kind == "number" or _FLOAT_WORD.fullmatch(word):
            return self._number(declared)
        if declared is None and word and word not in TYPE_WORDS:
            return ir.AttributeType.GRAPH, self._read_graph()
        if lexer.kind == "string":
            return ir.AttributeType.STRING, lexer.take_string()
        if declared in _SIMPLE or not (word or lexer.kind == "?"):
            what = declared.name.lower() if declared else "value"
            raise lexer.expected(f"the {what} of an attribute")
        return self._typed(declared)

    def _number(self, declared: ir.AttributeType | None) -> tuple[ir.AttributeType, float]:
        lexer = self._lexer
        if declared != ir.AttributeType.FLOAT and _WHOLE.fullmatch(lexer.text):
            return ir.AttributeType.INT, lexer.take_integer()
        try:
            value = read_floats([lexer.text], np.dtype(np.float32), 32)[0]
        except ElementError as error:
            raise lexer.source.error(lexer.start, str(error)) from error
        lexer.advance()
        return ir.AttributeType.FLOAT, float(value)

    def _typed(self, declared: ir.AttributeType | None) -> tuple[ir.AttributeType, Any]:
        """Read a type, or a tensor, which starts with its type."""
        lexer = self._lexer
        at = lexer.start
        typed = read_type(lexer)
        if declared == ir.AttributeType.TYPE_PROTO or (
            declared is None and lexer.kind not in ("{", "=", "name", "string")
        ):
            return ir.AttributeType.TYPE_PROTO, typed
        tensor = self._tensors.read_named(typed, at)
        if isinstance(tensor, SparseConstant):
            return ir.AttributeType.SPARSE_TENSOR, tensor
        return ir.AttributeType.TENSOR, tensor
