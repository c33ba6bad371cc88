"""Types, to text and back."""

from __future__ import annotations

import re

import onnx_ir as ir

from aigcc.errors import ModelError, did_you_mean
from aigcc.ir.text.lexer import Lexer
from aigcc.ir.text.literals import DTYPES, TYPE_WORDS, identifier_text, name_text

_PLAIN_SHAPE = re.compile(r"\[[A-Za-z0-9_,?]*\]")
_OF_TYPES = {"seq": ir.SequenceType, "optional": ir.OptionalType}


def type_text(type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> str:
    """A type as in `float[2,N]`: no brackets for rank 0, `[]` for an unknown rank.

    Beyond ONNX's own text, `?` is an unknown element type, and a denotation follows a colon.
    """
    if type_ is None:
        return "?" + _shape_text(shape)
    if isinstance(type_, ir.TensorType):
        text = type_.dtype.name.lower() + _shape_text(shape)
    elif isinstance(type_, ir.SparseTensorType):
        text = f"sparse_tensor({type_.dtype.name.lower()}{_shape_text(shape)})"
    elif isinstance(type_, ir.SequenceType | ir.OptionalType):
        word = "seq" if isinstance(type_, ir.SequenceType) else "optional"
        text = f"{word}({type_text(type_.elem_type, shape)})"
    else:
        raise ModelError(f"the type {type_!r} has no text form")
    return f"{text}:{name_text(type_.denotation)}" if type_.denotation else text


def _shape_text(shape: ir.Shape | None) -> str:
    if shape is None:
        return "[]"
    if not len(shape):
        return ""
    return "[" + ",".join(_dim_text(shape, axis) for axis in range(len(shape))) + "]"


def _dim_text(shape: ir.Shape, axis: int) -> str:
    dim = shape[axis]
    if isinstance(dim, int):
        text = str(dim)
    else:
        text = "?" if dim.value is None else identifier_text(dim.value)
    denotation = shape.get_denotation(axis)
    return f"{text}:{name_text(denotation)}" if denotation else text


def at_type(lexer: Lexer) -> bool:
    """Whether the next token starts a type."""
    return lexer.kind == "?" or (lexer.kind == "name" and lexer.text in TYPE_WORDS)


def read_type(lexer: Lexer) -> ir.TypeAndShape:
    """Read a type. The shape is that of the innermost tensor; None is an unknown rank.

    Raises:
        ModelError: What stands there is not a type.
    """
    at, word = lexer.start, lexer.text
    if lexer.accept("?"):
        return ir.TypeAndShape(None, _read_shape(lexer))
    lexer.take("name", "for a type")
    typed: ir.TypeAndShape
    if word in DTYPES:
        typed = ir.TypeAndShape(ir.TensorType(DTYPES[word]), _read_shape(lexer))
    elif word in _OF_TYPES:
        with lexer.nested():
            lexer.take("(")
            inner = read_type(lexer)
            lexer.take(")")
        if inner.type is None:
            raise lexer.source.error(at, f"a {word} needs a known element type")
        typed = ir.TypeAndShape(_OF_TYPES[word](inner.type), inner.shape)
    elif word == "sparse_tensor":
        lexer.take("(")
        dtype = read_dtype(lexer)
        typed = ir.TypeAndShape(ir.SparseTensorType(dtype), _read_shape(lexer))
        lexer.take(")")
    else:
        raise unknown_type(lexer, at, word)
    if lexer.accept(":"):
        assert typed.type is not None
        typed.type.denotation = lexer.take_name("for a denotation")
    return typed


def unknown_type(lexer: Lexer, at: int, word: str) -> ModelError:
    """The error for a word that stands where a type should."""
    if word in TYPE_WORDS:
        return lexer.source.error(at, f"{word} types are not supported by the IR")
    return lexer.source.error(
        at,
        f"there is no type {word!r}",
        hint=did_you_mean(word, TYPE_WORDS - {"map", "opaque", "undefined"}),
    )


def read_dtype(lexer: Lexer) -> ir.DataType:
    """Read the name of an element type."""
    at, word = lexer.start, lexer.take("name", "for an element type")
    if word not in DTYPES:
        raise unknown_type(lexer, at, word)
    return DTYPES[word]


def _read_shape(lexer: Lexer) -> ir.Shape | None:
    """Read `[2,N]`. A model repeats few shapes often, so values share the frozen `Shape`."""
    start = lexer.start
    if not lexer.accept("["):
        return ir.Shape([], frozen=True)
    if lexer.accept("]"):
        return None
    known = _PLAIN_SHAPE.match(lexer.source.text, start)
    if known and known[0] in lexer.source.shapes:
        lexer.skip_to(known.end())
        return lexer.source.shapes[known[0]]
    shape = _read_dims(lexer)
    if known:
        lexer.source.shapes[known[0]] = shape
    return shape


def _read_dims(lexer: Lexer) -> ir.Shape:
    dims: list[int | str | None] = []
    denotations: list[str | None] = []
    for _ in lexer.items("]", "after the dimensions"):
        if lexer.accept("?"):
            dims.append(None)
        elif lexer.kind == "number":
            dims.append(lexer.take_integer("for a dimension"))
        else:
            dims.append(lexer.take_name("for a dimension"))
        denotations.append(lexer.take_name("for a denotation") if lexer.accept(":") else None)
    return ir.Shape(dims, denotations, frozen=True)
