"""A program's weights: prepared one at a time and written as they come, never all in memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_STEP = "main_transform_params"
_TOGETHER = 256 << 20  # bytes of results that are computed together
_LARGE = 1 << 20  # bytes of an initializer that the front end must not take for a constant

# TVM's file of tensors: see src/runtime/file_utils.cc and its save of a tensor.
_LIST, _TENSOR, _CPU = 0xF7E58D4F05049CB7, 0xDD5E40F096B4A13F, 1
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


def detach_large(model: Any, folder: Path) -> list[Array]:
    """Make inputs of the large initializers, behind all others; returns their mapped arrays.

    Args:
        model: An ONNX model whose external data was not loaded; small initializers get theirs.
        folder: Where that data is.
    """
    from onnx import TensorProto, helper, numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    kept: list[Any] = []
    arrays: list[Array] = []
    taken = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        is_external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.name in taken or math.prod(tensor.dims) * dtype.itemsize < _LARGE:
            if is_external:
                load_external_data_for_tensor(tensor, str(folder))
            kept.append(tensor)
            continue
        if is_external:
            place = {entry.key: entry.value for entry in tensor.external_data}
            path, offset = folder / place["location"], int(place.get("offset", 0))
            arrays.append(np.memmap(path, dtype, "r", offset, tuple(tensor.dims)))
        else:
            arrays.append(numpy_helper.to_array(tensor))
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return arrays


def settle(program: Any, given: Sequence[Any], path: Path, target: Any) -> tuple[Any, int]:
    """Compute now what depends on parameters alone, and write the results.

    Args:
        program: Whose parameters follow its inputs.
        given: Their values, arrays or tensors of TVM.
        path: The file to write, of tensors that are named by their numbers.
        target: Of this machine.

    Returns:
        The program, which takes the results behind its inputs, and how many there are.
    """
    import tvm
    from tvm import relax

    if not given:
        tvm.runtime.save_param_dict_to_file({}, str(path))
        return program, 0
    program = relax.transform.LiftTransformParams()(program)
    first = relax.transform.ToNonDataflow()(_only(program, _STEP, "main"))
    types = [(_numbers(t.shape), str(t.dtype)) for t in first[_STEP].ret_ty.fields]
    with TensorFile(path, types) as file:
        for group in _groups(types):
            for index, array in zip(group, _compute(first, group, given, target), strict=True):
                file.write(index, array)
    return _only(program, "main", _STEP), len(types)


def _groups(types: Sequence[tuple[tuple[int, ...], str]]) -> Iterator[list[int]]:
    """The numbers of tensors that are computed together, few enough for memory."""
    group: list[int] = []
    total = 0
    for index, (shape, dtype) in enumerate(types):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if group and total + size > _TOGETHER:
            yield group
            group, total = [], 0
        group.append(index)
        total += size
    if group:
        yield group


def _compute(
    program: Any, group: Sequence[int], given: Sequence[Any], target: Any
) -> Iterator[Array]:
    """Some results of the function that prepares parameters; many are parameters as they are."""
    import tvm
    from tvm import relax

    function = program[_STEP]
    (packed,), blocks = function.params, function.body.blocks
    bindings = [binding for block in blocks for binding in block.bindings]
    read = {
        b.var: b.value.index
        for b in bindings
        if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value.same_as(packed)
    }
    if function.body.body.same_as(packed):
        yield from (_array(given[index]) for index in group)
        return
    (outputs,) = [b.value for b in bindings if b.var.same_as(function.body.body)]
    chosen = [outputs.fields[index] for index in group]
    made = [value for value in chosen if value not in read]
    arrays: Iterator[Any] = iter(())
    if made:
        result = relax.Var("result", relax.TupleType([value.ty for value in made]))
        kept = [b for b in bindings if b.var not in read and b.value is not outputs]
        kept = [b for b in kept if not b.var.same_as(function.body.body)]
        body = relax.SeqExpr(
            [relax.BindingBlock([*kept, relax.VarBinding(result, relax.Tuple(made))])], result
        )
        needed = _needed(made, kept, read)
        alone = tvm.IRModule({_STEP: relax.Function(needed, body, result.ty)})
        alone[_STEP] = alone[_STEP].with_attr("global_symbol", _STEP)
        alone = relax.transform.DeadCodeElimination([_STEP])(alone)
        machine = relax.VirtualMachine(tvm.compile(alone, target=target), tvm.cpu())
        arrays = iter(machine[_STEP](*(_tensor(given[read[variable]]) for variable in needed)))
    for value in chosen:
        yield _array(given[read[value]] if value in read else next(arrays))


def _needed(made: Sequence[Any], bindings: Sequence[Any], read: Mapping[Any, int]) -> list[Any]:
    """The parameters that some results depend on."""
    from tvm import relax

    by_variable = {binding.var: binding.value for binding in bindings}
    pending, seen, needed = list(made), set(), []
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in read:
            needed.append(value)
        elif value in by_variable:
            pending.extend(relax.analysis.free_vars(by_variable[value]))
    return needed


def _tensor(value: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(value) if isinstance(value, np.ndarray) else value


def _array(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def _numbers(shape: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in shape)


def _only(program: Any, kept: str, other: str) -> Any:
    """One of the two functions of a program, with what it calls."""
    import tvm
    from tvm import relax

    functions = {name: f for name, f in program.functions.items() if name.name_hint != other}
    return relax.transform.DeadCodeElimination([kept])(tvm.IRModule(functions))


class TensorFile:
    """Writes tensors of known types in any order, in the form that TVM reads.

    Args:
        path: The file.
        types: The shape and the element type of each tensor.
    """

    def __init__(self, path: Path, types: Sequence[tuple[tuple[int, ...], str]]) -> None:
        self._file: IO[bytes] = path.open("wb")
        names = [str(index).encode() for index in range(len(types))]
        head = struct.pack("<QQQ", _LIST, 0, len(names))
        head += b"".join(struct.pack("<Q", len(name)) + name for name in names)
        self._file.write(head + struct.pack("<Q", len(types)))
        self._places = []
        at = self._file.tell()
        for shape, name in types:
            dtype = np.dtype(name)
            size = math.prod(shape) * dtype.itemsize
            code, bits = _CODES[dtype.kind], dtype.itemsize * 8
            tensor = struct.pack("<QQiiiBBH", _TENSOR, 0, _CPU, 0, len(shape), code, bits, 1)
            tensor += struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<q", size)
            self._file.seek(at)
            self._file.write(tensor)
            self._places.append(at + len(tensor))
            at += len(tensor) + size
        self._file.truncate(at)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, index: int, array: Array) -> None:
        """Put the numbers of one tensor where they belong."""
        self._file.seek(self._places[index])
        self._file.write(np.ascontiguousarray(array).data)
