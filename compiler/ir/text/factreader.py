"""Facts, read back from the comments."""

from __future__ import annotations

import json
import re
from typing import Any

from aigcc.ir.text.facts import TABLE_LINE, Facts, reads_as_facts, restore_origins
from aigcc.ir.text.lexer import Lexer, Source
from aigcc.ir.text.records import Record
from aigcc.ir.text.typetext import at_type, read_type

_COMMENT = re.compile(r"[ \t]*,?[ \t]*#([^\n]*)")
_FIELD = re.compile(r"\s*(?:(by|in|at):[ \t]+([^\s;]+)|@([0-9a-f]{8,})|(?=\{))")
_BLANK = re.compile(r"[ \t\r]*")
_HINT = "a comment that starts like a fact is read as one; start prose with another word"


class FactReader:
    """Reads the facts of one source; knows the table of records at its end."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._decoder = json.JSONDecoder()
        self._table: dict[str, int] | None = None
        self._members: dict[str, Any] = {}

    def after(self, position: int) -> Facts | None:
        """The facts in the comment on the line where something ended; None if there are none.

        Raises:
            ModelError: The comment starts like facts and goes on like something else.
        """
        match = _COMMENT.match(self._source.text, position)
        if match is None or not reads_as_facts(match[1].rstrip()):
            return None
        start, stop = match.start(1), match.start(1) + len(match[1].rstrip())
        facts = Facts(start)
        position = self._types(facts, start, stop)
        origins: dict[str, str] = {}
        while position < stop:
            position = self._field(facts, origins, position, stop)
        restore_origins(facts.record, origins)
        return facts

    def _types(self, facts: Facts, start: int, stop: int) -> int:
        """Read the types that facts may start with, and return where the fields start."""
        if _FIELD.match(self._source.text, start, stop):
            return start
        lexer = Lexer(self._source, start, stop)
        while True:
            if not at_type(lexer):
                read_type(lexer)  # says what is wrong, and which type may be meant
            facts.types.append(read_type(lexer))
            if not lexer.accept(","):
                break
        if lexer.kind == "end":
            return stop
        if lexer.kind != ";":
            raise self._source.error(lexer.start, "expected ';' or the end of the line", _HINT)
        return lexer.end

    def _field(self, facts: Facts, origins: dict[str, str], position: int, stop: int) -> int:
        """Read one field and the semicolon after it, and return where the next one starts."""
        match = _FIELD.match(self._source.text, position, stop)
        if match is None:
            raise self._source.error(position, "this is not a fact", _HINT)
        position = match.end()
        if match[1]:
            if match[1] in origins:
                raise self._source.error(match.start(1), f"these facts say {match[1]!r} twice")
            origins[match[1]] = match[2]
        elif match[3]:
            self._add(facts, self._look_up(match[3], match.start(3)), match.start(3))
        else:
            members, end = self._json(position)
            if end > stop:
                raise self._source.error(position, "this JSON does not end on its line", _HINT)
            self._add(facts, members, position)
            position = end
        blank = _BLANK.match(self._source.text, position, stop)
        position = blank.end() if blank else position
        if position < stop and self._source.text[position] != ";":
            raise self._source.error(position, "expected ';' or the end of the line", _HINT)
        return position + 1

    def _add(self, facts: Facts, members: Any, position: int) -> None:
        try:
            record = Record.from_json(members)
        except (ValueError, RecursionError) as error:
            raise self._source.error(position, f"this record is wrong: {error}") from error
        if facts.record != Record():
            raise self._source.error(position, "these facts have two records")
        facts.record = record

    def _json(self, position: int) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(self._source.text, position)
        except json.JSONDecodeError as error:
            raise self._source.error(error.pos, f"this JSON is wrong: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise self._source.error(position, f"this JSON is wrong: {error}") from error

    def _look_up(self, reference: str, position: int) -> Any:
        if self._table is None:
            # A string that spans lines may look like the table, which comes last and so wins.
            self._table = {m[1]: m.end() for m in TABLE_LINE.finditer(self._source.text)}
        if reference not in self._table:
            raise self._source.error(
                position,
                f"the table at the end of the text has no @{reference}",
                hint="keep the lines '# @... = {...}' together with the text that refers to them",
            )
        if reference not in self._members:
            self._members[reference] = self._json(self._table[reference])[0]
        return self._members[reference]
