"""Tensors, read from tokens."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.text.dataref import Roots
from aigcc.ir.text.lexer import Lexer
from aigcc.ir.text.tensortext import (
    ElementError,
    SparseConstant,
    elements_per_value,
    read_elements,
)
from aigcc.ir.text.typetext import read_type, type_text

_ELEMENTS = re.compile(r'\{((?:[^{}"#]++|#[^\n]*+)*+)\}')
_COMMENT = re.compile(r"#[^\n]*+")
_SIZE = re.compile(r"[0-9]{1,18}")


class TensorReader:
    """Reads tensors at the tokens of one lexer.

    Args:
        lexer: Where the tokens come from.
        roots: Where the data of tensors may be.
    """

    def __init__(self, lexer: Lexer, roots: Roots) -> None:
        self._lexer = lexer
        self._roots = roots

    def read(
        self, typed: ir.TypeAndShape | None, at: int, name: str | None
    ) -> ir.TensorProtocol | SparseConstant:
        """Read the data of a tensor, which has the type that stands at `at`."""
        lexer = self._lexer
        dtype, dims = _static(typed)
        if dtype is None:
            raise lexer.source.error(
                at,
                "data needs a type and a size in numbers",
                hint="write it as `float[2,3] w = {...}`",
            )
        if lexer.kind == "name" and lexer.text == "sparse":
            return self._sparse(dims)
        if lexer.kind == "[":
            return self._reference(dtype, dims, name)
        if lexer.kind == "elided":
            raise lexer.source.error(
                lexer.start,
                "the text was printed without the data of this weight",
                hint="print it with write_text, which puts large weights into a file beside it",
            )
        if lexer.kind != "{":
            raise lexer.expected("the data of a tensor")
        start = lexer.start
        if dtype == ir.DataType.STRING:
            strings = self._strings()
            self._check_count(start, len(strings), dtype, dims)
            return ir.StringTensor(strings, shape=ir.Shape(dims), name=name)
        array = self._elements(dtype, dims)
        try:
            array = array.reshape(dims)
        except ValueError as error:
            raise lexer.source.error(at, f"this shape is not possible: {error}") from error
        return ir.Tensor(array, dtype=dtype, name=name)

    def read_named(self, typed: ir.TypeAndShape, at: int) -> ir.TensorProtocol | SparseConstant:
        """Read `name = data`, where the name or the mark may be missing."""
        lexer = self._lexer
        name = lexer.take_name() if lexer.kind in ("name", "string") else None
        lexer.accept("=")
        return self.read(typed, at, name)

    def _sparse(self, dims: list[int]) -> SparseConstant:
        """Read `sparse {values, indices}`."""
        self._lexer.advance()
        self._lexer.take("{", "before the values and the indices of a sparse tensor")
        parts = []
        for mark in (",", "}"):
            at = self._lexer.start
            part = self.read_named(read_type(self._lexer), at)
            if isinstance(part, SparseConstant):
                raise self._lexer.source.error(at, "a part of a sparse tensor cannot be sparse")
            parts.append(part)
            self._lexer.take(mark, "in a sparse tensor")
        return SparseConstant(parts[0], parts[1], tuple(dims))

    def _reference(
        self, dtype: ir.DataType, dims: list[int], name: str | None
    ) -> ir.TensorProtocol:
        """Read `["location": "...", "offset": "...", "length": "..."]`."""
        lexer = self._lexer
        at = lexer.start
        entries = read_string_pairs(lexer)
        unknown = sorted(set(entries) - {"location", "offset", "length"})
        if unknown or "location" not in entries:
            raise lexer.source.error(
                at,
                f"a reference has no {unknown[0]!r}" if unknown else "a reference needs a location",
                hint='write it as ["location": "file", "offset": "0", "length": "4096"]',
            )
        if dtype == ir.DataType.STRING:
            raise lexer.source.error(at, "strings cannot be in a data file")
        numbers = [entries.get("offset", "0"), entries.get("length")]
        if any(text is not None and not _SIZE.fullmatch(text) for text in numbers):
            raise lexer.source.error(at, "the offset and the length are numbers of bytes")
        offset, length = (None if text is None else int(text) for text in numbers)
        reference = ir.ExternalTensor(
            entries["location"], offset, length, dtype, shape=ir.Shape(dims), name=name or ""
        )
        try:
            return self._roots.map(reference)
        except ModelError as error:
            raise lexer.source.error(at, error.what, error.hint) from error

    def _strings(self) -> list[bytes]:
        """Read `{"...", "..."}`."""
        lexer = self._lexer
        lexer.take("{")
        strings: list[bytes] = []
        for _ in lexer.items("}", "after the strings"):
            value = lexer.take_string()
            strings.append(value if isinstance(value, bytes) else value.encode("utf-8"))
        return strings

    def _elements(self, dtype: ir.DataType, dims: list[int]) -> npt.NDArray[Any]:
        """Read `{1, 2.5}` as one piece, since weights can be long."""
        lexer = self._lexer
        match = _ELEMENTS.match(lexer.source.text, lexer.start)
        if match is None:
            raise lexer.source.error(lexer.start, "this list of numbers does not end with '}'")
        body = match[1]
        if "#" in body:
            body = _COMMENT.sub(lambda comment: " " * len(comment[0]), body)
        texts = body.split(",") if body.strip() else []
        self._check_count(lexer.start, len(texts), dtype, dims)
        try:
            array = read_elements(texts, dtype)
        except ElementError as error:
            before = sum(len(text) + 1 for text in texts[: error.index])
            blank = len(texts[error.index]) - len(texts[error.index].lstrip())
            raise lexer.source.error(match.start(1) + before + blank, str(error)) from error
        lexer.skip_to(match.end())
        return array

    def _check_count(self, at: int, found: int, dtype: ir.DataType, dims: list[int]) -> None:
        wanted = math.prod(dims) * elements_per_value(dtype)
        if found != wanted:
            text = type_text(ir.TensorType(dtype), ir.Shape(dims))
            raise self._lexer.source.error(
                at, f"{text} takes {wanted} numbers, and here are {found}"
            )


def _static(typed: ir.TypeAndShape | None) -> tuple[ir.DataType | None, list[int]]:
    """The dtype and the sizes of a type, or None if it does not say all of them."""
    if typed is None or not isinstance(typed.type, ir.TensorType) or typed.shape is None:
        return None, []
    dims = [dim for dim in typed.shape if isinstance(dim, int) and dim >= 0]
    if len(dims) < len(typed.shape) or typed.type.dtype == ir.DataType.UNDEFINED:
        return None, []
    return typed.type.dtype, dims


def read_string_pairs(lexer: Lexer) -> dict[str, str]:
    """Read `["key": "value", ...]`."""
    pairs: dict[str, str] = {}
    lexer.take("[")
    for at in lexer.items("]", "after the last pair"):
        key = lexer.take_name("for a key")
        if key in pairs:
            raise lexer.source.error(at, f"{key!r} is given twice")
        lexer.take(":", "after a key")
        value_at, value = lexer.start, lexer.take_string()
        if isinstance(value, bytes):
            raise lexer.source.error(value_at, "this must be UTF-8")
        pairs[key] = value
    return pairs
