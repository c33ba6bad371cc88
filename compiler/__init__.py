"""A compiler for generative models: nn.Module, .pt2, ONNX in; TensorRT, TVM, ONNX Runtime out.

>>> import aigcc
>>> aigcc.build("model.onnx", "mobile", "out")                      # doctest: +SKIP
>>> module = aigcc.load("model.onnx")                               # doctest: +SKIP
>>> aigcc.PassManager(aigcc.parse("canonicalize,fuse")).run(module) # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os

# ONNX Runtime reads this when it is imported: without it, it leaves an identifier of the device and
# a database in the user's cache, and reports models to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # type checkers take it for true; typing itself is slow to import
if TYPE_CHECKING:
    __version__: str

    from aigcc.artifact import Artifact as Artifact
    from aigcc.driver import Build as Build
    from aigcc.driver import build as build
    from aigcc.driver import load as load
    from aigcc.errors import CompileError as CompileError
    from aigcc.ir.module import Module as Module
    from aigcc.pipeline.context import Context as Context
    from aigcc.pipeline.manager import Pass as Pass
    from aigcc.pipeline.manager import PassManager as PassManager
    from aigcc.pipeline.rules import Rule as Rule
    from aigcc.pipeline.rules import RulePass as RulePass
    from aigcc.pipeline.text import format as format
    from aigcc.pipeline.text import parse as parse

_HOME = {
    "Artifact": "aigcc.artifact",
    "Build": "aigcc.driver",
    "CompileError": "aigcc.errors",
    "Context": "aigcc.pipeline.context",
    "Module": "aigcc.ir.module",
    "Pass": "aigcc.pipeline.manager",
    "PassManager": "aigcc.pipeline.manager",
    "Rule": "aigcc.pipeline.rules",
    "RulePass": "aigcc.pipeline.rules",
    "build": "aigcc.driver",
    "format": "aigcc.pipeline.text",
    "load": "aigcc.driver",
    "parse": "aigcc.pipeline.text",
}

__all__ = [*_HOME]

if not TYPE_CHECKING:  # with these, type checkers would take any name

    def __getattr__(name):
        """Import on first use: `import aigcc` alone loads neither onnx nor onnxruntime."""
        if name == "__version__":
            from importlib.metadata import version

            return version("aigcc")
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        """What `import aigcc` offers."""
        return [*__all__, "__version__"]
