"""What ONNX Runtime makes of a model; runs in a process of its own, whose memory ends with it."""

from __future__ import annotations

import importlib
import mmap
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.runtime import save_optimised
from aigcc.targets.mobile.operators import required_operators


def list_operators(request: Mapping[str, Any], progress: Callable[[str, float], None]) -> Any:
    """The operators of a `.onnx` file after ONNX Runtime's portable rewrites.

    Args:
        request: `source`, the file, in a folder that may be written to.
        progress: Told what runs.

    Returns:
        `operators`: lists of domain, version and names; `kernels`: operators by node.
    """
    progress("asking ONNX Runtime which operators it will use", 0.5)
    source = Path(request["source"])
    optimised = source.with_name("optimised.onnx")
    save_optimised(source, optimised)
    found = required_operators(Module(ir.load(optimised)))
    return {
        "operators": [[*key, sorted(names)] for key, names in found.items()],
        "kernels": {node.name: node.op_type for node in ir.load(optimised).graph if node.name},
    }


def convert_ort(request: Mapping[str, Any], progress: Callable[[str, float], None]) -> Any:
    """Convert a `.onnx` file to the `.ort` format.

    Args:
        request: `source` and `out`, the files; `scratch`, a folder.
        progress: Told what runs.

    Returns:
        `config` and `typed_config`, the operators that a build must contain, without and with
        their element types; `weights`, bytes of the stored weights by dtype.
    """
    progress("converting with ONNX Runtime", 0.2)
    out, scratch = Path(request["out"]), Path(request["scratch"])
    save_optimised(Path(request["source"]), out)
    progress("reading the operators back", 0.8)
    return {
        "config": _config(out, scratch, typed=False),
        "typed_config": _config(out, scratch, typed=True),
        "weights": _stored_weights(out),
    }


def _tools() -> Any:
    """ONNX Runtime's reader of .ort files."""
    name = "onnxruntime.tools.pytorch_export_helpers"
    # The package loads these helpers on import, and they load torch: seconds, and much memory.
    helpers = sys.modules.setdefault(name, types.ModuleType(name))
    vars(helpers).setdefault("infer_input_info", None)
    return importlib.import_module("onnxruntime.tools.ort_format_model")


def _config(path: Path, scratch: Path, *, typed: bool) -> str:
    config = scratch / "operators.config"
    _tools().create_config_from_models([path], config, typed)
    lines = config.read_text("utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))


def _stored_weights(path: Path) -> dict[str, int]:
    _tools()  # which makes the flatbuffer classes importable
    classes: Any = importlib.import_module("ort_flatbuffers_py.fbs.InferenceSession")
    found: Counter[str] = Counter()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graph = classes.InferenceSession.GetRootAs(data, 0).Model().Graph()
        for index in range(graph.InitializersLength()):
            tensor = graph.Initializers(index)
            found[ir.DataType(tensor.DataType()).name.lower()] += tensor.RawDataLength()
    return dict(found.most_common())
