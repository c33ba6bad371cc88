"""Names and strings, as the text form writes them."""

from __future__ import annotations

import re

import onnx_ir as ir

from aigcc.errors import ModelError

DTYPES = {dtype.name.lower(): dtype for dtype in ir.DataType}
TYPE_WORDS = frozenset(DTYPES) | {"seq", "optional", "sparse_tensor", "map", "opaque"}

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOMAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_ESCAPED = re.compile(r'b"(?:[ !#-\[\]-~]|\\["\\nrt]|\\x[0-9a-fA-F]{2})*+"')
_BACKSLASH = re.compile(r"\\(.)", re.DOTALL)


def name_text(name: str) -> str:
    """A name, quoted unless it is an identifier that no type is called."""
    return name if _IDENTIFIER.fullmatch(name) and name not in TYPE_WORDS else _quoted(name)


def identifier_text(name: str) -> str:
    """A name, quoted unless it is an identifier."""
    return name if _IDENTIFIER.fullmatch(name) else _quoted(name)


def operator_text(domain: str, op_type: str, overload: str) -> str:
    """`domain.Op:overload`, with the default domain and an empty overload left out."""
    text = identifier_text(op_type)
    if domain:
        text = f"{domain if _DOMAIN.fullmatch(domain) else _quoted(domain)}.{text}"
    return f"{text}:{identifier_text(overload)}" if overload else text


def _quoted(name: str) -> str:
    """A name between quotes, and on one line, since facts end with their line."""
    return string_text(name) if name.isprintable() else _escaped(name)


def string_text(value: str | bytes) -> str:
    r"""A string between quotes, in which only `\\` and `\"` are escapes, as in ONNX's own text.

    ONNX's text cannot carry control characters safely, nor bytes that are not UTF-8: these
    strings are written like Python's bytes, `b"\x00\xff"`.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return _escaped(value)
    if value.isprintable() or all(ch.isprintable() or ch in "\n\t" for ch in value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _escaped(value)


def _escaped(value: str | bytes) -> str:
    try:
        raw = value.encode("utf-8") if isinstance(value, str) else value
    except UnicodeEncodeError as error:
        raise ModelError(f"the string {value!r} holds half a character (a surrogate)") from error
    text = raw.decode("latin-1").encode("unicode_escape").decode("ascii")
    return 'b"' + text.replace('"', '\\"') + '"'


def read_string(token: str) -> str | bytes:
    """The value of a string token: text, or bytes where it is not UTF-8.

    Raises:
        ValueError: A `b"..."` string holds an escape or a character that it may not.
    """
    if token[0] == '"':
        inner = token[1:-1]
        return _BACKSLASH.sub(r"\1", inner) if "\\" in inner else inner
    if not _ESCAPED.fullmatch(token):
        raise ValueError('a b"..." string holds ASCII and the escapes \\" \\\\ \\n \\r \\t \\xNN')
    data = token[2:-1].encode("ascii").decode("unicode_escape").encode("latin-1")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data
