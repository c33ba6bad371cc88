"""A program of OpenVINO on the CPU of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from aigcc.errors import CompileError, did_you_mean
from aigcc.target import Feeds

# Types without a numpy type of their own; OpenVINO hands out their memory as another type.
_OWN_TYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
}


class OpenVinoSession:
    """A compiled model, ready to run.

    Args:
        path: A model.xml.
        properties: OpenVINO's properties, such as INFERENCE_PRECISION_HINT.

    Raises:
        CompileError: OpenVINO refuses the model.
    """

    def __init__(self, path: Path, properties: Mapping[str, Any]) -> None:
        import openvino

        self._where = str(path)
        try:
            self.compiled = openvino.Core().compile_model(path, "CPU", dict(properties))
        except RuntimeError as error:
            raise CompileError(f"OpenVINO: {explain(error)}", at=self._where) from None
        # an input that a no-op reads has its names, too
        self._inputs = {name: port for port in self.compiled.inputs for name in port.get_names()}
        self._outputs = [port.get_any_name() for port in self.compiled.outputs]
        self._request = self.compiled.create_infer_request()

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
        missing = [port.get_any_name() for port in self.compiled.inputs if port not in tensors]
        if missing:
            raise CompileError(
                f"no value for the input {', '.join(map(repr, missing))}", at=self._where
            )
        try:
            self._request.infer(tensors)
        except RuntimeError as error:
            raise CompileError(f"OpenVINO: {explain(error)}", at=self._where) from None
        return {
            name: _array(self._request.get_output_tensor(index))
            for index, name in enumerate(self._outputs)
        }

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        import openvino

        kind = self._inputs[name].get_element_type()
        tensor = openvino.Tensor(kind, openvino.Shape(array.shape))
        if tensor.data.shape != array.shape or tensor.data.itemsize != array.itemsize:
            raise CompileError(
                f"input {name!r} takes {kind.get_type_name()}, not {array.dtype}", at=self._where
            )
        tensor.data[...] = np.ascontiguousarray(array).reshape(array.shape).view(tensor.data.dtype)
        return tensor


def explain(error: RuntimeError) -> str:
    """OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = ("Exception from", "FrontEnd API failed", "Summary:", "To facilitate", "Model wasn't")
    told = [line for line in lines if line and not line.startswith(places)]
    kept = [line for line in told if not line.startswith("Check ")] or told
    return " ".join(kept)


def _array(tensor: Any) -> np.ndarray:
    own = _OWN_TYPES.get(tensor.get_element_type().get_type_name())
    data: np.ndarray = tensor.data.copy()
    return data if own is None else data.view(own)
