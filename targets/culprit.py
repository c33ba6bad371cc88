"""Finds the node at which a device's compiler fails, where its error names none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from aigcc.errors import TargetError
from aigcc.ir.edit import remove_node
from aigcc.ir.module import Module
from aigcc.ir.text.facts import source_line
from aigcc.target import node_label
from aigcc.targets.worker import Died

_SECONDS = 90.0
_HINT = (
    "this is a fault of the device's compiler: write the node otherwise, try another precision or "
    "target, and report it with the model up to there"
)

T = TypeVar("T")
Progress = Callable[[str, float], None]


def built(
    module: Module, out: Path, progress: Progress, build: Callable[[Module, Path, Progress], T]
) -> T:
    """What `build` makes of a module in a folder.

    Raises:
        TargetError: it failed, or its process died; with the node, which is looked for where the
            compiler names none.
    """
    try:
        return build(module, out, progress)
    except TargetError as error:
        progress("looking for the node at which the device's compiler fails", 0.0)

        def again(part: Module, folder: Path) -> None:
            build(part, folder, lambda text, fraction: None)

        raise with_culprit(error, module, again) from error


def with_culprit(
    error: TargetError, module: Module, build: Callable[[Module, Path], None]
) -> TargetError:
    """The error, with the node at which a module fails to build where it names none."""
    if error.at and not isinstance(error, Died):
        return error
    named = [node for node in module.nodes() if node.name and node.name in error.what]
    if named:
        at = _place(max(named, key=lambda node: len(node.name or "")))
    else:
        at = find_culprit(module, build)
    hint = _HINT if isinstance(error, Died) else error.hint or _HINT
    return TargetError(error.what, at=at or error.at, hint=hint)


def find_culprit(module: Module, build: Callable[[Module, Path], None]) -> str:
    """The first node with which a module fails to build, by halving it; empty where none is found.

    Args:
        module: Fails as a whole.
        build: Builds a module into an empty folder, and raises TargetError.

    Returns:
        The node; where time runs out, the last one that is right and the first that is not.
    """
    nodes = list(module.graph)
    right, wrong, started = 0, len(nodes), time.monotonic()
    while wrong - right > 1 and time.monotonic() - started < _SECONDS:
        middle = (right + wrong) // 2
        if _fails(_first(module, middle), build):
            wrong = middle
        else:
            right = middle
    if not nodes or (wrong == len(nodes) > 1 and right == 0):
        return ""  # not even one half was built
    node = nodes[wrong - 1]
    found = _place(node)
    return found if wrong - right == 1 else f"behind {node_label(nodes[right - 1])}, up to {found}"


def _place(node: ir.Node) -> str:
    """A node in words, with the line of the torch source where that is known."""
    line = source_line(node.metadata_props)
    return f"node {node_label(node)} ({node.op_type})" + (f", {line}" if line else "")


def _fails(module: Module, build: Callable[[Module, Path], None]) -> bool:
    with tempfile.TemporaryDirectory(prefix="aigcc-") as folder:
        try:
            build(module, Path(folder))
        except TargetError:
            return True
    return False


def _first(module: Module, count: int) -> Module:
    """The first nodes of a module; what others read of them are its outputs."""
    cut = module.clone()
    graph = cut.graph
    kept, left = list(graph)[:count], list(graph)[count:]
    read = {value for node in left for value in _read(node)}
    outputs = [
        value
        for node in kept
        for value in node.outputs
        if value in read or value.is_graph_output() or not value.uses()
    ]
    graph.outputs[:] = [value for value in outputs if isinstance(value.type, ir.TensorType)]
    for node in reversed(left):
        remove_node(node)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_input():
            del graph.initializers[name]
    return cut


def _read(node: ir.Node) -> set[ir.Value]:
    """What a node and the nodes in its branches read."""
    found = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                found |= _read(inner)
            found.update(attribute.as_graph().outputs)
    return found
