"""Load .onnx files with the weights left on disk."""

from __future__ import annotations

import secrets
import warnings
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import onnx
import onnx_ir

from aigcc.errors import ModelError
from aigcc.ir.slots import graph_protos, graphs, slots
from aigcc.ir.storage import wire
from aigcc.ir.storage.external import OPEN_FILES, DataFiles
from aigcc.ir.storage.mapped import DataFile, MappedTensor, SparseTensor
from aigcc.ir.weights import SMALL

_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "double_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "string_data",
)
_OTHER_FORMATS = {
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the real file: git lfs pull"),
    b"<!doctype html": ("a web page", "the download failed; download it again"),
    b"<html": ("a web page", "the download failed; download it again"),
    b"PK\x03\x04": ("a PyTorch archive", "trace the torch model instead of its weights"),
    b"\x80": ("a Python pickle, which is never opened", "export the model to ONNX"),
    b"GGUF": ("a GGUF file", "export the model to ONNX"),
    b"<": ("text", "name it .onnxtxt if it is the text form of a model"),
    b"{": ("text", "export the model to ONNX"),
}


def load_model(path: str | Path) -> onnx_ir.Model:
    """Load an .onnx file without reading its weights, wherever they are.

    Weights of more than 1 KiB stay on disk as memory-mapped tensors, also when they lie inside
    the .onnx file. Smaller ones are copied into memory. Nothing that a program acts on is lost:
    what onnx_ir has no place for is refused (map types, sparse attributes) or dropped (training
    information, with a warning; checksums of external data; types of values that do not exist).

    Args:
        path: The file. External data must lie in its folder.

    Raises:
        ModelError: If the file is not a legal model, or external data is missing, cut short or
            outside the folder.
    """
    path = Path(path)
    file = _open(path)
    data = file.view(0, file.size)
    _refuse_other_formats(bytes(data[:512]), path)
    try:
        stubbed = wire.take_out(data, path.name, SMALL)
        proto = onnx.ModelProto.FromString(stubbed.model)
    except Exception as error:
        raise ModelError(
            f"the file is cut short, damaged, or not an ONNX model: {error}",
            at=str(path),
            hint="copy or download it again",
        ) from error
    mark = f"sparse:{secrets.token_hex(8)}"  # no file can guess it
    model, sparse = _deserialize(proto, path, mark)
    found = list(slots(model))
    locations = {str(s.tensor.location) for s in found if _is_reference(s.tensor)}
    files = DataFiles(path.parent, len(locations) <= OPEN_FILES, file, stubbed.varints)
    for slot in found:
        at = f"{slot.where} of {path}"
        if _is_reference(slot.tensor) and slot.tensor.location == mark:
            slot.put(_load_sparse(sparse[slot.tensor.offset or 0], files, at))
        else:
            slot.put(_load_tensor(slot.tensor, files, at))
    return model


def reads_from(model: onnx_ir.Model, path: Path) -> bool:
    """Whether weights of a model are mapped from this file."""
    return any(
        isinstance(slot.tensor, MappedTensor) and slot.tensor.file.path == path.absolute()
        for slot in slots(model)
    )


def file_bytes(path: str | Path) -> int:
    """The bytes that a model takes on disk: the .onnx file and the data files it refers to.

    Raises:
        ModelError: If `load_model` would.
    """
    files = {Path(path).absolute()}
    for slot in slots(load_model(path)):
        if isinstance(slot.tensor, MappedTensor):
            files.add(slot.tensor.file.path)
    return sum(file.stat().st_size for file in files)


def _open(path: Path) -> DataFile:
    try:
        if not path.exists():
            raise ModelError("the file does not exist", at=str(path))
        if not path.is_file():
            raise ModelError(
                "this is not a file", at=str(path), hint="give the .onnx file, not its folder"
            )
        file = DataFile(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read: {error}", at=str(path)) from error
    if not file.size:
        raise ModelError("the file is empty", at=str(path), hint="copy or download it again")
    return file


def _refuse_other_formats(head: bytes, path: Path) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, (what, hint) in _OTHER_FORMATS.items():
        if head.startswith(magic) or start.startswith(magic.lower()):
            raise ModelError(f"this is {what}, not an ONNX model", at=str(path), hint=hint)
    kinds = {b"TFL3": "a TensorFlow Lite model", b"ORTM": "a model in ONNX Runtime's .ort format"}
    if head[4:8] in kinds:
        raise ModelError(f"this is {kinds[head[4:8]]}, not an ONNX model", at=str(path))
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        raise ModelError(
            "this is a safetensors file, which holds weights and no graph",
            at=str(path),
            hint="export the model to ONNX",
        )


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse what onnx_ir would drop or trip over in silence."""
    at = str(path)
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError("this is not an ONNX model: it holds no graph", at=at)
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {proto.ir_version}, and the installed onnx package "
            f"knows versions up to {onnx.IR_VERSION}",
            at=at,
            hint="pip install --upgrade onnx, or export the model with an older opset",
        )
    damaged = _find_bytes(proto)
    if damaged is not None:
        raise ModelError(f"the {damaged} is not UTF-8", at=at, hint="copy or download it again")
    if proto.training_info:
        warnings.warn(f"{path}: training information is dropped", stacklevel=3)
    for graph in graph_protos(proto):
        names = [tensor.name for tensor in graph.initializer]
        names += [tensor.values.name for tensor in graph.sparse_initializer]
        if "" in names:
            raise ModelError(f"an initializer of graph {graph.name!r} has no name", at=at)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"graph {graph.name!r} has two initializers {twice!r}", at=at)


def _find_bytes(message: Any) -> str | None:
    """A text that protobuf could not decode, and so hands out as bytes: its field's name."""
    for field, content in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [content] if isinstance(content, str | bytes) else content
            if any(isinstance(text, bytes) for text in texts):
                return f"{field.name} of a {message.DESCRIPTOR.name}"
        elif field.type == field.TYPE_MESSAGE:
            for inner in [content] if hasattr(content, "ListFields") else content:
                found = _find_bytes(inner)
                if found is not None:
                    return found
    return None


def _deserialize(
    proto: onnx.ModelProto, path: Path, mark: str
) -> tuple[onnx_ir.Model, list[onnx.SparseTensorProto]]:
    """The model, and its sparse initializers, each of which it refers to by `mark` and index."""
    try:
        _check(proto, path)
        sparse = _take_sparse(proto, mark)
        model = onnx_ir.serde.deserialize_model(proto)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the file is not an ONNX model that aigcc can hold: {root_cause(error)}",
            at=str(path),
            hint="onnx.checker may say more; export the model again",
        ) from error
    for graph in graphs(model):
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == onnx_ir.AttributeType.UNDEFINED and not attribute.is_ref():
                    raise ModelError(
                        f"attribute {attribute.name!r} of node {node.name!r} has no type",
                        at=str(path),
                        hint="the file is older than ONNX 1.0: export the model again",
                    )
    return model, sparse


def root_cause(error: BaseException) -> str:
    """What onnx_ir's chain of errors began with."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).partition(" Please contribute")[0] or type(error).__name__


def _is_reference(tensor: onnx_ir.TensorProtocol) -> TypeGuard[onnx_ir.ExternalTensor]:
    return isinstance(tensor, onnx_ir.ExternalTensor)


def _load_tensor(
    tensor: onnx_ir.TensorProtocol, files: DataFiles, at: str
) -> onnx_ir.TensorProtocol:
    """The tensor, checked, and free of the protobuf message that it came from."""
    if any(size < 0 for size in tensor.shape.numpy()):
        raise ModelError(f"a weight has the shape {list(tensor.shape)}", at=at)
    try:
        if isinstance(tensor, onnx_ir.ExternalTensor):
            return files.map(tensor, at)
        if isinstance(tensor, onnx_ir.StringTensor):
            strings = np.array(list(tensor.string_data()), object).reshape(tensor.shape.numpy())
            return onnx_ir.StringTensor(strings, **_description(tensor))
        return _own(cast(onnx_ir.serde.TensorProtoTensor, tensor), at)
    except (ValueError, TypeError, AssertionError) as error:
        raise ModelError(f"a weight is damaged: {error}", at=at) from error


def _own(tensor: onnx_ir.serde.TensorProtoTensor, at: str) -> onnx_ir.TensorProtocol:
    held = [name for name in _DATA_FIELDS if len(getattr(tensor.raw, name))]
    if len(held) != (tensor.size > 0):
        raise ModelError(
            f"a weight of shape {list(tensor.shape)} has {' and '.join(held) or 'no data'}", at=at
        )
    if held == ["raw_data"] and len(tensor.raw.raw_data) != tensor.nbytes:
        raise ModelError(
            f"{len(tensor.raw.raw_data):,} bytes are stored for {tensor.dtype}"
            f"{list(tensor.shape)}, which takes {tensor.nbytes:,}",
            at=at,
        )
    return onnx_ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, **_description(tensor))


def _take_sparse(proto: onnx.ModelProto, mark: str) -> list[onnx.SparseTensorProto]:
    """Take the sparse initializers out, which onnx_ir ignores, and leave references at `mark`."""
    taken: list[onnx.SparseTensorProto] = []
    for graph in graph_protos(proto):
        for sparse in graph.sparse_initializer:
            tensor = graph.initializer.add(
                name=sparse.values.name,
                dims=sparse.dims,
                data_type=sparse.values.data_type,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            tensor.external_data.add(key="location", value=mark)
            tensor.external_data.add(key="offset", value=str(len(taken)))
            taken.append(onnx.SparseTensorProto.FromString(sparse.SerializeToString()))
        graph.ClearField("sparse_initializer")
    return taken


def _load_sparse(proto: onnx.SparseTensorProto, files: DataFiles, at: str) -> SparseTensor:
    try:
        parts = [onnx_ir.serde.deserialize_tensor(part) for part in (proto.values, proto.indices)]
    except onnx_ir.serde.SerdeError as error:
        raise ModelError(f"a weight is damaged: {root_cause(error)}", at=at) from error
    values, indices = (_load_tensor(part, files, at) for part in parts)
    if any(size < 0 for size in proto.dims):
        raise ModelError(f"a weight has the shape {list(proto.dims)}", at=at)
    return SparseTensor(values, indices, list(proto.dims), proto.values.name)


def _description(tensor: onnx_ir.TensorProtocol) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "doc_string": tensor.doc_string or None,
        "metadata_props": dict(tensor.metadata_props),
    }
