"""Reads the weights of a network in ncnn's format: a `.param` text and a `.bin` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aigcc.errors import ModelError

MAGIC = "7767517"
HALF_PRECISION = 0x01306B47


@dataclass(frozen=True)
class Layer:
    """A layer with weights, in the order in which the network runs.

    Attributes:
        kind: ncnn's name of the layer, such as `Convolution`.
        name: Its name in the file.
        weights: Its float32 arrays, flat: a weight and, if there is one, a bias; or slopes.
    """

    kind: str
    name: str
    weights: tuple[NDArray[np.float32], ...]


def read_layers(param: Path) -> list[Layer]:
    """The convolutions and PReLUs of the network at `param` (its `.bin` lies beside it).

    Raises:
        ModelError: It is no ncnn network, holds other weights, or its weights do not fit.
    """
    lines = param.read_text().splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ModelError("this is not an ncnn network in text form", at=str(param))
    weights = _Weights(param.with_suffix(".bin"))
    layers = []
    for line in lines[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        options = dict(item.split("=", 1) for item in rest[int(inputs) + int(outputs) :])
        if kind == "Convolution":
            # 0 is the number of output channels, 5 says that there is a bias, 6 the weight's size.
            arrays = [weights.tagged(int(options["6"]))]
            if options.get("5") == "1":
                arrays.append(weights.plain(int(options["0"])))
        elif kind == "PReLU":
            arrays = [weights.plain(int(options["0"]))]
        elif kind in ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle"):
            continue
        else:
            raise ModelError(f"cannot read the weights of an ncnn {kind}", at=f"{param}, {name}")
        layers.append(Layer(kind, name, tuple(arrays)))
    weights.finish()
    return layers


class _Weights:
    """The `.bin` file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.position = 0

    def plain(self, count: int) -> NDArray[np.float32]:
        """`count` float32 numbers."""
        return self._take(count, np.dtype("<f4"))

    def tagged(self, count: int) -> NDArray[np.float32]:
        """`count` numbers after a tag that tells float32 from float16, padded to four bytes."""
        tag = int(self._take(1, np.dtype("<u4"))[0])
        if tag == 0:
            return self.plain(count)
        if tag == HALF_PRECISION:
            padded = self._take(count + count % 2, np.dtype("<f2"))
            return padded[:count].astype(np.float32)
        raise ModelError(f"unknown weight encoding {tag:#010x}", at=f"{self.path}, {self.position}")

    def finish(self) -> None:
        """Check that nothing is left: reading in the wrong order would leave a rest."""
        if self.position != len(self.data):
            rest = len(self.data) - self.position
            raise ModelError(f"{rest} bytes of weights belong to no layer", at=str(self.path))

    def _take(self, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
        end = self.position + count * dtype.itemsize
        if end > len(self.data):
            raise ModelError("the weights end too early", at=f"{self.path}, {self.position}")
        taken = np.frombuffer(self.data, dtype, count, self.position)
        self.position = end
        return taken
