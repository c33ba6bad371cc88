"""A program of OpenVINO on the CPU of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from aigcc.errors import CompileError, did_you_mean
from aigcc.target import Feeds
from aigcc.targets.cpu.mend import read_model

# Types without a numpy type of their own; OpenVINO hands out their memory as another type.
_OWN_TYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
}
# Two of these share a byte.
_HALF_BYTES: dict[str, Any] = {"i4": np.dtype(ml_dtypes.int4), "u4": np.dtype(ml_dtypes.uint4)}


class OpenVinoSession:
    """A model for OpenVINO, ready to run.

    Where shapes are dynamic, the first run compiles a program for the shapes of its inputs: looking
    at the shapes of all nodes in each run takes OpenVINO time. When other shapes come, a program
    for all shapes takes its place.

    Args:
        path: A model.xml, or a .onnx file.
        properties: OpenVINO's properties, such as INFERENCE_PRECISION_HINT.
        specialise: Whether the first shapes get a program of their own.

    Raises:
        CompileError: OpenVINO refuses the model.
    """

    def __init__(
        self, path: Path, properties: Mapping[str, Any], *, specialise: bool = True
    ) -> None:
        import openvino

        self._where, self._properties = str(path), dict(properties)
        self._core = openvino.Core()
        with self._explained():
            model = read_model(self._core, path)
            self._names = [port.get_any_name() for port in model.inputs]
            self._types = [port.get_element_type() for port in model.inputs]
            self._inputs = {name: i for i, port in enumerate(model.inputs) for name in port.names}
            self._outputs = [port.get_any_name() for port in model.outputs]
            self._shapes: list[tuple[int, ...]] = []
            self.compiled: Any = None
            self._request: Any = None
            self._model = model if specialise and model.is_dynamic() else None
            if self._model is None:
                self._compile(model)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs for one set of inputs.

        Raises:
            CompileError: a feed is missing, unknown or does not fit, or a node failed.
        """
        for name in feeds:
            if name not in self._inputs:
                raise CompileError(
                    f"the model has no input {name!r}",
                    at=self._where,
                    hint=did_you_mean(name, self._inputs),
                )
        tensors = {self._inputs[name]: self._tensor(name, array) for name, array in feeds.items()}
        missing = [name for index, name in enumerate(self._names) if index not in tensors]
        if missing:
            raise CompileError(
                f"no value for the input {', '.join(map(repr, missing))}", at=self._where
            )
        with self._explained():
            self._fit([tuple(tensors[index].shape) for index in range(len(self._names))])
            self._request.infer(tensors)
        return {
            name: _array(self._request.get_output_tensor(index))
            for index, name in enumerate(self._outputs)
        }

    def generalise(self) -> None:
        """Have the program for all shapes from now on.

        Raises:
            CompileError: OpenVINO refuses the model.
        """
        if self._model is not None:
            with self._explained():
                self._drop()
                self._compile(self._model)
            self._model = None

    def _fit(self, shapes: list[tuple[int, ...]]) -> None:
        """Have a program for some shapes."""
        model = self._model
        if model is None or shapes == self._shapes:
            return
        if self._shapes:
            self.generalise()
            return
        special = model.clone()
        try:
            special.reshape({index: list(shape) for index, shape in enumerate(shapes)})
        except RuntimeError:
            self.generalise()  # the program for all shapes says what does not fit
        else:
            self._compile(special)
            self._shapes = shapes

    def _drop(self) -> None:
        """Let the weights of a program go before those of another come."""
        self.compiled = self._request = None

    def _compile(self, model: Any) -> None:
        self.compiled = self._core.compile_model(model, "CPU", self._properties)
        self._request = self.compiled.create_infer_request()

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        import openvino

        kind = self._types[self._inputs[name]]
        tensor = openvino.Tensor(kind, openvino.Shape(array.shape))
        packed = _packed(array) if kind.get_type_name() in _HALF_BYTES else array
        if (
            tensor.get_size() != array.size
            or tensor.data.shape != packed.shape
            or tensor.data.itemsize != packed.itemsize
        ):
            raise CompileError(
                f"input {name!r} takes {kind.get_type_name()}, not {array.dtype}", at=self._where
            )
        data = np.ascontiguousarray(packed).reshape(packed.shape)
        tensor.data[...] = data.view(tensor.data.dtype)
        return tensor

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """OpenVINO's errors as CompileErrors."""
        try:
            yield
        except RuntimeError as error:
            raise CompileError(f"OpenVINO: {explain(error)}", at=self._where) from None


def explain(error: RuntimeError) -> str:
    """OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = ("Exception from", "FrontEnd API failed", "Summary:", "To facilitate", "Model wasn't")
    told = [line for line in lines if line and not line.startswith(places)]
    kept = [line for line in told if not line.startswith("Check ")] or told
    return " ".join(kept)


def _packed(array: np.ndarray) -> np.ndarray:
    """Integers of half a byte, two to a byte, the first one low; others as they are."""
    if array.dtype not in _HALF_BYTES.values():
        return array
    halves = array.ravel().astype(np.int8).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8)).reshape(-1, 2)
    packed: np.ndarray = halves[:, 0] | halves[:, 1] << 4
    return packed


def _array(tensor: Any) -> np.ndarray:
    name = tensor.get_element_type().get_type_name()
    data: np.ndarray = tensor.data.copy()
    if name in _OWN_TYPES:
        return data.view(_OWN_TYPES[name])
    if name not in _HALF_BYTES:
        return data
    bytes_ = data.ravel().view(np.uint8)
    halves = np.stack([bytes_ & 15, bytes_ >> 4], axis=1).ravel()[: tensor.get_size()]
    if name == "i4":
        halves = (halves.view(np.int8) ^ 8) - 8
    return halves.astype(_HALF_BYTES[name]).reshape(tuple(tensor.shape))
