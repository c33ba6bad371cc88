"""The artifact: a folder with the device files and `artifact.json`, which says what they are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aigcc.errors import ArtifactError, CompileError
from aigcc.ir.module import Module
from aigcc.ir.storage.atomic import lock
from aigcc.jsontext import to_json
from aigcc.ranges import settle_on
from aigcc.synthetic import set_vocabulary

MANIFEST = "artifact.json"
FORMAT = 1

_SCRATCH = re.compile(r"\.\d+\.partial")
_FIELDS: dict[str, Any] = {
    "device_files": [str],
    "entry": str,
    "facts": dict,
    "files": {str: {"bytes": int, "sha256": str}},
    "inputs": [{"name": str}],
    "nodes": {str: int},
    "outputs": [{"name": str}],
    "quality": ({"samples": str, "synthetic": bool, "outputs": [{"name": str}]}, type(None)),
    "pipeline": str,
    "remarks": [{"kind": str, "maker": str, "node": str, "message": str}],
    "rewrites": {str: int},
    "source": str,
    "target": str,
    "versions": {str: str},
}
"""What readers of a manifest count on: a list of one kind, a table of one, names with theirs, or
one of several."""


@dataclasses.dataclass(frozen=True, repr=False)
class Artifact:
    """A built artifact.

    Attributes:
        folder: Where it lies.
        manifest: The contents of `artifact.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path, *, check: bool = True) -> Artifact:
        """Open an artifact; `check` compares every file with the digest in the manifest.

        Raises:
            ArtifactError: it is no artifact, a file is missing or was altered.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{folder} is not an artifact: it has no {MANIFEST}",
                at=str(folder),
                hint="build one with: aigcc build MODEL --target mobile -o FOLDER",
            ) from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{MANIFEST} cannot be read: {error}", at=str(path)) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{MANIFEST} has a format that this aigcc does not know",
                at=str(path),
                hint="build the artifact again with this aigcc",
            )
        for name, kind in _FIELDS.items():
            if not _fits(manifest.get(name), kind):
                raise ArtifactError(
                    f"{MANIFEST} is damaged: {name!r} is missing or of a wrong type",
                    at=str(path),
                    hint="build the artifact again",
                )
        artifact = cls(folder, manifest)
        if check:
            artifact.check()
        return artifact

    def __repr__(self) -> str:
        source, target = self.manifest["source"], self.manifest["target"]
        return f"<Artifact {str(self.folder)!r}: {source} for {target}>"

    @property
    def entry(self) -> str:
        """The file that the runtime opens first."""
        return str(self.manifest["entry"])

    def signature(self) -> Module:
        """A module without nodes that has the artifact's inputs and outputs."""
        try:
            inputs, outputs = (
                [_value(facts) for facts in self.manifest[kind]] for kind in ("inputs", "outputs")
            )
            sizes = dict(self.manifest.get("sizes", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{MANIFEST} is damaged: its signature cannot be read",
                at=str(self.folder / MANIFEST),
                hint="build the artifact again",
            ) from error
        graph = ir.Graph(inputs, outputs, nodes=[], opset_imports={"": 1}, name="signature")
        module = Module(ir.Model(graph, ir_version=10), self.folder / self.entry)
        settle_on(module, sizes)
        return module

    def check(self) -> None:
        """Compare every file with its digest.

        Raises:
            ArtifactError: a file is missing or differs.
        """
        for name, facts in self.manifest["files"].items():
            path = self.folder / name
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ArtifactError(f"{name} lies outside of the artifact", at=str(self.folder))
            if not path.is_file():
                raise ArtifactError(
                    f"{name} is missing", at=str(self.folder), hint="build it again"
                )
            if digest(path) != facts["sha256"]:
                raise ArtifactError(
                    f"{name} was altered after the build", at=str(path), hint="build it again"
                )


def _fits(value: Any, kind: Any) -> bool:
    """Whether what was read is of a kind of `_FIELDS`."""
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(item, kind[0]) for item in value)
    if not isinstance(kind, dict):
        return isinstance(value, kind)
    if not isinstance(value, dict):
        return False
    if str in kind:
        return all(_fits(item, kind[str]) for item in value.values())
    return all(_fits(value.get(name), part) for name, part in kind.items())


def describe_value(value: ir.Value, rows: int | None = None) -> dict[str, Any]:
    """Name, element type, shape and, of an input that indexes a table, the number of its rows."""
    shape = None if value.shape is None else [_dim(dim) for dim in value.shape]
    dtype = None if value.dtype is None else value.dtype.name.lower()
    return {
        "name": value.name,
        "dtype": dtype,
        "shape": shape,
        **({} if rows is None else {"below": rows}),
    }


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def _value(facts: Mapping[str, Any]) -> ir.Value:
    dtype, shape = facts["dtype"], facts["shape"]
    value = ir.Value(
        name=facts["name"],
        type=None if dtype is None else ir.TensorType(ir.DataType[dtype.upper()]),
        shape=None if shape is None else ir.Shape(shape),
    )
    if "below" in facts:
        set_vocabulary(value, facts["below"])
    return value


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name, size in bytes and SHA-256 of every file below `folder` except the manifest."""
    return {
        path.relative_to(folder).as_posix(): describe_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `artifact.json`; equal manifests give equal bytes."""
    (folder / MANIFEST).write_text(to_json({"format": FORMAT, **manifest}) + "\n", "utf-8")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder whose contents become those of `out` on success, and vanish on failure.

    Raises:
        ArtifactError: see `check_free`; or `out` cannot be written.
    """
    check_free(out, overwrite=overwrite)
    try:
        with _made(out), _alone(out):
            scratch = out / f".{os.getpid()}.partial"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            descriptor = os.open(scratch, os.O_RDONLY)
            try:
                lock(descriptor)
                (scratch / "new").mkdir()
                yield scratch / "new"
                _exchange(out, scratch)
            except CompileError as error:
                _rename(error, str(scratch / "new"), str(out))
                raise
            finally:
                os.close(descriptor)
                shutil.rmtree(scratch, ignore_errors=True)
    except BrokenPipeError:
        raise  # of what the block prints, not of what it writes
    except OSError as error:
        raise ArtifactError(
            f"the folder cannot be written: {error.strerror or error}",
            at=str(error.filename or out),
            hint="free disk space or choose another folder",
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if lock(descriptor) == "taken":
            raise ArtifactError(
                f"another build is writing into {folder}",
                at=str(folder),
                hint="wait for its end, or choose another folder",
            )
        yield
    finally:
        os.close(descriptor)


def _rename(error: CompileError, old: str, new: str) -> None:
    """Let an error speak of a place that the user knows."""
    error.what = error.what.replace(old, new)
    error.at = error.at and error.at.replace(old, new)
    error.hint = error.hint and error.hint.replace(old, new)


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """Check that a folder is new or empty, or an artifact that may be replaced.

    What runs that were killed have left in it goes, and an exchange that they began is ended.

    Raises:
        ArtifactError: it is not.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file", hint="give a folder")
    if not out.exists():
        return
    for path in out.iterdir():
        if _SCRATCH.fullmatch(path.name):
            _recover(out, path)
    if not _entries(out):
        return
    if not (out / MANIFEST).is_file():
        raise ArtifactError(
            f"the output folder {out} is not empty, and holds no artifact",
            hint="choose a new folder, or empty this one yourself",
        )
    if not overwrite:
        raise ArtifactError(
            f"the output folder {out} holds an artifact already",
            hint="choose another folder; or replace it with --overwrite, in Python overwrite=True",
        )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, but for what other runs are making there."""
    return [path for path in folder.iterdir() if not _SCRATCH.fullmatch(path.name)]


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; those that were made are removed on failure."""
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in fresh:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _exchange(out: Path, scratch: Path) -> None:
    """Move the old artifact to `scratch/old`, and what is in `scratch/new` to `out`, or nothing.

    Between the two, `scratch/new` becomes `scratch/whole`: see `_recover`.

    What else is in the folder stays, and so does the folder itself: it may be a mount point, a
    link, or where the user's shell is.
    """
    new = list((scratch / "new").iterdir())
    own = {*_own_names(out), *(path.name for path in new)}
    (scratch / "old").mkdir()
    moves = [(path, scratch / "old" / path.name) for path in out.iterdir() if path.name in own]
    moves += [(scratch / "new", scratch / "whole")]
    moves += [(scratch / "whole" / path.name, out / path.name) for path in new]
    undo: list[Callable[[], object]] = []
    try:
        for path, place in moves:
            undo.append(functools.partial(os.rename, place, path))
            path.rename(place)
    except BaseException:
        for step in reversed(undo):
            with contextlib.suppress(FileNotFoundError):
                step()
        raise


def _recover(out: Path, scratch: Path) -> None:
    """Remove what another run left, if that has ended; first end its exchange, or take it back."""
    with contextlib.suppress(OSError):  # it has just gone
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            if lock(descriptor) == "own":
                half = next((p for p in (scratch / "whole", scratch / "old") if p.is_dir()), None)
                for path in half.iterdir() if half is not None else ():
                    path.rename(out / path.name)
                shutil.rmtree(scratch)
        finally:
            os.close(descriptor)


def _own_names(folder: Path) -> set[str]:
    """What an artifact consists of: the first parts of the paths of its files."""
    try:
        files = Artifact.load(folder, check=False).manifest["files"]
    except ArtifactError:
        files = {}
    return {MANIFEST, *(Path(name).parts[0] for name in files if Path(name).parts)}
