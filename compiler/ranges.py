"""The sizes that the dims of a module may have, as it was exported with, and how sizes follow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.module import Module

_KEY = "aigcc.dims"  # of a model: see `declare`
_SETTLED = "aigcc.sizes"  # of a model: see `settle_on`
_VARIED = "aigcc.varied"  # of a model: see `vary`
_LARGEST = 1 << 31
_CACHE = re.compile(r"past|cache|history", re.I)

Dim = int | ir.SymbolicDim


@dataclasses.dataclass(frozen=True)
class Range:
    """The sizes that one dim may have.

    Attributes:
        smallest: 0 where it may be empty.
        largest: None where there is no bound.
        example: The size in the exporter's example inputs, which is known to run.
    """

    smallest: int = 0
    largest: int | None = None
    example: int | None = None

    def clamp(self, size: int) -> int:
        """The size that is allowed and nearest to this one."""
        size = max(size, self.smallest)
        return size if self.largest is None else min(size, self.largest)

    def __contains__(self, size: int) -> bool:
        return self.clamp(size) == size

    def __str__(self) -> str:
        if self.largest is None:
            return f"{self.smallest} or more"
        return f"{self.smallest} to {self.largest}"


def declare(module: Module, ranges: Mapping[str, Range]) -> None:
    """Write down the ranges of a module's dims by name; they stay in files and in the text form."""
    rows = {name: [r.smallest, r.largest, r.example] for name, r in ranges.items()}
    if rows:
        module.model.metadata_props[_KEY] = json.dumps(rows)


def declared(module: Module) -> dict[str, Range]:
    """The ranges that are written down; a dim that has none may have any size.

    Raises:
        ModelError: what is written down is none.
    """
    with _reading(module, _KEY, '{"NAME": [SMALLEST, LARGEST or null, EXAMPLE or null]}') as rows:
        ranges = {name: Range(*row) for name, row in rows.items()}
        for found in ranges.values():
            largest = found.smallest if found.largest is None else found.largest
            example = found.smallest if found.example is None else found.example
            if not 0 <= found.smallest <= largest or example < 0:
                raise ValueError(found)
    return ranges


def settle_on(module: Module, sizes: Mapping[str, int]) -> None:
    """Write down sizes that were found to run where those that are guessed do not."""
    module.model.metadata_props[_SETTLED] = json.dumps(dict(sizes))


def settled(module: Module) -> dict[str, int]:
    """The sizes that are written down as found to run.

    Raises:
        ModelError: what is written down is none.
    """
    with _reading(module, _SETTLED, '{"NAME": SIZE}') as sizes:
        if not all(type(size) is int and size >= 0 for size in sizes.values()):
            raise ValueError(sizes)
    return sizes


def vary(module: Module, name: str, sizes: Sequence[int]) -> None:
    """Write down sizes of a dim of which synthetic samples have one after the other."""
    module.model.metadata_props[_VARIED] = json.dumps({name: list(sizes)})


def varied(module: Module) -> dict[str, list[int]]:
    """The sizes that are written down for synthetic samples, by dim.

    Raises:
        ModelError: what is written down is none.
    """
    with _reading(module, _VARIED, '{"NAME": [SIZE, ...]}') as rows:
        for sizes in rows.values():
            if not sizes or not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(sizes)
    return rows


@contextlib.contextmanager
def _reading(module: Module, key: str, form: str) -> Iterator[dict[str, Any]]:
    text = module.model.metadata_props.get(key, "{}")
    try:
        if not isinstance(rows := json.loads(text), dict):
            raise ValueError(rows)
        yield rows
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"what is written down of dims is damaged: {text[:80]}",
            at=f"metadata {key!r}",
            hint=f"it reads {form}",
        ) from error


def may_be_empty(dims: Iterable[Dim], ranges: Mapping[str, Range]) -> set[str]:
    """The dims that may have no elements, and of which a model then still makes something.

    torch.export declares 0 for batches as well, if nobody says otherwise: only caches count, by
    their names or as they stand in sums such as `past + sequence`.
    """
    summed = {name for dim in dims if len(symbols(dim)) > 1 for name in symbols(dim)}
    return {n for n, found in ranges.items() if 0 in found and (n in summed or _CACHE.search(n))}


def symbols(dim: Dim) -> frozenset[str]:
    """The names in a dim: one for a plain symbol, several for `past + sequence`."""
    if isinstance(dim, int) or dim.value in (None, "", "?"):
        return frozenset()
    try:
        return dim.free_symbols()
    except ValueError:  # a name such as "p2o.Dim.0" is no expression
        return frozenset({str(dim.value)})


def place(value: ir.Value, axis: int) -> str:
    """What a dim of an input is called that has no name, such as `image.2`."""
    return f"{value.name}.{axis}"


def resolve(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """The size of a dim, or None where a symbol in it has none."""
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    if dim.value in sizes:
        return sizes[dim.value]
    try:
        size = dim.evaluate(sizes)
    except (ValueError, ZeroDivisionError):
        return None
    return size if isinstance(size, int) else None


def solve(dims: Iterable[tuple[Dim, int]]) -> dict[str, int]:
    """The sizes of symbols under which dims have these sizes: 8 for `th` where `2*th` is 16.

    A symbol that stands in sums of several unknown ones, or has no such size, gets none.
    """
    sizes: dict[str, int] = {}
    expressions = []
    for dim, size in dims:
        if symbols(dim) == {str(dim)}:
            sizes.setdefault(str(dim), size)
        elif symbols(dim):
            expressions.append((dim, size))
    for _ in range(len(expressions)):
        for dim, size in expressions:
            unknown = symbols(dim) - sizes.keys()
            if len(unknown) == 1:
                (symbol,) = unknown
                found = invert(dim, symbol, size, sizes)
                if found is not None and resolve(dim, {**sizes, symbol: found}) == size:
                    sizes[symbol] = found
    return sizes


def invert(dim: Dim, symbol: str, size: int, sizes: Mapping[str, int]) -> int | None:
    """The least size of a symbol for which a dim, which grows with it, is not below `size`."""
    low, high = 0, _LARGEST
    while low < high:
        middle = (low + high) // 2
        found = resolve(dim, {**sizes, symbol: middle})
        if found is None:
            return None
        if found < size:
            low = middle + 1
        else:
            high = middle
    return low if low < _LARGEST else None
