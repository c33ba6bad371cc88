"""Where samples come from: folders, files, lists, and functions that yield them."""

from __future__ import annotations

import importlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.errors import CompileError, SampleError, describe, did_you_mean, raised_at
from aigcc.ir.module import Module

Array = npt.NDArray[Any]
Raw = Iterator[tuple[str, Mapping[str, Any]]]

MOST = 1000
"""Samples that are taken of a function, which may never end."""

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def from_folder(folder: Path, module: Module) -> Callable[[], Raw]:
    """What reads the samples of a folder."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kinds = {path.suffix for path in files}
    if not files:
        raise SampleError(
            f"the folder {str(folder)!r} is empty",
            hint="write samples into it: np.savez('0.npz', **{input_name: array})",
        )
    if kinds == {".npz"}:
        return lambda: read_npz(files)
    if kinds == {".npy"}:
        return lambda: _read_stacks(files, module)
    odd = [path.name for path in files if path.suffix not in (".npz", ".npy")]
    raise SampleError(
        f"{', '.join(odd[:3])} in {str(folder)!r} cannot be read as a sample"
        if odd
        else f"the folder {str(folder)!r} mixes .npz and .npy files",
        hint="keep one .npz file a sample, or one .npy file an input, and nothing else",
    )


def read_npz(paths: Iterable[Path]) -> Raw:
    """The samples of `.npz` files, one each."""
    for path in paths:
        archive = open_array(path)
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


def _read_stacks(paths: Iterable[Path], module: Module) -> Raw:
    ranks = {value.name: len(value.shape) for value in module.inputs if value.shape is not None}
    stacks: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for path in paths:
        array = open_array(path)
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


def open_array(path: Path) -> Any:
    """A `.npy` file, mapped, or the arrays of a `.npz` file.

    Raises:
        SampleError: it cannot be read.
    """
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


def import_function(text: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
    """The function that `package.module:function` names; the current folder is on the path."""
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


def call(function: Callable[[], Iterable[Mapping[str, Any]]], name: str, notes: list[str]) -> Raw:
    """What a function yields, `MOST` samples at most; that there were more is noted, once."""
    index = 0
    try:
        made = function()
        if isinstance(made, Mapping) or not isinstance(made, Iterable):
            raise SampleError(
                f"the function returned {type(made).__name__}",
                at=name,
                hint="let it yield one dict of input name to array for each sample",
            )
        for index, feeds in enumerate(made):
            if index == MOST:
                note = f"{name} yields more than {MOST} samples, and the others were left out"
                notes += [note] if note not in notes else []
                return
            yield f"{name}, sample {index}", feeds
    except CompileError:
        raise
    except (Exception, SystemExit) as error:
        raise SampleError(
            f"the function failed: {describe(error)}",
            at=f"{name}, near sample {index}, {raised_at(error)}",
        ) from error
