"""Where the time of a program goes: the kinds of kernels that take most of it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from quantise_models import Feeds

_RUNS = 4
_SHOWN = 3


def slowest_of_onnxruntime(path: Path, feeds: Feeds) -> str:
    """The operators that take most of a program's time in ONNX Runtime, with their shares."""
    options = ort.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return _shown(spent)


def slowest_of_openvino(
    path: Path, properties: Mapping[str, Any], feeds: Feeds, is_static: bool
) -> str:
    """The kinds of operations that take most of a program's time in OpenVINO, with their shares.

    Args:
        path: The model.xml.
        properties: OpenVINO's properties.
        feeds: What to run it on.
        is_static: Whether it is compiled for the shapes of these alone.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if is_static:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        model.reshape({port: shapes[port.get_any_name()] for port in model.inputs})
    compiled = core.compile_model(model, "CPU", {**properties, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    given = {port: feeds[name] for port in compiled.inputs for name in port.names if name in feeds}
    spent: Counter[str] = Counter()
    for _ in range(_RUNS):
        request.infer(given)
        for each in request.profiling_info:
            kind = each.exec_type.rpartition("_")[2].lower()
            spent[f"{each.node_type} {kind}"] += each.real_time.total_seconds()
    return _shown(spent)


def _shown(spent: Counter[str]) -> str:
    total = sum(spent.values()) or 1
    return ", ".join(f"{kind} {time / total:.0%}" for kind, time in spent.most_common(_SHOWN))
