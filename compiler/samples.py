"""Samples: inputs to measure on, read one at a time from files or from a function, and checked."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import CompileError, SampleError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ranges import declared, resolve, solve, symbols, varied
from aigcc.sample_sources import call, from_folder, import_function, read_npz
from aigcc.synthetic import COUNT, synthetic_feeds

if TYPE_CHECKING:
    from aigcc.target import Session

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Source = (
    str
    | Path
    | Callable[[], Iterable[Mapping[str, Any]]]
    | Sequence[Mapping[str, Any]]
    | Mapping[str, Any]
)

_CALLABLE = re.compile(r"[A-Za-z_][\w.-]*:[A-Za-z_][\w.]*")


@dataclasses.dataclass(frozen=True)
class Samples:
    """An iterable of feeds that can be walked many times and holds one sample at a time.

    Every sample is checked against the module's inputs when it is read.

    Attributes:
        module: Whose inputs these are.
        read: Gives the raw feeds, each with the place that messages name.
        source: Where they come from, in words.
        synthetic: Whether they were made up; every figure measured on them must say so.
        notes: What was found out about them while they were read, in sentences.

    Raises:
        SampleError: While iterating: a sample cannot be read, or does not fit the inputs.
    """

    module: Module = dataclasses.field(repr=False)
    read: Callable[[], Iterator[tuple[str, Mapping[str, Any]]]] = dataclasses.field(repr=False)
    source: str
    synthetic: bool = False
    notes: list[str] = dataclasses.field(default_factory=list, repr=False, compare=False)

    def __iter__(self) -> Iterator[Feeds]:
        """Feeds, input name to array, one sample after the other."""
        found = False
        for where, feeds in self.read():
            found = True
            yield check_feeds(feeds, self.module, where)
        if not found:
            raise SampleError(f"no samples in {self.source}", hint="give at least one")

    def describe(self) -> dict[str, Any]:
        """The facts that stand beside every figure measured on them."""
        return {"samples": self.source, "synthetic": self.synthetic, "notes": list(self.notes)}

    def spaced(self, most: int) -> list[int]:
        """Positions of some of them, evenly spaced from the first to the last.

        Neighbours are often alike, as the steps of a sampler are, and the ends are not.
        """
        count = sum(1 for _ in self)
        return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})

    def at(self, positions: Collection[int]) -> Iterator[Feeds]:
        """The samples at some positions, in the order that they come in."""
        last = max(positions, default=-1)
        for position, feeds in enumerate(itertools.islice(self, last + 1)):
            if position in positions:
                yield feeds

    def fitted(self, module: Module) -> Samples:
        """The same samples for a module with other shapes of inputs; made up anew if synthetic."""
        if module is self.module:
            return self
        if self.synthetic:
            return load_samples(None, module)
        return dataclasses.replace(self, module=module)

    def run(self, session: Session, feeds: Feeds) -> dict[str, Array]:
        """The outputs for one of these samples; a failure on a synthetic one says what it is.

        Raises:
            CompileError: the program failed.
        """
        try:
            return session.run(feeds)
        except CompileError as error:
            if not self.synthetic or error.hint:
                raise
            raise CompileError(
                error.what,
                at=error.at,
                hint="the inputs are made up, and may be none that the model takes: give real ones "
                "with --samples",
            ) from error


def load_samples(source: Source | None, module: Module) -> Samples:
    """The samples that a text names; the first one is read and checked at once.

    Args:
        source: A folder of `.npz` files, each a sample whose keys are the input names; a folder of
            one `.npy` file an input, stacked along a new first axis; one `.npz` file; the text
            `package.module:function`, or a function itself, that takes nothing and yields feeds;
            a list of feeds, or one; or None for synthetic samples from the signature.
        module: Whose inputs they must fit.

    Raises:
        SampleError: they are missing, unreadable or do not fit; says which, where and what to do.
    """
    notes: list[str] = []
    if source is None:
        from aigcc.settle import settle  # which runs the model

        settle(module)
    made = Samples(module, *_reader(source, module, notes), source is None, notes)
    next(iter(made))
    return made


def _reader(
    source: Source | None, module: Module, notes: list[str]
) -> tuple[Callable[[], Iterator[tuple[str, Mapping[str, Any]]]], str]:
    """What reads samples, and where they come from in words."""
    if source is None:
        count = max(COUNT, *map(len, varied(module).values()), 0)
        return lambda: _named(synthetic_feeds(module), "synthetic"), f"{count} synthetic samples"
    if isinstance(source, Mapping):
        source = [source]
    if isinstance(source, Sequence) and not isinstance(source, str):
        feeds, count = list(source), len(source)
        return lambda: _named(feeds, "given"), "one sample" if count == 1 else f"{count} samples"
    if callable(source):
        function, name = source, getattr(source, "__qualname__", repr(source))
        return lambda: call(function, name, notes), name
    if not isinstance(source, str | Path):
        raise SampleError(
            f"samples cannot be read from {type(source).__name__}",
            hint="give a list of feeds, a function that yields them, a folder, or one .npz file",
        )
    path = Path(source)
    if path.is_dir():
        return from_folder(path, module), str(path)
    if path.is_file():
        return lambda: read_npz([path]), str(path)
    if _CALLABLE.fullmatch(str(source)):
        imported = import_function(str(source))
        return lambda: call(imported, str(source), notes), str(source)
    raise SampleError(
        f"there are no samples at {str(source)!r}",
        hint="give a folder of .npz files, one .npz file, or package.module:function",
    )


def _named(
    feeds: Iterable[Mapping[str, Any]], kind: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((f"{kind} sample {index}", sample) for index, sample in enumerate(feeds))


def refuse_empty(elements: int, source: str) -> None:
    """Do nothing if outputs have elements: without any, they prove nothing.

    Args:
        elements: Of all outputs for all samples together.
        source: Of the samples.

    Raises:
        SampleError: there are none.
    """
    if not elements:
        raise SampleError(
            "nothing can be measured on these samples: all outputs of the model are empty",
            at=source,
            hint="give samples without dims of size 0",
        )


def check_feeds(feeds: Mapping[str, Any], module: Module, where: str) -> Feeds:
    """One sample with the dtypes that the inputs have.

    Types that numpy lacks (bfloat16, float8, int4) may come as `ml_dtypes` arrays, as the raw
    items that `.npz` files keep of those, or as float32.

    Raises:
        SampleError: names, dtypes, shapes or symbolic dims do not fit, or a number is not finite.
    """
    known = {value.name or "": value for value in (*module.inputs, *module.graph.inputs)}
    if not isinstance(feeds, Mapping):
        raise SampleError(
            f"a sample must be a dict of input name to array, not {type(feeds).__name__}", at=where
        )
    feeds = _without_frozen(feeds, module, where)
    for name in feeds:
        if name not in known:
            raise SampleError(
                f"the model has no input {name!r}", at=where, hint=did_you_mean(name, known)
            )
    for value in module.inputs:
        if value.name not in feeds:
            raise SampleError(
                f"the input {value.name!r} is missing",
                at=where,
                hint="a sample needs: " + ", ".join(v.name or "" for v in module.inputs),
            )
    sizes: dict[str, int] = {}
    checked = {name: _check(known[name], feeds[name], sizes, where) for name in feeds}
    named = [
        (dim, size)
        for name, array in checked.items()
        for dim, size in zip(known[name].shape or (), array.shape, strict=False)
    ]
    sizes |= solve(named)
    for name, array in checked.items():
        _check_expressions(known[name], array, sizes, where)
    for name, range_ in declared(module).items():
        if sizes.get(name, range_.smallest) not in range_:
            raise SampleError(
                f"the dim {name!r} is {sizes[name]}, and the model is exported for {range_}",
                at=where,
                hint="give other samples, or export the model with a wider range",
            )
    return checked


def _without_frozen(feeds: Mapping[str, Any], module: Module, where: str) -> Mapping[str, Any]:
    """A sample without the inputs that are frozen, which it may hold as they are."""
    for name, frozen in module.frozen.items():
        given = feeds.get(name, frozen)
        if not np.array_equal(np.ravel(given), np.ravel(frozen)):
            raise SampleError(
                f"the input {name!r} is frozen to another value than this sample has",
                at=where,
                hint=f"leave {name!r} out of the samples, or those where it is another",
            )
    return {name: array for name, array in feeds.items() if name not in module.frozen}


def _check(value: ir.Value, given: Any, sizes: dict[str, int], where: str) -> Array:
    array = _to_dtype(value, np.asarray(given), where)
    shape = value.shape
    if shape is not None:
        if array.ndim != len(shape):
            raise _bad_shape(value, array, where)
        for size, dim in zip(array.shape, shape, strict=True):
            if isinstance(dim, int) and dim >= 0 and dim != size:
                raise _bad_shape(value, array, where)
            if symbols(dim) == {str(dim)} and sizes.setdefault(str(dim), size) != size:
                raise SampleError(
                    f"the dim {str(dim)!r} is {sizes[str(dim)]} in one input "
                    f"and {size} in {value.name!r}",
                    at=where,
                    hint="equal names of dims mean equal sizes within a sample",
                )
    if array.dtype.kind not in "OSUb" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise SampleError(
            f"input {value.name!r} holds {len(bad)} values that are NaN or infinite, "
            f"the first at {bad[0].tolist()}",
            at=where,
            hint="a mask can use the lowest finite value: np.finfo(np.float32).min",
        )
    return array


def _check_expressions(value: ir.Value, array: Array, sizes: Mapping[str, int], where: str) -> None:
    for size, dim in zip(array.shape, value.shape or array.shape, strict=True):
        wanted = resolve(dim, sizes)
        unknown = symbols(dim) - sizes.keys() if wanted is None else frozenset()
        least = resolve(dim, {**sizes, **dict.fromkeys(unknown, 0)})
        if len(unknown) == 1 and least is not None and least < size:  # it grows past this size
            raise SampleError(f"the dim {dim} of {value.name!r} cannot be {size}", at=where)
        if wanted is not None and wanted >= 0 and wanted != size:
            raise SampleError(
                f"the dim {dim} of {value.name!r} must be {wanted} here, and is {size}", at=where
            )


def _bad_shape(value: ir.Value, array: Array, where: str) -> SampleError:
    wanted = list(value.shape or ())
    hint = None
    if array.ndim + 1 == len(wanted):
        hint = "add the batch axis: array[np.newaxis]"
    return SampleError(
        f"input {value.name!r} takes the shape [{', '.join(map(str, wanted))}], "
        f"not {list(array.shape)}",
        at=where,
        hint=hint,
    )


def _to_dtype(value: ir.Value, array: Array, where: str) -> Array:
    if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        return array
    if value.dtype == ir.DataType.STRING:
        if array.dtype.kind in "OSU":
            return array
        raise SampleError(f"input {value.name!r} takes text, not {array.dtype}", at=where)
    wanted = value.dtype.numpy()
    if array.dtype == wanted:
        return array
    if array.dtype.kind == "V" and array.dtype.itemsize == wanted.itemsize:
        return array.view(wanted)
    is_missing_in_numpy = not hasattr(np, wanted.name)
    if is_missing_in_numpy and array.dtype == np.float32:
        return array.astype(wanted)
    is_number = array.dtype.kind in "biuf" and not is_missing_in_numpy
    raise SampleError(
        f"input {value.name!r} takes {wanted.name}, not {array.dtype}",
        at=where,
        hint=f"convert it: array.astype(np.{wanted.name})" if is_number else None,
    )
