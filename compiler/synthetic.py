"""Inputs made up from a module's signature, for when there are no samples."""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import SampleError
from aigcc.ir.module import Module
from aigcc.ranges import Dim, Range, declared, invert, place, resolve, settled, symbols, varied

Array = npt.NDArray[Any]

COUNT = 4
"""How many synthetic samples there are."""

# Sizes of dims by what they are called; the first that matches counts.
_SIZES = (
    (re.compile(r"batch", re.I), 1),
    (re.compile(r"past|cache|history", re.I), 8),
    (re.compile(r"seq|len|tok|text|frame", re.I), 16),
    (re.compile(r"height|width|^[hw]$", re.I), 32),
)
_PIXELS = 32
_OTHER = 8
_ANY_POSITION = 1 << 20
_LARGEST = 1 << 30  # elements of an input

# Float inputs that a model divides by, or takes the logarithm of.
_POSITIVE = re.compile(r"sigma|guidance|scale|strength|noise_level", re.I)
_TIMESTEP = re.compile(r"time_?step|^t$", re.I)
_LENGTH = re.compile(r"len", re.I)

# Operators whose output holds the same numbers as their first input, elsewhere.
_MOVES = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
_ANY = Range()
_ROWS = "aigcc.table_rows"  # of an input: see `set_vocabulary`
_STORED = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make up the numbers of one input, here and in the text of an example program.

    Attributes:
        kind: Standard normal; uniform or whole numbers from `low` to below `high`; all `low`; or
            the last positions of `low` tokens, modulo `high`.
        low: See `kind`.
        high: See `kind`.
    """

    kind: Literal["normal", "uniform", "integers", "full", "positions"]
    low: float = 0
    high: float = 0

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """An array of numpy's own dtype for this kind of numbers."""
        match self.kind:
            case "normal":
                return random.standard_normal(shape)
            case "uniform":
                return random.uniform(self.low, self.high, shape)
            case "integers":
                return random.integers(int(self.low), int(self.high), shape)
            case "full":
                return np.full(shape, self.low)
        start = max(0, int(self.low) - shape[-1])
        return np.broadcast_to(np.arange(start, start + shape[-1]) % int(self.high), shape)

    def source(self, shape: str) -> str:
        """A Python expression that does the same with numpy as `np` and a generator `random`."""
        match self.kind:
            case "normal":
                return f"random.standard_normal({shape})"
            case "uniform":
                return f"random.uniform({self.low}, {self.high}, {shape})"
            case "integers":
                return f"random.integers({self.low}, {self.high}, {shape})"
            case "full":
                return f"np.full({shape}, {self.low})"
        return f"np.broadcast_to(np.arange({shape}[-1]) % {self.high}, {shape})"


def choose_dims(module: Module) -> dict[str, int]:
    """A small size for every symbolic dim of the inputs, the same for equal names.

    Batches are 1, sequences 16, images 32 by 32, as far as the ranges that are declared allow. A
    mask that covers a key/value cache and the new tokens gets the length of both. Sizes that were
    found to run (see `aigcc.settle`) go before all guesses.
    """
    sizes = _guess_dims(module)
    known = sizes.keys() | unnamed_dims(module).keys()
    return {**sizes, **{name: size for name, size in settled(module).items() if name in known}}


def unnamed_dims(module: Module) -> dict[str, int]:
    """The guess for every dim of the inputs without a name, by its place."""
    return {
        place(value, axis): _guess_by_axis(axis, value)
        for value in module.inputs
        for axis, dim in enumerate(value.shape or ())
        if not symbols(dim) and (not isinstance(dim, int) or dim < 0)
    }


def _guess_dims(module: Module) -> dict[str, int]:
    sizes: dict[str, int] = {}
    ranges = declared(module)
    for value in module.inputs:
        for axis, dim in enumerate(value.shape or ()):
            for symbol in symbols(dim):
                if symbol not in sizes:
                    size = _guess_size(symbol, dim, axis, value)
                    sizes[symbol] = ranges.get(symbol, _ANY).clamp(size)
    past, new = _past_and_new(module, sizes)
    for value in module.inputs:
        name = (value.name or "").lower()
        if past and "mask" in name and value.shape:
            sizes.update(dict.fromkeys(_own_symbol(value.shape[-1], value, module), past + new))
    return sizes


def input_shape(value: ir.Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The dims of an input of known rank; those that have neither size nor name are chosen."""
    sized = [resolve(dim, sizes) for dim in value.shape or ()]
    return tuple(
        size
        if size is not None and size >= 0
        else sizes.get(place(value, axis), _guess_by_axis(axis, value))
        for axis, size in enumerate(sized)
    )


def synthetic_feeds(module: Module, count: int = COUNT) -> Iterator[dict[str, Array]]:
    """Feeds that are the same in every run; more than `count` where a dim is to have more sizes.

    Raises:
        SampleError: an input has no shape or no element type, or is not a tensor.
    """
    chosen, others = choose_dims(module), varied(module)
    for index in range(max(count, *map(len, others.values())) if others else count):
        sizes = {**chosen, **{name: row[index % len(row)] for name, row in others.items()}}
        total = count_tokens(module, sizes)
        yield {v.name or "": _array(v, sizes, total, index) for v in module.inputs}


def count_tokens(module: Module, sizes: Mapping[str, int]) -> int:
    """Tokens in the key/value cache and new ones together; 0 where there are none."""
    return sum(_past_and_new(module, sizes))


def vocabulary(value: ir.Value) -> int | None:
    """The number of rows of the smallest constant table that `value` indexes, or None."""
    if _ROWS in value.metadata_props:
        return int(value.metadata_props[_ROWS])
    found: list[int] = []
    waiting, seen = [value], {value}
    while waiting:
        for node, position in waiting.pop().uses():
            if node.op_type in _MOVES and position == 0:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
            elif node.op_type in ("Gather", "GatherBlockQuantized") and position == 1:
                rows = _rows(node)
                if rows is not None:
                    found.append(rows)
    return min(found, default=None)


def set_vocabulary(value: ir.Value, rows: int) -> None:
    """Let `vocabulary` know the table of an input whose module has no nodes."""
    value.metadata_props[_ROWS] = str(int(rows))


def _rows(gather: ir.Node) -> int | None:
    table = gather.inputs[0]
    if table is None or table.shape is None:
        return None
    axis = gather.attributes.get_int("axis" if gather.op_type == "Gather" else "gather_axis", 0)
    rows = table.shape[axis]
    while table is not None and table.const_value is None:
        producer = table.producer()
        if producer is None or producer.op_type not in (*_STORED, "Constant"):
            return None
        if producer.op_type == "Constant":
            break
        table = producer.inputs[0]
    return rows if isinstance(rows, int) else None


def _guess_size(symbol: str, dim: Dim, axis: int, value: ir.Value) -> int:
    """Of a symbol; the size of a dim such as `2*th` is guessed as a whole."""
    for pattern, size in _SIZES:
        if pattern.search(symbol):
            return size
    size = _guess_by_axis(axis, value)
    if symbols(dim) == {symbol} != {str(dim)}:
        found = invert(dim, symbol, size, {})
        return size if found is None else found
    return size


def _guess_by_axis(axis: int, value: ir.Value) -> int:
    if axis == 0:
        return 1
    is_image = len(value.shape or ()) >= 4 and "past" not in (value.name or "")
    return _PIXELS if is_image and axis >= 2 else _OTHER


def _past_and_new(module: Module, sizes: Mapping[str, int]) -> tuple[int, int]:
    """How many tokens the key/value cache holds, and how many are new; 0 where there are none."""
    past = new = 0
    for value in module.inputs:
        name, shape = (value.name or "").lower(), value.shape
        if shape is None:
            continue
        if not past and len(shape) >= 3 and re.search(r"past|cache", name):
            past = resolve(shape[-2], sizes) or 0
        is_text = value.dtype is not None and value.dtype.is_integer() and len(shape) == 2
        if not new and is_text and "mask" not in name:
            new = resolve(shape[-1], sizes) or 0
    return past, new


def _own_symbol(dim: int | ir.SymbolicDim, owner: ir.Value, module: Module) -> frozenset[str]:
    """The name of a dim that is a plain symbol and is in no other input than `owner`."""
    others = [value.shape or () for value in module.inputs if value is not owner]
    names = symbols(dim)
    is_own = names == {str(dim)} and not any(dim in shape for shape in others)
    return names if is_own else frozenset()


def recipe(value: ir.Value, total: int) -> Recipe:
    """How to make up numbers for an input.

    Args:
        value: The input; its name, its dtype and the tables that it indexes decide.
        total: Tokens in the key/value cache and new ones together (see `count_tokens`).
    """
    name = (value.name or "").lower()
    dtype = value.dtype
    if dtype == ir.DataType.BOOL or "mask" in name:
        return Recipe("full", 1)
    if _TIMESTEP.search(name):
        return Recipe("integers", 0, 1000)
    if dtype is not None and dtype.is_integer():
        return _integers(value, name, dtype, total)
    return Recipe("uniform", 0.5, 2) if _POSITIVE.search(name) else Recipe("normal")


def _integers(value: ir.Value, name: str, dtype: ir.DataType, total: int) -> Recipe:
    bound = vocabulary(value)
    if "position" in name and value.shape:
        return Recipe("positions", total, bound or _ANY_POSITION)
    if bound is not None:
        return Recipe("integers", 0, bound)
    if _LENGTH.search(name):
        return Recipe("full", total - 1 if "seqlens_k" in name else max(total, 1))
    if dtype.bitwidth <= 8:
        return Recipe("integers", int(dtype.min), int(dtype.max) + 1)
    return Recipe("integers", 0, 10)


def _array(value: ir.Value, sizes: Mapping[str, int], total: int, index: int) -> Array:
    dtype = value.dtype
    if dtype is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        raise SampleError(
            f"no inputs can be made up for {value.name!r}: "
            f"it is {'of unknown rank' if value.shape is None else 'no tensor'}",
            hint="give samples: --samples FOLDER, or --samples package.module:function",
        )
    shape = input_shape(value, sizes)
    if math.prod(shape) > _LARGEST:
        raise SampleError(
            f"no inputs can be made up for {value.name!r}: its shape {list(shape)} is too large",
            hint="give samples: --samples FOLDER, or --samples package.module:function",
        )
    if dtype == ir.DataType.STRING:
        return np.full(shape, "text", object)
    random = np.random.default_rng([zlib.crc32((value.name or "").encode()), index])
    return recipe(value, total).draw(random, shape).astype(dtype.numpy())
