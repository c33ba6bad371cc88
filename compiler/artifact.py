"""The artifact: a folder with the device files and `artifact.json`, which says what they are."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aigcc.errors import ArtifactError
from aigcc.ir.module import Module

MANIFEST = "artifact.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
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
        except FileNotFoundError:
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
        artifact = cls(folder, manifest)
        if check:
            artifact.check()
        return artifact

    @property
    def entry(self) -> str:
        """The file that the runtime opens first."""
        return str(self.manifest["entry"])

    def signature(self) -> Module:
        """A module without nodes that has the artifact's inputs and outputs."""
        inputs, outputs = (
            [_value(facts) for facts in self.manifest[kind]] for kind in ("inputs", "outputs")
        )
        graph = ir.Graph(inputs, outputs, nodes=[], opset_imports={"": 1}, name="signature")
        return Module(ir.Model(graph, ir_version=10), self.folder / self.entry)

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


def _value(facts: Mapping[str, Any]) -> ir.Value:
    dtype, shape = facts["dtype"], facts["shape"]
    return ir.Value(
        name=facts["name"],
        type=None if dtype is None else ir.TensorType(ir.DataType[dtype.upper()]),
        shape=None if shape is None else ir.Shape(shape),
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name, size in bytes and SHA-256 of every file below `folder` except the manifest."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": digest(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `artifact.json`; equal manifests give equal bytes."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` on success and vanishes on failure.

    Raises:
        ArtifactError: `out` is a file, is not empty and no artifact, or may not be replaced.
    """
    _check_free(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        yield staging
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    except OSError as error:
        raise ArtifactError(
            f"the artifact cannot be written: {error.strerror or error}",
            at=str(error.filename or out),
            hint="free disk space or choose another folder with -o",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file", hint="give a folder with -o")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise ArtifactError(
            f"the output folder {out} is not empty, and holds no artifact",
            hint="choose a new folder with -o, or empty this one yourself",
        )
    if not overwrite:
        raise ArtifactError(
            f"the output folder {out} holds an artifact already",
            hint="add --overwrite to replace it, or choose another folder with -o",
        )
