"""The way in from PyTorch: an nn.Module or an ExportedProgram becomes a module.

`torch.export` traces, `torch.onnx.export` (dynamo) lowers to `onnx_ir`; the torch source line and
the module path of every node stay in its metadata.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigcc.errors import CompileError, ModelError, describe, did_you_mean, user_line
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.trace_dims import keep_dims, repair_ranges

if TYPE_CHECKING:
    import torch

OPSET = 20


def from_torch(
    model: torch.nn.Module | torch.export.ExportedProgram,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    dynamic_shapes: Any = None,
    *,
    opset: int = OPSET,
) -> Module:
    """Trace a torch model.

    Args:
        model: A module in evaluation mode, or what `torch.export.export` made of one.
        inputs: Example inputs, positional or by name; an ExportedProgram needs none.
        dynamic_shapes: The dims that may change, as `torch.export.export` takes them.
        opset: The default opset of the result.

    Returns:
        A module whose inputs and outputs have the names that the torch model gives them; an
        attribute `output_names` of the nn.Module names the outputs.

    Raises:
        ModelError: the model cannot be exported; the hint says what usually helps.
    """
    torch = import_torch()
    if not _is_model(model):
        raise ModelError(
            f"this is no torch model: {type(model).__name__}",
            hint="give an nn.Module, or what torch.export.export made of one",
        )
    output_names = getattr(model, "output_names", None)
    if isinstance(model, torch.nn.Module):
        program = _export(torch, model, inputs, dynamic_shapes)
    else:
        program = model
    repair_ranges(program)
    with quietly():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                verbose=False,
                optimize=False,
            )
        except Exception as error:
            at = _source_line(program, error)
            raise _advice("torch.onnx.export cannot lower this model", error, at) from error
    module = Module(made.model)
    keep_dims(module, program, dynamic_shapes)
    if output_names is not None:
        _name_outputs(module, output_names)
    return module


def _name_outputs(module: Module, names: Sequence[str]) -> None:
    """Rename the outputs; whatever else has one of these names makes room.

    The exporter could do it, but it checks no clash with the names of inner values.
    """
    if len(names) != len(module.outputs):
        raise ModelError(
            f"output_names has {len(names)} names for {len(module.outputs)} outputs",
            hint="give one name to each tensor that forward() returns",
        )
    fresh = Names(module)
    for graph in module.graphs():
        for node in graph:
            for value in node.outputs:
                if value.name in names and not value.is_graph_output():
                    value.name = fresh.fresh(f"{value.name}_value")
    for value, name in zip(module.outputs, names, strict=True):
        value.name = name


def from_callable(reference: str, *, opset: int = OPSET) -> Module:
    """Call `package.module:function`, which returns `(nn.Module, inputs[, dynamic_shapes])`.

    Raises:
        ModelError: it cannot be imported, raises, or returns something else.
    """
    make = load_callable(reference)
    try:
        made = make()
    except CompileError:
        raise
    except ModuleNotFoundError as error:
        raise _not_installed(error, reference) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{reference} raised {describe(error)}", at=user_line(error)) from error
    if isinstance(made, str | Path):
        return Module.load(made)
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not _is_model(made[0]):
        raise ModelError(
            f"{reference} returned {_name_types(made)}",
            at=reference,
            hint="return (nn.Module, inputs) or (nn.Module, inputs, dynamic shapes)",
        )
    return from_torch(*made, opset=opset)


def _is_model(thing: Any) -> bool:
    torch = import_torch()
    return isinstance(thing, torch.nn.Module | torch.export.ExportedProgram)


def _name_types(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(item).__name__ for item in made)})"
    return type(made).__name__


def load_callable(reference: str) -> Any:
    """The object that `package.module:name` names; the current folder is on the path.

    Raises:
        ModelError: the module cannot be imported or has no such callable.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _not_installed(error, reference) from error
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{module_name} cannot be imported: {describe(error)}", at=user_line(error)
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [
            key
            for key, item in vars(module).items()
            if callable(item) and getattr(item, "__module__", "") == module_name and key[0] != "_"
        ]
        raise ModelError(
            f"{module_name} has no callable {name!r}",
            at=reference,
            hint=did_you_mean(name, known) if known else None,
        )
    return found


def _not_installed(error: ImportError, reference: str) -> ModelError:
    missing = (error.name or reference.partition(":")[0]).split(".")[0]
    hint = f"is {missing} installed, or a file of this folder?"
    if missing in ("torch", "diffusers", "transformers", "gguf", "safetensors"):
        hint = "pip install 'aigcc[models]'"
    return ModelError(f"cannot import {error.name or missing}", at=reference, hint=hint)


def import_torch() -> Any:
    """The torch package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            "reading a torch model needs torch", hint="pip install 'aigcc[torch]'"
        ) from error
    return torch


def _export(torch: Any, model: Any, inputs: Any, dynamic_shapes: Any) -> Any:
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    try:
        with quietly(), torch.no_grad():
            return torch.export.export(
                model.eval(), args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        what = "torch.export cannot trace this model"
        raise _advice(what, error, user_line(error)) from error


_MORE = re.compile(r" For more information, run with TORCH_LOGS=\S+")
_SUGGESTION = re.compile(r"^  (\w+) = (\S.*)$", re.M)  # one of the fixes that torch.export lists

_ADVICE = (
    (
        "Constraints violated",
        "a dim marked dynamic is fixed by the model: leave it out of dynamic_shapes",
    ),
    (
        "data-dependent",
        "a branch depends on the values of a tensor: replace it by torch.where or torch.cond",
    ),
    (
        "GuardOnDataDependentSymNode",
        "a branch depends on the values of a tensor: use torch.where or torch.cond",
    ),
    (
        "No ONNX function found",
        "an operator has no ONNX form: rewrite it with basic torch operators",
    ),
    (
        "positional argument",
        "the example inputs do not fit forward(): check their number and names",
    ),
    ("takes", "the example inputs do not fit forward(): check their number and names"),
)


def _advice(what: str, error: Exception, at: str | None) -> ModelError:
    text = "".join(traceback.format_exception(error))
    hint = next(
        (advice for mark, advice in _ADVICE if mark in text),
        "try a smaller part of the model, or see https://docs.pytorch.org/docs/stable/export.html",
    )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return ModelError(f"{what}: {first_line(cause)}", at=at, hint=_fixes(str(cause)) or hint)


def _fixes(text: str) -> str:
    """What torch.export says has to be changed in the dynamic shapes; empty where it says nothing.

    Dims that it finds to be numbers are to be left out: `batch = 2` is no dim of its own.
    """
    found = _SUGGESTION.findall(text.partition("Suggested fixes:")[2])
    sizes = [f"{name} is always {size}" for name, size in found if size.isdecimal()]
    dims = [f"{name} = {dim.replace(', max=oo', '')}" for name, dim in found if not dim.isdecimal()]
    parts = ["in dynamic_shapes take " + "; ".join(dims)] if dims else []
    parts += ["leave out of dynamic_shapes what the model fixes: " + ", ".join(sizes)] * bool(sizes)
    return "; ".join(parts)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without how to make torch say more."""
    lines = str(error).strip().splitlines()
    return _MORE.sub("", lines[0]).strip() if lines else type(error).__name__


def _source_line(program: Any, error: Exception) -> str | None:
    """The line that made the node of an ExportedProgram that could not be translated."""
    found = re.search(r"translating node %(\w+)", str(error.__cause__ or error))
    if found is None:
        return None
    for node in program.graph.nodes:
        if node.name in found[1]:
            lines = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
            return ":".join(lines[-1]) if lines else None
    return None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporter's progress prints and deprecation warnings off the user's screen."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
