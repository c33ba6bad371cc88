"""Save .onnx files one weight at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir

from aigcc.errors import ModelError
from aigcc.ir.slots import Slot, graph_protos, graphs, slots
from aigcc.ir.storage import wire
from aigcc.ir.storage.atomic import replacing
from aigcc.ir.storage.loading import load_model, reads_from, root_cause
from aigcc.ir.storage.mapped import DataFile, MappedTensor, SparseTensor
from aigcc.ir.weights import SMALL, raw_bytes

EXTERNAL_FROM = 1 << 30
"""With more than this many bytes of weights, `save_model` puts them beside the model."""

_PROTOBUF_LIMIT = (1 << 31) - 1
_LARGE = 1 << 20
_PAYLOAD = "aigcc:payload"
_SPARSE = "aigcc:sparse"


def save_model(model: onnx_ir.Model, path: str | Path, external: bool | None = None) -> None:
    """Save a model, writing one weight at a time.

    The file appears complete or not at all, and equal models give equal bytes. A file that the
    weights of `model` are mapped from may be replaced; `model` stays valid and unchanged. Where
    the old model at `path` had weights in `<path>.data` and the new one has not, that file goes.

    Args:
        model: The model. Lazy tensors are computed, written and dropped one by one.
        path: The .onnx file to write.
        external: Put weights of more than 1 KiB into `<path>.data`, where tensors of more than
            1 MiB start at multiples of 4096 bytes and others at multiples of 64. None decides by
            size: with more than 1 GiB of weights.

    Raises:
        ModelError: If the file cannot be written, or would have to hold more than protobuf's
            2 GiB.
    """
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    hold(model, path, data_path)
    found = [slot for slot in slots(model) if _is_payload(slot)]
    if external is None:
        external = sum({_key(s.tensor): s.tensor.nbytes for s in found}.values()) > EXTERNAL_FROM
    layout = _Layout(data_path.name if external else None)
    proto = _to_proto(model, found, layout, path)
    pieces, size = wire.put_in(
        proto.SerializeToString(deterministic=True),
        _PAYLOAD,
        [tensor.nbytes for tensor in layout.inside],
    )
    if size > _PROTOBUF_LIMIT:
        raise ModelError(
            f"the file would take {size:,} bytes, and protobuf allows {_PROTOBUF_LIMIT:,}",
            at=str(path),
            hint="save it with external=True: the weights go to a file beside the model",
        )
    written = [path, data_path] if layout.beside else [path]
    removed = [] if layout.beside else left_behind(path, data_path, load_model)
    try:
        with replacing(*written, removed=removed) as files:
            for piece in pieces:
                _write(layout.inside[piece] if isinstance(piece, int) else piece, files[0])
            for offset, tensor in layout.beside:
                files[1].write(bytes(offset - files[1].tell()))
                _write(tensor, files[1])
    except OSError as error:
        raise _cannot_write(path, error) from error


class _Layout:
    """Where each weight goes: inside the .onnx file, or at an offset of the file beside it."""

    def __init__(self, data_name: str | None) -> None:
        self.inside: list[onnx_ir.TensorProtocol] = []
        self.beside: list[tuple[int, onnx_ir.TensorProtocol]] = []
        self.sparse: list[SparseTensor] = []
        self._data_name = data_name
        self._end = 0
        self._places: dict[object, tuple[str, int]] = {}

    def reference(self, tensor: onnx_ir.TensorProtocol) -> onnx_ir.ExternalTensor:
        """What stands for `tensor` in the serialised model."""
        key = _key(tensor)
        if key not in self._places:
            self._places[key] = self._place(tensor)
        return _reference(tensor, *self._places[key])

    def _place(self, tensor: onnx_ir.TensorProtocol) -> tuple[str, int]:
        if self._data_name is None or tensor.nbytes <= SMALL:
            self.inside.append(tensor)
            return _PAYLOAD, len(self.inside) - 1
        step = 4096 if tensor.nbytes > _LARGE else 64
        offset = -(-self._end // step) * step
        self.beside.append((offset, tensor))
        self._end = offset + tensor.nbytes
        return self._data_name, offset

    def sparse_reference(self, tensor: SparseTensor) -> onnx_ir.ExternalTensor:
        """What stands for `tensor` until `restore_sparse`."""
        self.sparse.append(tensor)
        return _reference(tensor, _SPARSE, len(self.sparse) - 1)

    def restore_sparse(self, proto: onnx.ModelProto) -> None:
        """Turn what stands for sparse tensors into sparse initializers."""
        for graph in graph_protos(proto) if self.sparse else ():
            dense = list(graph.initializer)
            graph.ClearField("initializer")
            for tensor in dense:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                if entries.get("location") != _SPARSE:
                    graph.initializer.append(tensor)
                    continue
                sparse = self.sparse[int(entries["offset"])]
                graph.sparse_initializer.add(
                    dims=tensor.dims,
                    values=onnx_ir.serde.serialize_tensor(self._inside(sparse.values, tensor.name)),
                    indices=onnx_ir.serde.serialize_tensor(self._inside(sparse.indices, "")),
                )

    def _inside(self, tensor: onnx_ir.TensorProtocol, name: str) -> onnx_ir.ExternalTensor:
        self.inside.append(tensor)
        reference = _reference(tensor, _PAYLOAD, len(self.inside) - 1)
        reference.name = name
        return reference


def _reference(
    tensor: onnx_ir.TensorProtocol, location: str, offset: int
) -> onnx_ir.ExternalTensor:
    return onnx_ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=onnx_ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _key(tensor: onnx_ir.TensorProtocol) -> object:
    """Equal for tensors that are one: the same object, or the same range of a file."""
    if isinstance(tensor, MappedTensor):
        return id(tensor.file), tensor.offset, tensor.nbytes
    return id(tensor)


def _is_payload(slot: Slot) -> bool:
    """Whether the bytes must not pass through protobuf."""
    if slot.tensor.dtype == onnx_ir.DataType.STRING:
        return False
    if isinstance(slot.tensor, SparseTensor) and slot.value is not None:
        return True
    is_large = slot.tensor.nbytes > SMALL or _is_listed(slot.tensor)
    return isinstance(slot.tensor, onnx_ir.ExternalTensor) or is_large


def _is_listed(tensor: onnx_ir.TensorProtocol) -> bool:
    """Whether bits of floats are listed as integers, which some readers take for the numbers."""
    listed = isinstance(tensor, onnx_ir.TensorProtoTensor) and tensor.raw.int32_data
    return bool(listed) and tensor.dtype.is_floating_point()


def hold(model: onnx_ir.Model, *paths: Path) -> None:
    """Map what the model reads from files that are about to be replaced."""
    replaced = [path.resolve() for path in paths]
    for slot in slots(model):
        tensor = slot.tensor
        if isinstance(tensor, MappedTensor):
            if tensor.file.path.resolve() in replaced:
                tensor.file.pin()
        elif isinstance(tensor, onnx_ir.ExternalTensor):
            path = Path(tensor.path)
            if path.resolve() in replaced:
                slot.put(MappedTensor(DataFile(path), tensor, Path(tensor.base_dir)))


def left_behind(path: Path, data_path: Path, load: Callable[[Path], onnx_ir.Model]) -> list[Path]:
    """The data file of the old model at `path`, which the new one will not have; or nothing."""
    if not data_path.is_file():
        return []
    try:
        old = load(path)
    except ModelError:
        return []  # nobody knows whose file it is
    return [data_path] if reads_from(old, data_path) else []


def _to_proto(
    model: onnx_ir.Model, found: list[Slot], layout: _Layout, path: Path
) -> onnx.ModelProto:
    """Serialise the model with a reference in the place of each weight."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is None:
                raise ModelError(f"initializer {value.name!r} has no value", at=str(path))
    try:
        for slot in found:
            if isinstance(slot.tensor, SparseTensor) and slot.value is not None:
                slot.put(layout.sparse_reference(slot.tensor))
            else:
                slot.put(layout.reference(slot.tensor))
        proto = onnx_ir.serde.serialize_model(model)
    except onnx_ir.serde.SerdeError as error:
        raise ModelError(
            f"the model cannot be written as ONNX: {root_cause(error)}", at=str(path)
        ) from error
    finally:
        for slot in found:
            slot.restore()
    layout.restore_sparse(proto)
    return proto


def _write(piece: onnx_ir.TensorProtocol | bytes, file: BinaryIO) -> None:
    if isinstance(piece, bytes):
        file.write(piece)
    elif isinstance(piece, MappedTensor):
        piece.tofile(file)
    else:
        data = raw_bytes(piece)
        if len(data) != piece.nbytes:
            raise ModelError(
                f"{piece.dtype}{list(piece.shape)} takes {piece.nbytes:,} bytes and has "
                f"{len(data):,}",
                at=f"weight {piece.name!r}",
            )
        file.write(data)


def _cannot_write(path: Path, error: OSError) -> ModelError:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    denied = (errno.EACCES, errno.EPERM, errno.EROFS)
    if error.errno in full:
        hint = f"make room in {path.parent.resolve()}: old and new files exist side by side"
    elif error.errno in denied:
        hint = "save to a folder that you may write to"
    elif error.errno == errno.ENOENT:
        hint = f"make the folder first: mkdir -p {path.parent}"
    else:
        hint = None
    return ModelError(f"the model cannot be saved: {error}", at=str(path), hint=hint)
