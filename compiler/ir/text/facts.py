"""Facts: the comment after a node or a value that says what the structure does not.

`# float[2,4]; by: fuse/gelu; in: blocks.0.act; at: model.py:6; @3fa9c1d2` gives the types of a
node's outputs, the pass and rule that made the node, the torch module and source line that it
came from, and a reference into the table of records at the end of the text:
`# @3fa9c1d2 = {"namespace": ...}`. A short record stands in the comment itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from aigcc.ir.text.literals import TYPE_WORDS
from aigcc.ir.text.records import Record, node_record
from aigcc.ir.text.typetext import type_text

MADE_BY = "aigcc.made_by"
MODULE = "aigcc.module"
SOURCE = "aigcc.source"

TABLE_LINE = re.compile(r"^# @([0-9a-f]{8,}) = (?=\{)", re.MULTILINE)
_WORD = re.compile(r"[^\s;]+")
_LONGEST_INLINE = 60
_SCOPES = "pkg.torch.onnx.name_scopes"
_TRACE = "pkg.torch.onnx.stack_trace"
_LAST_MODULE = re.compile(r"'([^']+)', '[^']*'\]$")
_FRAME = re.compile(r'File "([^"\n]+)", line ([0-9]+)')
_TYPE = rf"(?:{'|'.join(sorted(TYPE_WORDS))}|\?)"
_STARTS = re.compile(
    rf"\s*(?:{_TYPE}\s*(?:[\[(,;:]|$)|(?:by|in|at):\s|@[0-9a-f]{{8,}}|\{{|\w+\[[^\]]*\]\s*(?:[;,]|$))"
)


@dataclass
class Facts:
    """What a comment said, and where it stands."""

    at: int
    types: list[ir.TypeAndShape] = field(default_factory=list)
    record: Record = field(default_factory=Record)


def reads_as_facts(comment: str) -> bool:
    """Whether a comment claims to be facts; prose is left alone."""
    return _STARTS.match(comment) is not None


def module_path(metadata: Mapping[str, str]) -> str | None:
    """The torch module that a node came from, `blocks.0.lin`, if the exporter said."""
    return metadata.get(MODULE) or _torch_module(metadata)


def source_line(metadata: Mapping[str, str]) -> str | None:
    """The source line that a node came from, `model.py:6`: the innermost one outside torch."""
    return metadata.get(SOURCE) or _torch_source(metadata)


def _torch_module(metadata: Mapping[str, str]) -> str | None:
    match = _LAST_MODULE.search(metadata.get(_SCOPES, ""))
    return None if match is None or match[1].startswith("_empty_nn_module") else match[1]


def _torch_source(metadata: Mapping[str, str]) -> str | None:
    for path, line in reversed(_FRAME.findall(metadata.get(_TRACE, ""))):
        if "/torch/" not in f"/{path}":
            return f"{path.rsplit('/', 1)[-1]}:{line}"
    return None


# The word in the comment, the metadata key it stands for, and what else tells the same.
_ORIGINS: tuple[tuple[str, str, Callable[[Mapping[str, str]], str | None]], ...] = (
    ("by", MADE_BY, lambda metadata: None),
    ("in", MODULE, _torch_module),
    ("at", SOURCE, _torch_source),
)


class FactTable:
    """The records that are too long for the line they belong to."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def field(self, record: Record) -> str:
        """The JSON of a record or a reference to it; nothing for a record that says nothing."""
        members = record.to_json()
        if not members:
            return ""
        text = json.dumps(members, ensure_ascii=False)
        if not text.isprintable():
            text = json.dumps(members)
        if len(text) <= _LONGEST_INLINE:
            return text
        # A hash, not a number, so that one more record changes no other line of a dump.
        digest = hashlib.sha256(text.encode()).hexdigest()
        for length in range(8, len(digest) + 1):
            if self._texts.setdefault(digest[:length], text) == text:
                return f"@{digest[:length]}"
        raise AssertionError("two different records have the same SHA-256")

    def lines(self) -> list[str]:
        """The table, a line for each record, in the order of first use."""
        return [f"# @{reference} = {text}" for reference, text in self._texts.items()]


def node_facts(node: ir.Node, table: FactTable, brief: bool) -> str:
    """The comment of a node, without the `#`."""
    fields = [node_types(node)]
    record = node_record(node, brief)
    for word, key, elsewhere in _ORIGINS:
        told = elsewhere(node.metadata_props)
        text = node.metadata_props.get(key) or told or ""
        if _WORD.fullmatch(text) and text.isprintable():
            fields.append(f"{word}: {text}")
            if text != told:
                record.metadata.pop(key, None)
    fields.append(table.field(record))
    return "; ".join(text for text in fields if text)


def node_types(node: ir.Node) -> str:
    """The types of a node's outputs; nothing where none is known."""
    if all(value.type is None and value.shape is None for value in node.outputs):
        return ""
    return ", ".join(type_text(value.type, value.shape) for value in node.outputs)


def restore_origins(record: Record, origins: Mapping[str, str]) -> None:
    """Put `by`, `in` and `at` into the metadata, unless the metadata say the same already."""
    for word, key, elsewhere in _ORIGINS:
        if word in origins and elsewhere(record.metadata) != origins[word]:
            record.metadata[key] = origins[word]
