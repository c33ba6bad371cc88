"""Inputs that are frozen to a value: constants from then on, which passes fold and follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import CompileError, ModelError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ranges import symbols
from aigcc.sample_sources import open_array

Array = npt.NDArray[Any]

_MOST_SHOWN = 16  # elements of a value in the text of a command
_IR_VERSION = 4  # before it, an initializer had to be an input as well
_WHOLE = "a number, true or false, a list such as [1,2,3], or a .npy file"


def freeze(module: Module, values: Mapping[str, Any]) -> Module:
    """A copy of a module in which some inputs are constants.

    Dims of other inputs that have the name of one whose size a value tells get that size.

    Args:
        module: Left as it is.
        values: By the name of an input: an array, a number or a list; or such a one as text, or
            the path of a `.npy` file.

    Raises:
        CompileError: there is no such input, or it does not take the value.
    """
    made = module.clone()
    known = {value.name or "": value for value in made.graph.inputs}
    sizes: dict[str, int] = {}
    for name, given in values.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ModelError(f"the model has no input {name!r} to freeze", at=name, hint=hint)
        value = known[name]
        array = _fitted(value, _read(given, value), sizes)
        made.frozen = {**made.frozen, name: array}
        _replace(made.graph, value, array)
    made.model.ir_version = max(made.model.ir_version, _IR_VERSION if values else 0)
    for value in made.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(str(dim), dim) for dim in value.shape])
    return made


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE of a command line, by name.

    Raises:
        CompileError: one is of another form, or two are of one name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CompileError(f"--set {text!r} is not NAME=VALUE", hint=f"VALUE is {_WHOLE}")
        if name in found:
            raise CompileError(f"{name!r} is set twice", at=f"--set {text}")
        found[name] = value
    return found


def settings(values: Mapping[str, Any]) -> list[str] | None:
    """The words of a command that freeze the same; None where a value is too long for one."""
    words = []
    for name, value in values.items():
        if not isinstance(value, str | Path):
            array = np.asarray(value)
            if array.size > _MOST_SHOWN or array.dtype.kind not in "biuf":
                return None
            value = json.dumps(array.tolist(), separators=(",", ":"))
        words += ["--set", f"{name}={value}"]
    return words


def _read(given: Any, value: ir.Value) -> Array:
    """What is given as an array."""
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".npy")):
        return np.array(open_array(Path(given)))
    if not isinstance(given, str) or value.dtype == ir.DataType.STRING:
        return np.asarray(given)
    text = f"[{given}]" if "," in given and "[" not in given else given
    for parse in (lambda: json.loads(text.lower()), lambda: float(text)):
        try:
            return np.asarray(parse())
        except ValueError:
            continue
    raise CompileError(f"{given!r} is no value for the input {value.name!r}", hint=f"give {_WHOLE}")


def _fitted(value: ir.Value, array: Array, sizes: dict[str, int]) -> Array:
    """An array in the type and the shape of an input; what that tells of dims is added to sizes."""
    array = _cast(value, array)
    dims = list(array.shape if value.shape is None else value.shape)
    if array.size == 1 and all(not isinstance(dim, int) or dim == 1 for dim in dims):
        array = array.reshape([1] * len(dims))
    fits = array.ndim == len(dims) and all(
        not isinstance(dim, int) or dim in (size, -1)
        for size, dim in zip(array.shape, dims, strict=True)
    )
    if not fits:
        raise CompileError(
            f"the input {value.name!r} takes the shape [{', '.join(map(str, dims))}], "
            f"not {list(array.shape)}",
            hint=f"give {_WHOLE} of that shape",
        )
    for size, dim in zip(array.shape, dims, strict=True):
        if symbols(dim) == {str(dim)} and sizes.setdefault(str(dim), size) != size:
            raise CompileError(
                f"the dim {str(dim)!r} is {sizes[str(dim)]} in one value and {size} in that of "
                f"{value.name!r}",
                hint="equal names of dims mean equal sizes",
            )
    return array


def _cast(value: ir.Value, array: Array) -> Array:
    """An array in the type of an input, where that holds all of it."""
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise ModelError(f"the input {value.name!r} is no tensor, and cannot be frozen")
    if value.dtype == ir.DataType.STRING:
        if array.dtype.kind in "OSU":
            return array.astype(object)
    elif array.dtype.kind in "biuf" or array.dtype == value.dtype.numpy():
        wanted = value.dtype.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(wanted)
        is_exact = np.array_equal(
            cast.astype(array.dtype), array, equal_nan=array.dtype.kind == "f"
        )
        is_number = value.dtype.is_floating_point() and bool(np.isfinite(cast.astype(float)).all())
        if is_exact or (is_number and array.dtype.kind == "f"):
            return cast
    shown = str(array.tolist()) if array.size <= _MOST_SHOWN else f"{array.dtype.name} given"
    raise CompileError(
        f"the input {value.name!r} takes {value.dtype.name.lower()}, not {shown}",
        hint=f"give {_WHOLE} that this type holds",
    )


def _replace(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """Make a constant of an input, or of the default that it has."""
    if value.is_initializer():
        del graph.initializers[str(value.name)]
    graph.inputs.remove(value)
    assert value.dtype is not None
    if value.dtype == ir.DataType.STRING:
        texts = [text.encode() if isinstance(text, str) else text for text in array.ravel()]
        value.const_value = ir.StringTensor(texts, shape=ir.Shape(array.shape), name=value.name)
    else:
        value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
