"""What OpenVINO makes of a model; runs in a process of its own, whose memory ends with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigcc.errors import CompileError, TargetError
from aigcc.targets.cpu.kernels import read_kernels
from aigcc.targets.cpu.mend import read_model
from aigcc.targets.cpu.precise import save_model
from aigcc.targets.cpu.session import OpenVinoSession, explain

# Operations that are nobody's: nodes share them, and they end the search for a node's parts.
_ENDS = frozenset({"Constant", "Parameter", "Result"})
_NODE = re.compile(r"ONNX node '<Node\((?P<kind>[^)]*)\): (?P<name>[^>]*)>'")


def lower(request: Mapping[str, Any], progress: Callable[[str, float], None]) -> Any:
    """Convert a `.onnx` file, compile it for this machine, and read its kernels back.

    Args:
        request: `source`, the file; `out`, the .xml file to write; `properties` of the compiled
            model; `nodes`, names and outputs of all ONNX nodes in order; `inputs`, names, and
            `feeds`, a .npz file with an array for each.
        progress: Told what runs.

    Returns:
        `version`, of OpenVINO; `processor`, that the kernels were chosen for; `kernels`, a list.
    """
    import openvino

    progress("converting with OpenVINO", 0.1)
    core = openvino.Core()
    try:
        model = read_model(core, Path(request["source"]))
    except RuntimeError as error:
        raise TargetError(
            f"OpenVINO: {explain(error)}", at=_place(str(error), request["nodes"])
        ) from None
    _name_parts(model, request["nodes"])
    save_model(model, Path(request["out"]))
    is_dynamic = model.is_dynamic()
    del model
    progress("reading the kernels back", 0.6)
    try:
        session = OpenVinoSession(Path(request["out"]), request["properties"])
        if is_dynamic:  # kernels are chosen when the shapes are known
            with np.load(request["feeds"]) as arrays:
                session.run(dict(zip(request["inputs"], arrays.values(), strict=True)))
    except CompileError as error:
        raise TargetError(error.what) from None
    kernels = read_kernels(session.compiled, {name for name, _ in request["nodes"]})
    return {
        "version": openvino.get_version(),
        "processor": core.get_property("CPU", "FULL_DEVICE_NAME"),
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
    }


def marked(source: Path) -> Path:
    """A `.onnx` file as a `.xml` file beside it that keeps in float32 what has to be."""
    import openvino

    path = source.with_suffix(".xml")
    save_model(read_model(openvino.Core(), source), path)
    return path


def _place(message: str, nodes: Iterable[tuple[str, Sequence[str]]]) -> str | None:
    """The node that a message names, which it calls after the model's output if it makes one."""
    found = _NODE.search(message)
    if found is None:
        return None
    labels = {output: label for label, outputs in nodes for output in outputs}
    return f"node {labels.get(found['name'], found['name'])} ({found['kind']})"


def _name_parts(model: Any, nodes: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Call each operation after the ONNX node that it is a part of.

    OpenVINO calls the last operation after the node, or after the model's output that it makes, and
    numbers all others differently in each process.
    """
    makers = {
        name: output.get_node()
        for op in model.get_ordered_ops()
        if op.get_type_name() not in _ENDS
        for output in op.outputs()
        for name in output.get_names()
    }
    named: set[str] = set()
    for label, outputs in nodes:
        pending = [makers[name] for name in outputs if name in makers]
        name = label
        while pending:
            op = pending.pop()
            if op.get_name() in named or op.get_type_name() in _ENDS:
                continue
            named.add(op.get_name())
            op.set_friendly_name(name)
            name = f"{label}/{len(named)}"
            pending.extend(port.get_source_output().get_node() for port in op.inputs())
