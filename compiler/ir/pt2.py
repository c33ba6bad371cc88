"""The way in from `.pt2` archives: torch unpickles them, so they are checked before it does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigcc.errors import ModelError
from aigcc.ir.trace import OPSET, first_line, from_torch, import_torch, quietly

if TYPE_CHECKING:
    from aigcc.ir.module import Module

_WRITE_IT = "write it with torch.export.save(torch.export.export(model, inputs), path)"


def from_pt2(path: Path, *, opset: int = OPSET) -> Module:
    """Load a `.pt2` archive that `torch.export.save` wrote.

    Raises:
        ModelError: the file is missing, is no such archive, or holds code or pickled objects
            other than plain tensors.
    """
    torch = import_torch()
    if not path.is_file():
        raise ModelError(f"no such file: {path.name}", at=str(path))
    _check_archive(torch, path)
    try:
        with quietly():
            program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            "torch.export.load cannot read this archive",
            at=str(path),
            hint=f"{_WRITE_IT}; the loader said: {first_line(error)}",
        ) from error
    return from_torch(program, opset=opset)


def _check_archive(torch: Any, path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()
            if broken is not None:
                raise ModelError("the archive is damaged", at=f"{path}, entry {broken}")
            _check_names(path, names)
            for name, data in _pickles(archive, names):
                _check_pickle(torch, path, name, data)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        raise ModelError(
            "this is not a .pt2 archive, or it is damaged", at=str(path), hint=_WRITE_IT
        ) from error


def _check_names(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ModelError("the archive holds two entries of one name", at=str(path))
    if not any(name.split("/", 1)[-1] == "archive_format" for name in names):
        raise ModelError(
            "the archive is of an old format, or no .pt2 archive", at=str(path), hint=_WRITE_IT
        )
    for name in names:
        base, inner = name.rsplit("/", 1)[-1], name.split("/", 1)[-1]
        if inner.startswith("data/aotinductor") or base.startswith(("custom_obj", "opaque_obj")):
            raise ModelError(
                "the archive holds compiled code or pickled objects, which are never loaded",
                at=f"{path}, entry {name}",
                hint="export a model that is made of tensors only",
            )


def _pickles(archive: zipfile.ZipFile, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The entries that torch would unpickle."""
    for name in names:
        if "/data/sample_inputs/" in name:
            yield name, archive.read(name)
        elif name.endswith(("_weights_config.json", "_constants_config.json")):
            folder = name.rsplit("/", 1)[0]
            for payload in json.loads(archive.read(name))["config"].values():
                if payload["use_pickle"]:
                    entry = f"{folder}/{payload['path_name']}"
                    yield entry, archive.read(entry)


def _check_pickle(torch: Any, path: Path, name: str, data: bytes) -> None:
    """Refuse what the restricted unpickler refuses: torch.export.load falls back to a full one."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise ModelError(
            "the archive holds a pickle of something other than plain tensors",
            at=f"{path}, entry {name}",
            hint="it could run code when loaded; export the model again with tensors as inputs",
        ) from error
