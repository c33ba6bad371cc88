"""Turns an ONNX file into a shared library and its parameters; runs in a process of its own."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from aigcc.errors import TargetError
from aigcc.targets.jetson.faithful import keep_special_numbers
from aigcc.targets.jetson.half import multiply_in_half
from aigcc.targets.jetson.parameters import detach_large, settle

Progress = Callable[[str, float], None]

_SMALL = 64
_OPERATOR = re.compile(r'ir\.Op\(.*?name="([\w.]+)".*?support_level=\d+\)')


def compile_model(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Compile a model of static shapes.

    Args:
        request: `onnx`, `library` and `parameters` are paths, the latter two to write; `target` is
            a target of TVM, or None for this machine; `link` is the command that links.
        progress: Told what the compiler is at.

    Returns:
        The version of TVM, how many kernels there are, how often they are launched, and how many
        parameters the program takes.

    Raises:
        TargetError: the front end or the compiler refused the model.
    """
    progress("loading TVM", 0.0)
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    progress("importing the model", 0.1)
    model = onnx.load(request["onnx"], load_external_data=False)
    inputs = len(model.graph.input)
    weights = detach_large(model, Path(request["onnx"]).parent)
    _inline_small_weights(model.graph)
    try:
        program = from_onnx(model, keep_params_in_input=True)
    except Exception as error:
        raise _refusal(error) from error
    program, named = tvm.relax.frontend.detach_params(program)
    weights += named.get("main", [])
    program["main"] = program["main"].with_attr("num_input", inputs)
    try:
        program, executable, parameters = _compile(program, weights, request, progress)
    except Exception as error:
        raise TargetError(f"TVM cannot compile the model: {_message(error)}") from error
    progress("linking", 0.8)
    executable.export_library(request["library"], fcompile=_linker(request["link"]))
    kernels = [f for f in program.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    return {
        "version": tvm.__version__,
        "kernels": len(kernels),
        "launches": program["main"].script().count("R.call_tir("),
        "parameters": parameters,
    }


def _compile(
    program: Any, weights: list[Any], request: dict[str, Any], progress: Progress
) -> tuple[Any, Any, int]:
    """The program as kernels, its machine code, and how many parameters it takes."""
    import tvm
    from tvm import relax

    program = multiply_in_half(program)
    progress("preparing the parameters", 0.2)
    here = tvm.target.Target(_this_machine())
    program, parameters = settle(program, weights, Path(request["parameters"]), here)
    target = tvm.target.Target(request["target"] or _this_machine())
    with target:
        program = relax.transform.FastMathTransform()(program)
        program = keep_special_numbers(relax.get_pipeline("zero")(program))
        progress("generating code", 0.4)
        return program, tvm.compile(program, target=target), parameters


def _inline_small_weights(graph: Any) -> None:
    """Make small initializers Constant nodes: shapes among them must be known when importing."""
    import onnx

    inputs = {value.name for value in graph.input}
    nodes, kept = [], []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > _SMALL or tensor.name in inputs:
            kept.append(tensor)
        else:
            nodes.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    nodes.extend(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _this_machine() -> dict[str, Any]:
    import tvm

    return {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


def _linker(command: Sequence[str]) -> Any:
    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
        line = [*command, "-shared", "-fPIC", "-s", "-o", output, *objects]
        done = subprocess.run(
            [*line, *(options or [])], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise TargetError(
                f"the linker failed: {done.stderr.strip()[-500:]}", at=" ".join(line[:3])
            )

    return link


def _refusal(error: Exception) -> TargetError:
    node = _node_of(error.__traceback__)
    return TargetError(
        f"TVM cannot import the model: {_message(error)}",
        at=f"node {node.name or node.output[0]} ({node.op_type})" if node is not None else "",
        hint="let the pipeline end with legalize,canonicalize, or change this node",
    )


def _message(error: Exception) -> str:
    """The first line, with operators called by their names instead of spelled out."""
    lines = str(error).strip().splitlines()
    return _OPERATOR.sub(r"\1", lines[0]) if lines else type(error).__name__


def _node_of(trace: TracebackType | None) -> Any:
    """The node that the front end was at; its errors do not name it."""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_construct_nodes":
            return trace.tb_frame.f_locals.get("node")
        trace = trace.tb_next
    return None
