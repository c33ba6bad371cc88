"""Where nodes come from, which is nobody's business on a device: stripped, and kept beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.text.facts import MODULE, SOURCE, module_path, source_line

PROVENANCE = "provenance.json"
"""The file of an artifact that names the torch module and the line that each node came from."""

_OWN = "aigcc."


def stripped(module: Module) -> Module:
    """A copy without what exporters say of it: stack traces, scopes, names of files, comments."""
    made = module.clone()
    made.model.doc_string = made.model.producer_name = made.model.producer_version = None
    _strip(made.model.metadata_props)
    for graph in made.graphs():
        graph.doc_string = None
        _strip(graph.metadata_props)
        values = list(graph.inputs)
        if isinstance(graph, ir.Graph):
            values += graph.initializers.values()
        for node in graph:
            node.doc_string = None
            _strip(node.metadata_props)
            values += node.outputs
        for value in values:
            value.doc_string = None
            _strip(value.metadata_props)
    return made


def _strip(metadata: dict[str, str]) -> None:
    for key in list(metadata):
        if not key.startswith(_OWN) or key in (MODULE, SOURCE):
            del metadata[key]


def origins(module: Module) -> dict[str, dict[str, str]]:
    """By node: the torch module, and the file and line, without its folders."""
    found = {}
    for node in module.nodes():
        facts = {
            "module": module_path(node.metadata_props),
            "source": source_line(node.metadata_props),
        }
        if node.name and any(facts.values()):
            found[node.name] = {key: text for key, text in facts.items() if text}
    return found


def folders(*named: object) -> list[str]:
    """The folders of this machine that no artifact should name: those of paths, and the usual."""
    paths = [Path(str(path)).absolute() for path in named if isinstance(path, str | Path)]
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *(p.parent for p in paths)]
    texts = {str(form) for place in places for form in (place, place.resolve())}
    return sorted((text for text in texts if text != "/"), key=len, reverse=True)


def without_folders(thing: Any, names: Iterable[str]) -> Any:
    """The same facts with paths that begin with one of some folders cut down to what follows."""
    return _shortened(thing, [f"{name}/" for name in names])


def _shortened(thing: Any, starts: list[str]) -> Any:
    if isinstance(thing, str):
        for start in starts:
            thing = thing.replace(start, "")
        return thing
    if isinstance(thing, Mapping):
        return dict(_pairs(thing, starts))
    if isinstance(thing, list | tuple):
        return [_shortened(item, starts) for item in thing]
    return thing


def _pairs(thing: Mapping[Any, Any], starts: list[str]) -> Iterator[tuple[Any, Any]]:
    for key, value in thing.items():
        yield key, _shortened(value, starts)
