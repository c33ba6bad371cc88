"""Tokens of the text form, and errors that point at the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.text.literals import read_string

# Possessive quantifiers keep every failed match linear in the length of the text.
_TOKEN = re.compile(
    r"""
    (?: [ \t\r\n\f\v]++ | \#[^\n]*+ )*+
    (?: (?P<string> b?"(?:[^"\\]++|\\.)*+" )
      | (?P<name>   [A-Za-z_][A-Za-z0-9_]*+ )
      | (?P<number> -?0[xX][0-9a-fA-F]++
                  | -?[0-9]++(?:\.[0-9]*+)?(?:[eE][+-]?[0-9]++)?
                  | -(?i:infinity|inf|nan)(?![A-Za-z0-9_]) )
      | (?P<arrow>  => )
      | (?P<elided> \.\.\. )
      | (?P<mark>   [\[\](){}<>=,;.:?@] )
      | (?P<end>    \Z )
    )""",
    re.VERBOSE | re.DOTALL,
)
_BLANK = re.compile(r"(?:[ \t\r\n\f\v]++|#[^\n]*+)*+")
DEEPEST = 32
"""How deep graphs and types may be nested; protobuf refuses graphs that are deeper."""

_WIDEST_EXCERPT = 100
_INT64 = range(-(1 << 63), 1 << 63)


class Source:
    """A text, its name, and the errors that show where in it something is wrong.

    Attributes:
        shapes: The shapes that were read from it, by what is written there.
    """

    def __init__(self, text: str, filename: str) -> None:
        self.text = text
        self.filename = filename
        self.shapes: dict[str, ir.Shape] = {}

    def error(self, position: int, what: str, hint: str | None = None) -> ModelError:
        """A `ModelError` that shows the position."""
        begin = self.text.rfind("\n", 0, position) + 1
        end = self.text.find("\n", position)
        line = self.text[begin : len(self.text) if end < 0 else end]
        column = position - begin
        left = max(0, column - _WIDEST_EXCERPT // 2)
        excerpt = line[left : left + _WIDEST_EXCERPT]
        shown = "".join(ch if ch.isprintable() else " " for ch in excerpt)
        at = f"{self.filename}:{self.line(position)}:{column + 1}"
        at += f"\n    {shown}\n    {' ' * (column - left)}^"
        return ModelError(what, at=at, hint=hint)

    def line(self, position: int) -> int:
        """The number of the line that holds `position`, from 1."""
        return self.text.count("\n", 0, position) + 1


class Lexer:
    """The tokens of a stretch of a source, with one token of look-ahead.

    `kind` is "name", "number", "string", "arrow" (`=>`), "elided" (`...`), "end", or the
    punctuation mark itself; `text`, `start` and `end` belong to the same token. `last_end` is
    where the token before it ended, which is where its trailing comment starts.
    """

    def __init__(self, source: Source, start: int = 0, stop: int | None = None) -> None:
        self.source = source
        self._stop = len(source.text) if stop is None else stop
        self.kind = "start"
        self.text = ""
        self.start = self.end = self.last_end = start
        self._depth = 0
        self.advance()

    def advance(self) -> None:
        """Move to the next token."""
        self.skip_to(self.end)

    def skip_to(self, position: int) -> None:
        """Move to the token that follows `position`, as if all before it were one token."""
        self.last_end = position
        match = _TOKEN.match(self.source.text, position, self._stop)
        if match is None:
            raise self._unreadable(position)
        kind = match.lastgroup or "end"
        self.text = match[kind]
        self.end = match.end()
        self.start = self.end - len(self.text)
        self.kind = self.text if kind == "mark" else kind

    def _unreadable(self, position: int) -> ModelError:
        match = _BLANK.match(self.source.text, position, self._stop)
        start = match.end() if match else position
        char = self.source.text[start]
        if char == '"':
            return self.source.error(
                start, "this string does not end", hint='close it with "; write \\" for a quote'
            )
        return self.source.error(
            start,
            f"the character {char!r} means nothing here",
            hint="a name with other characters than letters, digits and _ goes into double quotes",
        )

    def accept(self, kind: str) -> bool:
        """Consume the token if it is of this kind, and say whether it was."""
        if self.kind != kind:
            return False
        self.advance()
        return True

    def take(self, kind: str, why: str = "") -> str:
        """Consume a token that must be of this kind, and return its text."""
        if self.kind != kind:
            raise self.expected(repr(kind) if len(kind) == 1 else f"a {kind}", why)
        text = self.text
        self.advance()
        return text

    def take_name(self, why: str = "") -> str:
        """Consume an identifier or a quoted name."""
        if self.kind == "name":
            name = self.text
            self.advance()
            return name
        if self.kind != "string":
            raise self.expected("a name", why)
        at, value = self.start, self.take_string()
        if isinstance(value, bytes):
            raise self.source.error(at, "a name must be UTF-8")
        return value

    def take_string(self) -> str | bytes:
        """Consume a string, and return its value: bytes where it is not UTF-8."""
        at, token = self.start, self.take("string")
        try:
            return read_string(token)
        except ValueError as error:
            raise self.source.error(at, str(error)) from error

    def take_integer(self, why: str = "") -> int:
        """Consume a whole number of 64 bits."""
        at, token = self.start, self.take("number", why)
        try:
            value = int(token)
        except ValueError:
            raise self.source.error(at, f"{_clip(token)} is not a whole number") from None
        if value not in _INT64:
            raise self.source.error(at, f"{_clip(token)} does not fit 64 bits")
        return value

    def items(self, close: str, why: str) -> Iterator[int]:
        """Where each item of a list starts, with commas between them and `close` at the end.

        The caller reads an item before it asks for the next.
        """
        if self.accept(close):
            return
        yield self.start
        while self.accept(","):
            yield self.start
        self.take(close, why)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Count a level of nesting; too many are an error here and not in Python's stack."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise self.source.error(self.start, f"this is nested deeper than {DEEPEST} levels")
        yield
        self._depth -= 1

    def expected(self, what: str, why: str = "") -> ModelError:
        """The error for a token that does not fit."""
        found = "the end of the text" if self.kind == "end" else repr(_clip(self.text))
        return self.source.error(
            self.start, f"expected {what}{' ' + why if why else ''}, but found {found}"
        )


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
