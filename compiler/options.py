"""Options in text: `name(key=value, ...)` to and from frozen dataclasses.

Passes and targets are frozen dataclasses whose fields are their options. This module is the one
place where the text `fuse(attention=false),legalize` becomes objects, and objects become text.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from aigcc.errors import PipelineError, did_you_mean

T = TypeVar("T")

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,()\[\]="]+)|(?P<mark>[,()\[\]=]))"""
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One `name(key=value, ...)` of a text, before it meets a catalogue."""

    name: str
    options: tuple[tuple[str, Any], ...]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split(text))
        self.position = 0

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str, int]]:
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise PipelineError(
                    "unfinished string in the pipeline text",
                    at=_point(text, at),
                    hint='close the "',
                )
            kind = match.lastgroup or "mark"
            yield kind, match.group(kind), match.start(kind)
            at = match.end()

    def peek(self) -> str | None:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else None

    def fail(self, what: str) -> PipelineError:
        at = self.tokens[self.position][2] if self.position < len(self.tokens) else len(self.text)
        return PipelineError(
            what,
            at=_point(self.text, at),
            hint='write name(key=value,...),name: for example "canonicalize,fuse(attention=false)"',
        )

    def take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.fail(f"expected {mark!r}, found {self.peek() or 'the end'!r}")
        self.position += 1

    def word(self) -> tuple[str, str]:
        if self.position >= len(self.tokens) or self.tokens[self.position][0] == "mark":
            raise self.fail(f"expected a name, found {self.peek() or 'the end'!r}")
        kind, text, _ = self.tokens[self.position]
        self.position += 1
        return kind, text

    def value(self) -> Any:
        if self.peek() == "[":
            return self.listing()
        kind, text = self.word()
        return re.sub(r"\\(.)", r"\1", text[1:-1]) if kind == "string" else text

    def listing(self) -> list[Any]:
        self.take("[")
        values = []
        while self.peek() != "]":
            values.append(self.value())
            if self.peek() != "]":
                self.take(",")
        self.take("]")
        return values

    def call(self) -> Call:
        name = self.word()[1]
        options: list[tuple[str, Any]] = []
        if self.peek() == "(":
            self.take("(")
            while self.peek() != ")":
                key = self.word()[1]
                self.take("=")
                options.append((key, self.value()))
                if self.peek() != ")":
                    self.take(",")
            self.take(")")
        return Call(name, tuple(options))

    def calls(self) -> Iterator[Call]:
        while self.peek() is not None:
            yield self.call()
            if self.peek() is not None:
                self.take(",")
                if self.peek() is None:
                    raise self.fail("the text ends with a comma")


def _point(text: str, at: int) -> str:
    return f"{text}\n      {' ' * at}^"


def read_calls(text: str) -> list[Call]:
    """The calls of a text such as `a(x=1),b`, in order.

    Raises:
        PipelineError: the text is not of that form; says at which character.
    """
    return list(_Reader(text).calls())


def convert(value: Any, annotation: Any, where: str) -> Any:
    """A value read from text (a string, or a list of them) as the annotated type.

    Raises:
        PipelineError: the value is not of that type; names the ones that are.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return _convert_literal(value, arguments, where)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in arguments if a is not type(None)]
        if value == "none" and len(inner) < len(arguments):
            return None
        return convert(value, inner[0], where)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(convert(item, arguments[0], where) for item in items)
    if annotation is bool:
        return _convert_literal(value, ("true", "false"), where) == "true"
    if isinstance(value, list):
        raise PipelineError(f"{where} takes one value, not a list", hint=f"give one {annotation}")
    try:
        return annotation(value)
    except (TypeError, ValueError):
        name = getattr(annotation, "__name__", str(annotation))
        raise PipelineError(f"{where} takes {_article(name)}, not {value!r}") from None


def _convert_literal(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        if str(choice) == value:
            return choice
    raise PipelineError(
        f"{where} cannot be {value!r}", hint="one of: " + ", ".join(str(c) for c in choices)
    )


def _article(name: str) -> str:
    return {"int": "a whole number", "float": "a number", "str": "a text"}.get(name, f"a {name}")


def fields(cls: type) -> dict[str, tuple[Any, Any, str]]:
    """The options of a dataclass: name -> (type, default, one-line description)."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default, str(f.metadata.get("help", "")))
        for f in dataclasses.fields(cls)
        if f.init
    }


def option(default: T, help: str) -> T:
    """A dataclass field with a default and the sentence that the command line shows for it."""
    made: T = dataclasses.field(default=default, metadata={"help": help})
    return made


def build(call: Call, catalogue: Mapping[str, type[T]], kind: str) -> T:
    """The object that a call names.

    Raises:
        PipelineError: unknown name, unknown option or a value of the wrong type.
    """
    cls = catalogue.get(call.name)
    if cls is None:
        raise PipelineError(
            f"unknown {kind} {call.name!r}", hint=did_you_mean(call.name, catalogue)
        )
    known = fields(cls)
    values: dict[str, Any] = {}
    for key, value in call.options:
        name = key.replace("-", "_")
        if name not in known:
            raise PipelineError(
                f"{kind} {call.name!r} has no option {key!r}",
                hint=did_you_mean(key, known) if known else f"{call.name!r} takes no options",
            )
        if name in values:
            raise PipelineError(f"{kind} {call.name!r}: option {key!r} is given twice")
        values[name] = convert(value, known[name][0], f"{call.name}({key}=...)")
    return cls(**values)


def to_text(value: Any) -> str:
    """An option's value as `convert` reads it back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(to_text(item) for item in value) + "]"
    text = str(value)
    plain = _TOKEN.fullmatch(text)
    if plain is not None and plain.group("word") == text:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def show(thing: Any, name: str, *, explicit: bool = False) -> str:
    """A dataclass as `name(key=value,...)`; `explicit` writes defaults too."""
    parts = [
        f"{key}={to_text(getattr(thing, key))}"
        for key, (_, default, _) in fields(type(thing)).items()
        if explicit or getattr(thing, key) != default
    ]
    return f"{name}({','.join(parts)})" if parts else name
