"""A program of OpenVINO on the CPU of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aigcc.errors import CompileError, did_you_mean
from aigcc.target import Feeds, NodeTime
from aigcc.targets.cpu import memory
from aigcc.targets.cpu.mend import read_model


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
            self._dtypes = [memory.dtypes_for(kind) for kind in self._types]
            self._inputs = {name: i for i, port in enumerate(model.inputs) for name in port.names}
            self._outputs = [port.get_any_name() for port in model.outputs]
            self._shapes: list[tuple[int, ...]] = []
            self.compiled: Any = None
            self._request: Any = None
            self._places: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}
            self._model = model if specialise and model.is_dynamic() else None
            if self._model is None:
                self._compile(model)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs for one set of inputs.

        Raises:
            CompileError: a feed is missing, unknown or does not fit, or a node failed.
        """
        arrays = self._in_order(feeds)
        with self._explained():
            self._fit([array.shape for array in arrays])
            for index, array in enumerate(arrays):
                memory.write(array, self._place(index, array.shape))
            self._request.infer(share_outputs=True)
        return {
            name: memory.read(self._request.get_output_tensor(index))
            for index, name in enumerate(self._outputs)
        }

    def profile(self, feeds: Feeds, runs: int = 5) -> list[NodeTime]:
        """How long each layer takes, on average; the properties must have PERF_COUNT.

        Raises:
            CompileError: see `run`.
        """
        self.run(feeds)
        found: dict[str, NodeTime] = {}
        for _ in range(runs):
            self.run(feeds)
            for layer in self._request.profiling_info:
                taken = layer.real_time.total_seconds() / runs
                if taken:
                    before = found[layer.node_name].seconds if layer.node_name in found else 0.0
                    found[layer.node_name] = NodeTime(
                        layer.node_name, layer.node_type, layer.exec_type, before + taken
                    )
        return list(found.values())

    def _in_order(self, feeds: Feeds) -> list[np.ndarray]:
        """An array for each input.

        Raises:
            CompileError: one is missing, unknown, or of another type.
        """
        arrays = {}
        for name, array in feeds.items():
            if name not in self._inputs:
                raise CompileError(
                    f"the model has no input {name!r}",
                    at=self._where,
                    hint=did_you_mean(name, self._inputs),
                )
            index = self._inputs[name]
            if array.dtype not in self._dtypes[index]:
                kind = self._types[index].get_type_name()
                raise CompileError(
                    f"input {name!r} takes {kind}, not {array.dtype}", at=self._where
                )
            arrays[index] = array
        missing = [name for index, name in enumerate(self._names) if index not in arrays]
        if missing:
            raise CompileError(
                f"no value for the input {', '.join(map(repr, missing))}", at=self._where
            )
        return [arrays[index] for index in range(len(self._names))]

    def _place(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """The memory of an input; it stays as long as shapes do, since the program plans by it."""
        import openvino

        if index not in self._places or self._places[index][0] != shape:
            tensor = openvino.Tensor(self._types[index], openvino.Shape(shape))
            self._request.set_input_tensor(index, tensor)
            self._places[index] = shape, tensor.data
        return self._places[index][1]

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
        self._places = {}

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
