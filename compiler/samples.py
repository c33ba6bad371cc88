"""Samples: inputs to measure on, read one at a time from files or from a function, and checked."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import CompileError, SampleError, describe, did_you_mean, raised_at
from aigcc.ir.module import Module
from aigcc.synthetic import COUNT, resolve, symbols, synthetic_feeds

if TYPE_CHECKING:
    from aigcc.target import Session

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Samples:
    """An iterable of feeds that can be walked many times and holds one sample at a time.

    Every sample is checked against the module's inputs when it is read.

    Attributes:
        module: Whose inputs these are.
        read: Gives the raw feeds, each with the place that messages name.
        source: Where they come from, in words.
        synthetic: Whether they were made up; every figure measured on them must say so.

    Raises:
        SampleError: While iterating: a sample cannot be read, or does not fit the inputs.
    """

    module: Module = dataclasses.field(repr=False)
    read: Callable[[], Iterator[tuple[str, Mapping[str, Any]]]] = dataclasses.field(repr=False)
    source: str
    synthetic: bool = False

    def __iter__(self) -> Iterator[Feeds]:
        """Feeds, input name to array, one sample after the other."""
        found = False
        for where, feeds in self.read():
            found = True
            yield check_feeds(feeds, self.module, where)
        if not found:
            raise SampleError(f"no samples in {self.source}", hint="give at least one")

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


def load_samples(
    source: str | Path | Callable[[], Iterable[Mapping[str, Any]]] | None, module: Module
) -> Samples:
    """The samples that a text names; the first one is read and checked at once.

    Args:
        source: A folder of `.npz` files, each a sample whose keys are the input names; a folder of
            one `.npy` file an input, stacked along a new first axis; one `.npz` file; the text
            `package.module:function`, or a function itself, that takes nothing and yields feeds;
            or None for synthetic samples from the signature.
        module: Whose inputs they must fit.

    Raises:
        SampleError: they are missing, unreadable or do not fit; says which, where and what to do.
    """
    if source is None:
        made = Samples(
            module,
            lambda: ((f"synthetic sample {i}", f) for i, f in enumerate(synthetic_feeds(module))),
            f"{COUNT} synthetic samples",
            synthetic=True,
        )
    elif callable(source):
        name = getattr(source, "__qualname__", repr(source))
        made = Samples(module, lambda: _call(source, name), name)
    elif Path(source).is_dir():
        made = _from_folder(Path(source), module)
    elif Path(source).is_file():
        path = Path(source)
        made = Samples(module, lambda: _read_npz([path]), str(path))
    elif _CALLABLE.fullmatch(str(source)):
        function = _import(str(source))
        made = Samples(module, lambda: _call(function, str(source)), str(source))
    else:
        raise SampleError(
            f"there are no samples at {str(source)!r}",
            hint="give a folder of .npz files, one .npz file, or package.module:function",
        )
    next(iter(made))
    return made


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
    for name, array in checked.items():
        _check_expressions(known[name], array, sizes, where)
    return checked


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


def _from_folder(folder: Path, module: Module) -> Samples:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kinds = {path.suffix for path in files}
    if not files:
        raise SampleError(
            f"the folder {str(folder)!r} is empty",
            hint="write samples into it: np.savez('0.npz', **{input_name: array})",
        )
    if kinds == {".npz"}:
        return Samples(module, lambda: _read_npz(files), str(folder))
    if kinds == {".npy"}:
        return Samples(module, lambda: _read_stacks(files, module), str(folder))
    odd = [path.name for path in files if path.suffix not in (".npz", ".npy")]
    raise SampleError(
        f"{', '.join(odd[:3])} in {str(folder)!r} cannot be read as a sample"
        if odd
        else f"the folder {str(folder)!r} mixes .npz and .npy files",
        hint="keep one .npz file a sample, or one .npy file an input, and nothing else",
    )


def _read_npz(paths: Iterable[Path]) -> Iterator[tuple[str, Feeds]]:
    for path in paths:
        archive = _open(path)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise SampleError(
                "one .npy file does not say which input it is",
                at=str(path),
                hint="save a sample as .npz: np.savez('0.npz', **{input_name: array})",
            )
        with archive:
            try:
                feeds = {name: archive[name] for name in archive.files}
            except _UNREADABLE as error:
                raise _unreadable(path, error) from None
        yield str(path), feeds


def _read_stacks(paths: Iterable[Path], module: Module) -> Iterator[tuple[str, Feeds]]:
    ranks = {value.name: len(value.shape) for value in module.inputs if value.shape is not None}
    stacks: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for path in paths:
        array = _open(path)
        if array.ndim == ranks.get(path.stem):
            array = array[np.newaxis]
        stacks[path.stem] = array
        counts[path.stem] = array.shape[0] if array.ndim else 0
    if len(set(counts.values())) > 1:
        raise SampleError(
            "the .npy files hold different numbers of samples: "
            + ", ".join(f"{name} {count}" for name, count in counts.items()),
            hint="the first axis of each file counts the samples",
        )
    folder = next(iter(paths)).parent
    for index in range(min(counts.values())):
        yield f"{folder}, sample {index}", {n: np.array(a[index]) for n, a in stacks.items()}


def _open(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SampleError:
    if str(error).startswith("Object arrays"):
        return SampleError(
            "the file holds Python objects, which are never opened",
            at=str(path),
            hint="save plain arrays of numbers with np.savez",
        )
    # numpy takes what it does not know for a pickle.
    reason = f"it is no {path.suffix} file" if "pickle" in str(error) else error
    return SampleError(
        f"the file cannot be read: {reason or type(error).__name__}",
        at=str(path),
        hint="write it again with np.savez",
    )


def _import(text: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
    name, _, attribute = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            if not hasattr(found, part):
                known = [key for key in dir(found) if not key.startswith("_")]
                raise SampleError(
                    f"{name} has no {part!r}", at=text, hint=did_you_mean(part, known)
                )
            found = getattr(found, part)
    except SampleError:
        raise
    except (Exception, SystemExit) as error:
        is_absent = isinstance(error, ModuleNotFoundError)
        raise SampleError(
            f"{text} cannot be imported: {describe(error)}",
            at=None if is_absent else raised_at(error),
            hint="the module must lie in this folder or be installed" if is_absent else None,
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise SampleError(f"{text} is no function", hint="name a function that yields feeds")
    function: Callable[[], Iterable[Mapping[str, Any]]] = found
    return function


def _call(
    function: Callable[[], Iterable[Mapping[str, Any]]], name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    index = 0
    try:
        made = function()
        if not isinstance(made, Iterable):
            raise SampleError(
                f"the function returned {type(made).__name__}",
                at=name,
                hint="let it yield one dict of input name to array for each sample",
            )
        for index, feeds in enumerate(made):
            yield f"{name}, sample {index}", feeds
    except CompileError:
        raise
    except (Exception, SystemExit) as error:
        raise SampleError(
            f"the function failed: {describe(error)}",
            at=f"{name}, near sample {index}, {raised_at(error)}",
        ) from error
