"""A device's compiler that crashes, or says nothing of use, is bisected to the node."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.targets import make_target, worker

LIBRARIES = {"cpu": "openvino", "gpu(precision=fp32)": "tensorrt_rtx", "jetson(board=host)": "tvm"}
COMPILER = """
import os, signal, onnx

def run(request, progress):
    model = onnx.load(request.get("source") or request["onnx"])
    if any(node.op_type == "Erf" for node in model.graph.node):
        {failure}
    return {{}}
"""
FAILURES = {
    "os.kill(os.getpid(), signal.SIGSEGV)": "the device's compiler died (SIGSEGV)",
    "os.abort()": "the device's compiler died (SIGABRT)",
    "raise RuntimeError('graphScope assertion')": "RuntimeError: graphScope assertion",
    "raise RuntimeError('no kernel for bad')": "RuntimeError: no kernel for bad",
}
TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[4] x) => (float[4] y, float[4] z)
{
  [first] a = Exp (x)
  [second] b = Neg (a)
  [bad] c = Erf (b)  # source: net.py:7
  [fourth] d = Abs (c)
  [last] y = Sin (d)
  [side] z = Cos (a)
}"""


@pytest.mark.parametrize(
    ("name", "failure"),
    [(name, next(iter(FAILURES))) for name in LIBRARIES]
    + list(zip(LIBRARIES, list(FAILURES)[1:], strict=True)),
)
def test_the_node_is_named(
    name: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"needs {LIBRARIES[name]}")
    (tmp_path / "planted.py").write_text(COMPILER.format(failure=failure), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    call: Callable[..., dict[str, Any]] = worker.call
    monkeypatch.setattr(worker, "call", lambda _, *rest: call("planted:run", *rest))
    module = Module.parse(TEXT)
    (bad,) = (node for node in module.nodes() if node.op_type == "Erf")
    bad.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "net.py", line 7, in forward'
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetError) as error:
        make_target(name).lower(module, tmp_path / "out", Context())
    assert error.value.what == FAILURES[failure]
    assert error.value.at is not None
    assert error.value.at.startswith("node bad (Erf)")
    assert "net.py:7" in error.value.at
    assert error.value.hint is not None
    assert "report it" in error.value.hint
    assert not list((tmp_path / "out").iterdir())
