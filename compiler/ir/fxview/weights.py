"""Weights on their way to torch, without a copy where that is possible, and back."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from aigcc.errors import ModelError, did_you_mean
from aigcc.ir.fxview.dtypes import TORCH, TRAINABLE
from aigcc.ir.fxview.recording import OWN_NAME
from aigcc.ir.module import Module
from aigcc.ir.storage.mapped import DataFile, MappedTensor
from aigcc.ir.weights import constant, raw_bytes

_CHUNK = 16 << 20
_STATISTICS = ("BatchNormalization", (3, 4))
_TENSOR_ATTRIBUTES = ("value", "value_float", "value_floats")


def weight_names(module: Module) -> dict[str, ir.Value]:
    """What each constant is called in the FX view: its ONNX name, where torch can have that name.

    A dot in a name leads to a sub-module, as in `blocks.0.weight`. A part that is empty, or that
    is an attribute of every module (`forward`), gets a `_` at its end, and so does a name that is
    also the beginning of another.

    Returns:
        Path in the GraphModule to the initializer, or to the output of the Constant node, of the
        module: both ways of reading it are unique.
    """
    reserved = {*dir(nn.Module()), *dir(torch.fx.GraphModule), "graph", "_graph", "_code", "code"}
    names: dict[str, ir.Value] = {}
    folders: set[str] = set()
    for value in _constants(module):
        parts = (value.name or "").split(".")
        path = ""
        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            if not part or part in reserved or OWN_NAME.fullmatch(part):
                part += "_"
            full = f"{path}.{part}" if path else part
            while full in names or (is_last and full in folders):
                full += "_"
            path = full
            if not is_last:
                folders.add(full)
        names[path] = value
    return names


def _constants(module: Module) -> Iterator[ir.Value]:
    for graph in module.graphs():
        if not isinstance(graph, ir.Function):
            yield from (v for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                yield node.outputs[0]


def is_trained(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is a parameter: floats are, but for the statistics of batches."""
    op, positions = _STATISTICS
    uses = value.uses()
    is_statistic = bool(uses) and all(n.op_type == op and at in positions for n, at in uses)
    return tensor.dtype in TRAINABLE and not is_statistic


class Loader:
    """Makes torch tensors of ONNX's, one mapping for each file.

    The mapping is private and is copied on write, page by page: an optimizer may change a weight
    in place, and neither the file nor the module that was loaded from it will notice.
    """

    def __init__(self) -> None:
        self._mappings: dict[DataFile, mmap.mmap] = {}

    def load(self, tensor: ir.TensorProtocol) -> torch.Tensor:
        """A tensor that shares memory with the file that holds it.

        It is copied if it does not lie in a file, if its place there is not a multiple of its
        element size, or if it is of a type that is smaller than a byte.

        Raises:
            ModelError: torch has no such type.
        """
        dtype = TORCH.get(tensor.dtype)
        if dtype is None:
            raise ModelError(
                f"torch has no tensors of {tensor.dtype}", at=f"constant {tensor.name!r}"
            )
        shape = tensor.shape.numpy()
        if tensor.dtype.bitwidth < 8:
            return torch.from_numpy(np.array(tensor.numpy(), np.float32)).to(dtype)
        if not tensor.size:
            return torch.empty(shape, dtype=dtype)
        if isinstance(tensor, MappedTensor) and (tensor.offset or 0) % dtype.itemsize == 0:
            mapping = self._mapping(tensor.file)
            if mapping is not None:
                flat = torch.frombuffer(
                    mapping, dtype=dtype, count=tensor.size, offset=tensor.offset or 0
                )
                return flat.view(shape)
        return torch.frombuffer(bytearray(raw_bytes(tensor)), dtype=dtype).view(shape)

    def _mapping(self, file: DataFile) -> mmap.mmap | None:
        """The file, mapped copy-on-write; None if its path leads to something else by now."""
        if file not in self._mappings:
            if not file.unchanged():
                return None
            with file.path.open("rb") as opened:
                self._mappings[file] = mmap.mmap(
                    opened.fileno(), file.size, access=mmap.ACCESS_COPY
                )
        return self._mappings[file]


def update_weights(module: Module, graph_module: nn.Module) -> list[str]:
    """Bring changed weights home.

    Args:
        module: The module that `graph_module` was made of. Its weights are replaced, never written
            to; those whose bytes are the same stay as they are, in their file.
        graph_module: What `to_fx` returned, or any module that has weights under the same names.
            A weight of another floating type is rounded to the module's.

    Returns:
        The ONNX names of the weights that changed.

    Raises:
        ModelError: a weight has another shape than before, or none is found at all; nothing is
            changed then.
    """
    tensors = {**dict(graph_module.named_parameters()), **dict(graph_module.named_buffers())}
    names = weight_names(module)
    found = {path: tensor for path, tensor in tensors.items() if path in names}
    if not found and any(isinstance(tensor, nn.Parameter) for tensor in tensors.values()):
        path = next(iter(tensors))
        raise ModelError(
            f"the module has no weight {path!r}, nor any other of the {len(tensors)} given",
            at=str(module.path) if module.path else None,
            hint=did_you_mean(path, names),
        )
    changed: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for path, tensor in found.items():
        old = _tensor_of(names[path])
        if tuple(tensor.shape) != tuple(old.shape.numpy()):
            raise ModelError(
                f"weight {path!r} has shape {list(tensor.shape)} and had {list(old.shape)}",
                hint="update_weights changes values; to change shapes, edit the module itself",
            )
        new = tensor.detach().to("cpu", TORCH[old.dtype]).contiguous()
        if not _same(new, old):
            changed.append((names[path], _to_onnx(new, old)))
    for value, made in changed:
        _put(value, made)
    if changed:
        module.invalidate()
    return [value.name or "" for value, _ in changed]


def _tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a constant, even of one that is also an input."""
    tensor = value.const_value if value.const_value is not None else constant(value)
    assert tensor is not None
    return tensor


def _same(new: torch.Tensor, old: ir.TensorProtocol) -> bool:
    if old.dtype.bitwidth < 8:
        return np.array_equal(np.array(old.numpy(), np.float32), new.to(torch.float32).numpy())
    mine, theirs = _bytes(new), raw_bytes(old)
    same = len(mine) == len(theirs) and all(
        mine[start : start + _CHUNK] == theirs[start : start + _CHUNK]
        for start in range(0, len(mine), _CHUNK)
    )
    if isinstance(old, MappedTensor):
        old.release()
    return same


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _to_onnx(new: torch.Tensor, old: ir.TensorProtocol) -> ir.TensorProtocol:
    if old.dtype.bitwidth < 8:
        array = new.to(torch.float32).numpy().astype(old.dtype.numpy())
    else:
        data = bytearray(_bytes(new))
        array = np.frombuffer(data, old.dtype.numpy()).reshape(old.shape.numpy())
    return ir.Tensor(array, dtype=old.dtype, name=old.name)


def _put(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    if value.const_value is not None and value.producer() is None:
        value.const_value = tensor
        return
    node = value.producer()
    assert node is not None
    for name in _TENSOR_ATTRIBUTES:
        node.attributes.pop(name, None)
    node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, tensor)
    if value.const_value is not None:
        value.const_value = tensor
