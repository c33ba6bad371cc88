"""References to external data: checked when a model is loaded, then mapped."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir

from aigcc.errors import ModelError
from aigcc.ir.storage.mapped import DataFile, MappedTensor, VarintTensor

OPEN_FILES = 64  # more stay closed between two reads, since each costs a file descriptor


class DataFiles:
    """The data files of one model.

    Args:
        folder: The folder of the model, which all references stay inside.
        keep: See `DataFile`.
        model: The model file itself, when its own payloads are mapped from it.
        varints: The offsets in the model file at which varints lie.
    """

    def __init__(
        self,
        folder: Path,
        keep: bool = True,
        model: DataFile | None = None,
        varints: frozenset[int] = frozenset(),
    ) -> None:
        self._folder = folder.absolute()
        self._keep = keep
        self._model = model
        self._varints = varints
        self._files = {} if model is None else {model.path.name: model}

    def map(self, tensor: onnx_ir.ExternalTensor, at: str) -> onnx_ir.TensorProtocol:
        """The mapped tensor for a reference that names an existing range of an allowed file.

        Args:
            tensor: The reference.
            at: Where it is, for messages.

        Raises:
            ModelError: If it does not.
        """
        location = str(tensor.location)
        if location not in self._files:
            self._files[location] = _open(self._folder, location, self._keep, at)
        file = self._files[location]
        offset = tensor.offset or 0
        varints = file is self._model and offset in self._varints
        length = tensor.nbytes if tensor.length is None else tensor.length
        if length != tensor.nbytes and not varints:
            raise ModelError(
                f"{length:,} bytes are stored for {tensor.dtype}{list(tensor.shape)}, "
                f"which takes {tensor.nbytes:,}",
                at=at,
                hint="export the model again",
            )
        if offset < 0 or offset + length > file.size:
            raise ModelError(
                f"{file.path} has {file.size:,} bytes and the weight needs bytes "
                f"{offset:,} to {offset + length:,}",
                at=at,
                hint="the file is cut short or belongs to another model: copy it again",
            )
        if not varints:
            return MappedTensor(file, tensor, self._folder)
        try:
            return VarintTensor(file, tensor)
        except ModelError as error:
            raise ModelError(error.what, at=at, hint="export the model again") from error


def _open(folder: Path, location: str, keep: bool, at: str) -> DataFile:
    """Open a data file that lies inside `folder`, and is reachable by no other name."""
    parts = (PurePosixPath(location), PureWindowsPath(location))
    if not location or any(part.is_absolute() or part.drive for part in parts):
        raise _outside(f"the external data path {location!r} is not relative", at)
    if any(".." in part.parts for part in parts):
        raise _outside(f"the external data path {location!r} leaves the model's folder", at)
    path = folder / location
    try:
        real, home = path.resolve(strict=True), folder.resolve(strict=True)
        if home not in real.parents:
            raise _outside(f"{path} is a link to {real}, outside the model's folder", at)
        if not real.is_file():
            raise ModelError(f"{path} holds external data and is not a file", at=at)
        if real.stat().st_nlink > 1:
            raise _outside(f"{path} has other names (hard links), which may lie anywhere", at)
        return DataFile(path, keep)
    except FileNotFoundError as error:
        raise ModelError(
            f"the external data file {path} does not exist",
            at=at,
            hint=f"copy {location!r} into the folder of the model; it holds the weights",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", at=at) from error


def _outside(what: str, at: str) -> ModelError:
    return ModelError(
        what,
        at=at,
        hint="weights are read from plain files in the model's own folder; a download cache uses "
        "links, so copy the model out of it: cp -rL CACHED_FOLDER NEW_FOLDER",
    )
