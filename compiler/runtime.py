"""ONNX Runtime on the CPU: the oracle that outputs are compared with, and the mobile program."""

from __future__ import annotations

import contextlib
import ctypes
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from aigcc.errors import CompileError, did_you_mean
from aigcc.ir.bodies import with_written
from aigcc.ir.module import Module

Array = npt.NDArray[Any]
Level = Literal["none", "basic", "extended", "all"]

LEVELS: tuple[Level, ...] = get_args(Level)
"""How far ONNX Runtime may rewrite a graph; at each level it may pack weights for its kernels."""

_LEVELS: Mapping[Level, Any] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(k for k in vars(state).values() if isinstance(k, type) and issubclass(k, Exception)),
)

# Types that have no numpy type of their own: they travel as raw memory.
_RAW = frozenset({"BFLOAT16", "INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1"})

# The ways in which ONNX Runtime's messages name a node.
_NODE = re.compile(r"(?:Name:'|with name '|Node \(|in node \()(?P<name>[^')]+)")
_NARROW_HINT = "where it is for want of bfloat16 or float16, the pass to-fp32 helps"
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE = re.compile(r"\S+\.(?:cc|h):\d+ .*?\) (?:const )?(?=\S)")


class NoKernelError(CompileError):
    """ONNX Runtime has no kernel for a node's types."""


class OrtSession:
    """A program for ONNX Runtime on the CPU.

    With `optimise=False` nothing is rewritten and no weight is copied: the session is the reference
    for what a module means, and its weights stay in the page cache.

    Args:
        source: A `.onnx` or `.ort` file, or a module; a module is saved to a scratch folder, which
            is gone when the session is ready. One of an opset that ONNX Runtime does not read is
            converted to one that it does.
        optimise: Whether ONNX Runtime may rewrite the graph and copy weights into faster layouts,
            and up to which level if not as far as it can.
        without: Names of its optimisers that are switched off.
        integers: Whether products between Q/DQ may become products of integers; in float32 they are
            exact on every processor, and weights are held in float32.
        threads: Threads within an operator; all cores by default.
        profile: The beginning of a file's name, for how long nodes take; see `end_profile`.

    Raises:
        CompileError: ONNX Runtime refuses the model; names the node where its message does. A
            `NoKernelError` where it has no kernel for that.
    """

    def __init__(
        self,
        source: str | Path | Module,
        *,
        optimise: bool | Level = True,
        without: Collection[str] = (),
        integers: bool = True,
        threads: int | None = None,
        profile: Path | None = None,
    ) -> None:
        options = _options(threads)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if not integers:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        elif optimise is not True:
            options.graph_optimization_level = _LEVELS[optimise]
        self._where = str(source.path or "module") if isinstance(source, Module) else str(source)
        with _as_file(source) as path, explained(self._where):
            more = {"disabled_optimizers": list(without)} if without else {}
            self._session = _open(path, options, **more)
        self._inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._optional = {v.name for v in self._session.get_overridable_initializers()}
        self._outputs = {value.name: value.type for value in self._session.get_outputs()}
        kinds = (*self._inputs.values(), *self._outputs.values())
        self._raw = any(_is_raw(kind) for kind in kinds)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one set of inputs.

        Args:
            feeds: Input name to array, of the model's dtypes; bfloat16, float8 and types of less
                than a byte are `ml_dtypes` arrays, one element an item.

        Returns:
            Output name to array. A sequence `s` gives `s[0]`, `s[1]`, and so on.

        Raises:
            CompileError: a feed is missing, unknown or does not fit, or a node failed.
        """
        self._check_names(feeds)
        with explained(self._where):
            if self._raw:
                values = {name: self._to_ort(name, array) for name, array in feeds.items()}
                results = [
                    _from_ort(value) for value in self._session.run_with_ort_values(None, values)
                ]
            else:
                results = self._session.run(None, dict(feeds))
        return dict(_flatten(zip(self._outputs, results, strict=True)))

    def end_profile(self) -> Path:
        """The file that says how long nodes took in all runs so far, as ONNX Runtime writes it."""
        return Path(self._session.end_profiling())

    def _check_names(self, feeds: Mapping[str, Array]) -> None:
        for name in feeds:
            if name not in self._inputs and name not in self._optional:
                raise CompileError(
                    f"the model has no input {name!r}",
                    at=self._where,
                    hint=did_you_mean(name, self._inputs),
                )
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise CompileError(
                f"no value for the input {', '.join(map(repr, missing))}", at=self._where
            )

    def _to_ort(self, name: str, array: Array) -> Any:
        kind = self._inputs.get(name, "")
        if not _is_raw(kind):
            return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
        dtype = ir.DataType[kind.removeprefix("tensor(").removesuffix(")").upper()]
        if array.dtype != dtype.numpy():
            raise CompileError(
                f"input {name!r} takes {dtype.numpy()}, not {array.dtype}", at=self._where
            )
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), int(dtype))
        data = ir.Tensor(np.asarray(array, order="C"), dtype=dtype).tobytes()
        ctypes.memmove(value.data_ptr(), data, len(data))
        return value


def save_optimised(source: Path, out: Path, *, threads: int | None = None) -> None:
    """Write what ONNX Runtime makes of a model on any CPU: its own rewrites, without NCHWc layouts.

    Args:
        source: A `.onnx` file.
        out: The ending decides the form: `.onnx`, in the folder of `source` since external weights
            stay where they are, or `.ort`, which holds all weights.
        threads: Threads for folding constants; all cores by default.

    Raises:
        CompileError: ONNX Runtime refuses the model or cannot write it.
    """
    options = _options(threads)
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry("session.disable_prepacking", "1")
    if out.suffix == ".ort":
        options.add_session_config_entry("session.save_model_format", "ORT")
        # Arm has fast signed 8-bit products, so Q/DQ around them may become integer kernels.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with explained(str(source)):
        _open(source, options, disabled_optimizers=["NchwcTransformer"])


def evaluate(model: ir.Model) -> dict[str, Array]:
    """The outputs of a small model that has no inputs, computed once without touching the disk.

    Raises:
        CompileError: ONNX Runtime refuses the model, or a node failed.
    """
    options = _options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with explained("constants"):
        session = _open(ir.to_proto(model).SerializeToString(), options)
        values = session.run_with_ort_values(None, {})
        names = [value.name for value in session.get_outputs()]
        return {name: _from_ort(value) for name, value in zip(names, values, strict=True)}


def _options(threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; nothing is printed besides
    options.intra_op_num_threads = threads or 0
    return options


def _open(path: Path | bytes, options: Any, **more: Any) -> Any:
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], **more)


@contextlib.contextmanager
def _as_file(source: str | Path | Module) -> Iterator[Path]:
    from aigcc.passes.convert_opset import readable

    if not isinstance(source, Module):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        with_written(readable(source)).save(path, external=True)
        yield path


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """ONNX Runtime's errors as CompileErrors."""
    try:
        yield
    except _ERRORS as error:
        text = str(error).strip()
        node = _NODE.search(text)
        kind = NoKernelError if isinstance(error, state.NotImplemented) else CompileError
        raise kind(
            in_words(text),
            at=f"{where}, node {node['name']!r}" if node else where,
            hint=_NARROW_HINT if kind is NoKernelError else None,
        ) from None


def in_words(message: str) -> str:
    """A message of ONNX Runtime in one line, without places in its source."""
    return "ONNX Runtime: " + _SOURCE.sub("", _CODE.sub("", message.strip())).replace("\n", " ")


def _is_raw(kind: str) -> bool:
    name = kind.removeprefix("tensor(").removesuffix(")").upper()
    return name in _RAW or name.startswith("FLOAT8")


def _from_ort(value: Any) -> Any:
    if not _is_raw(value.data_type()):
        return value.numpy()
    dtype = ir.DataType(value.element_type())
    shape = tuple(value.shape())
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(data, dtype, shape=ir.Shape(shape)).numpy()
    return data.view(dtype.numpy()).reshape(shape)


def _flatten(outputs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Array]]:
    for name, value in outputs:
        if isinstance(value, list):
            yield from _flatten(iter([(f"{name}[{i}]", item) for i, item in enumerate(value)]))
        elif value is not None:
            yield name, value
