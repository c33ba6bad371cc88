"""Inputs at the edges of what a model may get: NaN, infinities, zeros, hidden rows, empty dims."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.steering import steering_inputs
from aigcc.ir.module import Module
from aigcc.ranges import declared, resolve, symbols
from aigcc.synthetic import vocabulary

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_MASK = re.compile(r"mask|bias", re.I)
_DIMS = 3  # dims that are empty, one at a time

# Operators that hand on the numbers of a mask on its way to scores.
_HAND_ON = frozenset(
    {"Add", "Cast", "Div", "Expand", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub",
     "Transpose", "Unsqueeze"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Edge:
    """One set of inputs at an edge.

    Attributes:
        name: What it is, in words that follow "with".
        feeds: Input name to array.
        kind: "far" where numbers are so large or small that what stands between inputs and outputs
            may overflow if it is computed in another order; "special" where they are NaN or
            infinite themselves; "loose" where only NaN and infinities are to be the same; "empty"
            where a dim is 0.
    """

    name: str
    feeds: Feeds
    kind: Literal["plain", "far", "special", "loose", "empty"] = "plain"


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The inputs of a module, by what may be put into them.

    Attributes:
        numbers: Of floats.
        scores: Of floats that are added to the scores of a softmax, or are such.
        flags: Masks of booleans and whole numbers.
        wholes: Whole numbers that are only computed with.
    """

    numbers: tuple[str, ...]
    scores: tuple[str, ...]
    flags: tuple[str, ...]
    wholes: tuple[str, ...]


def edges(module: Module, sample: Feeds) -> Iterator[Edge]:
    """Edges of a module's inputs, those that tell most first.

    Args:
        module: Inputs that steer it (see `aigcc.analysis.steering`) keep the sample's numbers.
        sample: An ordinary set of inputs.
    """
    inputs = _sorted(module)
    yield from _masks(inputs, sample)
    yield from _numbers(inputs.numbers, sample)
    for name, choose in (("the highest integers", _highest), ("the lowest integers", _lowest)):
        if inputs.wholes:
            yield Edge(name, _changed(sample, inputs.wholes, choose))
    yield from _empty(module, sample)


def is_number(array: Array) -> bool:
    """Whether an array holds floats, of numpy's own types or of others."""
    return array.dtype.kind == "f" or (
        array.dtype.kind == "V" and array.dtype.name.startswith(("bfloat", "float"))
    )


def _sorted(module: Module) -> _Inputs:
    steering = steering_inputs(module)
    numbers, scores, flags, wholes = [], [], [], []
    for value in module.inputs:
        name, dtype = value.name or "", value.dtype
        if name in steering or dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        is_mask = bool(_MASK.search(name))
        if dtype.is_floating_point():
            if dtype.bitwidth < 16:
                continue
            numbers += [] if is_mask else [name]
            scores += [name] if is_mask or _reaches_scores(value) else []
        elif dtype == ir.DataType.BOOL or (is_mask and dtype.is_integer()):
            flags.append(name)
        elif dtype.is_integer() and dtype.bitwidth >= 8 and vocabulary(value) is None:
            wholes.append(name)
    return _Inputs(tuple(numbers), tuple(scores), tuple(flags), tuple(wholes))


def _reaches_scores(value: ir.Value) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        for node, place in waiting.pop().uses():
            is_score = node.op_type == "Attention" and place > 2
            if is_score or node.op_type in ("Softmax", "LogSoftmax"):
                return True
            if node.op_type in _HAND_ON:
                waiting += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
    return False


def _masks(inputs: _Inputs, sample: Feeds) -> Iterator[Edge]:
    """Masks that hide whole rows, everything, the ends of rows, and nothing."""
    hidden: list[tuple[str, Callable[[Array], float]]] = [
        ("-inf", lambda array: -np.inf),
        ("the lowest number", lambda array: float(ml_dtypes.finfo(array.dtype).min)),
    ]
    for name, place in (("a row", _first_row), ("the end of each row", _ends)):
        for text, low in hidden if inputs.scores else ():
            feeds = _changed(sample, inputs.scores, _writes(place, low))
            is_loose = text != "-inf" and any(_is_half(feeds[each]) for each in inputs.scores)
            kind: Literal["plain", "loose"] = "loose" if is_loose else "plain"
            yield Edge(f"a mask that hides {name} with {text}", feeds, kind)
        if inputs.flags:
            feeds = _changed(sample, inputs.flags, _writes(place, lambda array: 0))
            yield Edge(f"a mask that hides {name}", feeds)
    if inputs.flags:
        yield Edge("a mask of zeros", _changed(sample, inputs.flags, np.zeros_like))
    if inputs.scores:
        yield Edge("a mask of zeros to add", _changed(sample, inputs.scores, np.zeros_like))


def _numbers(names: tuple[str, ...], sample: Feeds) -> Iterator[Edge]:
    if not names:
        return

    def scaled(by: float, half: float) -> Feeds:
        return _changed(sample, names, lambda a: _times(a, half if _is_half(a) else by))

    def holding(number: float) -> Feeds:
        return _changed(sample, names, _writes(_middle, lambda array: number))

    yield Edge("a NaN", holding(np.nan), "special")
    yield Edge("zeros", _changed(sample, names, np.zeros_like))
    yield Edge("an infinity", holding(np.inf), "special")
    yield Edge("a negative infinity", holding(-np.inf), "special")
    yield Edge("large numbers", scaled(1e8, 100), "far")
    yield Edge("huge numbers", scaled(1e30, 1e4), "far")
    yield Edge("tiny numbers", scaled(1e-30, 1e-5), "far")
    yield Edge("subnormal numbers", scaled(1e-40, 1e-7), "far")
    yield Edge("negative zeros", _changed(sample, names, lambda a: -np.zeros_like(a)))


def _empty(module: Module, sample: Feeds) -> Iterator[Edge]:
    """A size of 0 for each dim that varies."""
    sizes: dict[str, int] = {}
    inputs = [value for value in module.inputs if value.name in sample]
    for value in inputs:
        for size, dim in zip(sample[str(value.name)].shape, value.shape or (), strict=False):
            if symbols(dim) == {str(dim)}:
                sizes[str(dim)] = size
    ranges = declared(module)
    free = [name for name in sizes if name not in ranges or 0 in ranges[name]]
    for name in [name for name in free if sizes[name]][:_DIMS]:
        feeds = {
            str(value.name): _resized(value, sample[str(value.name)], {**sizes, name: 0})
            for value in inputs
        }
        yield Edge(f"{name} = 0", {**sample, **feeds}, "empty")


def _resized(value: ir.Value, array: Array, sizes: Mapping[str, int]) -> Array:
    """The beginning of an array in each dim."""
    for axis, dim in enumerate(value.shape or ()):
        size = resolve(dim, sizes)
        if size is not None and 0 <= size < array.shape[axis]:
            array = np.take(array, range(size), axis)
    return array


def _changed(sample: Feeds, names: tuple[str, ...], change: Callable[[Array], Array]) -> Feeds:
    return {name: change(array) if name in names else array for name, array in sample.items()}


def _writes(
    place: Callable[[Array], Any], number: Callable[[Array], float]
) -> Callable[[Array], Array]:
    """A change that writes a number to some places of an array; both depend on it."""

    def write(array: Array) -> Array:
        made = array.copy()
        if made.size:
            made[place(array)] = number(array)
        return made

    return write


def _first_row(array: Array) -> Any:
    return (..., 0, slice(None)) if array.ndim > 1 else ...


def _ends(array: Array) -> Any:
    return (..., slice((array.shape[-1] + 1) // 2, None)) if array.ndim else ...


def _middle(array: Array) -> Any:
    return np.unravel_index(array.size // 2, array.shape) if array.size else ...


def _times(array: Array, by: float) -> Array:
    dtype = array.dtype
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(array.astype(np.float64) * by, -largest, largest).astype(dtype)


def _highest(array: Array) -> Array:
    return np.full_like(array, np.iinfo(array.dtype).max)


def _lowest(array: Array) -> Array:
    return np.full_like(array, np.iinfo(array.dtype).min)


def _is_half(array: Array) -> bool:
    return array.dtype == np.float16
