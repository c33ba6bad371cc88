"""A compiled program's signature, and sessions that run it: on this machine or in an emulator."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.target import Feeds
from aigcc.targets.jetson.toolchain import QEMU

LIBRARY = "model.so"
PARAMETERS = "model.params"
SIGNATURE = "model.json"

Array = npt.NDArray[Any]

# DLPack's codes of element types, by numpy's kind.
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}


@dataclasses.dataclass(frozen=True)
class Input:
    """An input: its name, numpy element type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a program takes and gives.

    Attributes:
        inputs: In the order of its arguments.
        outputs: The names of its results, in order.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, module: Module) -> Signature:
        """The signature of a module whose inputs have static shapes."""
        inputs = [
            Input(str(value.name), value.dtype.numpy().name, tuple(value.shape.numpy()))
            for value in module.inputs
            if value.dtype is not None and value.shape is not None
        ]
        return cls(tuple(inputs), tuple(str(value.name) for value in module.outputs))

    @classmethod
    def load(cls, path: Path) -> Signature:
        """The signature in a `model.json`."""
        found = json.loads(path.read_text("utf-8"))
        inputs = [Input(i["name"], i["dtype"], tuple(i["shape"])) for i in found["inputs"]]
        return cls(tuple(inputs), tuple(found["outputs"]))

    def save(self, path: Path) -> None:
        """Write `model.json`."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", "utf-8")

    def arrange(self, feeds: Feeds) -> list[Array]:
        """The feeds in the order of the arguments.

        Raises:
            TargetError: one is missing, unknown, or not of the compiled type and shape.
        """
        self.refuse_names(feeds)
        arrays = []
        for item in self.inputs:
            array = feeds[item.name]
            if array.shape != item.shape or array.dtype.name != item.dtype:
                raise TargetError(
                    f"input {item.name!r} is {array.dtype.name}{list(array.shape)}, and was "
                    f"compiled for {item.dtype}{list(item.shape)}",
                    hint="compile with dims=[NAME:SIZE] for other sizes",
                )
            arrays.append(np.asarray(array, order="C"))
        return arrays

    def refuse_names(self, feeds: Feeds) -> None:
        """Do nothing if there is a value for each input, and no other.

        Raises:
            TargetError: one is missing or unknown.
        """
        names = [item.name for item in self.inputs]
        for name in feeds:
            if name not in names:
                raise TargetError(f"no input {name!r}", hint=did_you_mean(name, names))
        for name in names:
            if name not in feeds:
                raise TargetError(f"no value for the input {name!r}")

    def name(self, results: Sequence[Array]) -> dict[str, Array]:
        """Results by name."""
        return dict(zip(self.outputs, results, strict=True))


class NativeSession:
    """The program in this process, where it was compiled for this machine."""

    def __init__(self, folder: Path) -> None:
        import tvm
        from tvm import relax

        self._signature = Signature.load(folder / SIGNATURE)
        library = tvm.runtime.load_module(str(folder / LIBRARY))
        weights = tvm.runtime.load_param_dict_from_file(str(_parameters(folder)))
        self._weights = [weights[str(index)] for index in range(len(weights))]
        self._main = relax.VirtualMachine(library, tvm.cpu())["main"]
        self._tensor = tvm.runtime.tensor

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """All outputs for one set of inputs."""
        arguments = [self._tensor(array) for array in self._signature.arrange(feeds)]
        result = self._main(*arguments, *self._weights)
        single = len(self._signature.outputs) == 1 and hasattr(result, "numpy")
        results = [result] if single else list(result)
        return self._signature.name([tensor.numpy() for tensor in results])


@dataclasses.dataclass(frozen=True)
class EmulatedSession:
    """The program under qemu: slow, and equal in every number.

    Attributes:
        folder: The artifact.
        runner: The program that runs it; see `emulator`.
        cpu: The core that qemu plays.
    """

    folder: Path
    runner: Path
    cpu: str

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """All outputs for one set of inputs.

        Raises:
            TargetError: the feeds do not fit, or the program failed.
        """
        signature = Signature.load(self.folder / SIGNATURE)
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            _write_inputs(scratch, signature.arrange(feeds))
            command = [QEMU, "-cpu", self.cpu, "-L", "/usr/aarch64-linux-gnu", str(self.runner)]
            files = [str(self.folder / LIBRARY), str(_parameters(self.folder)), name]
            done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
            if done.returncode:
                raise TargetError(
                    f"the program failed under qemu: {done.stderr.strip()[-500:]}",
                    at=" ".join(command),
                )
            return signature.name(_read_outputs(scratch))


def _parameters(folder: Path) -> Path:
    """The parameters of the program in a folder: there, or above where programs share them."""
    own = folder / PARAMETERS
    return own if own.is_file() else folder.parent / PARAMETERS


def _write_inputs(folder: Path, arrays: Sequence[Array]) -> None:
    lines = []
    for index, array in enumerate(arrays):
        words = [_CODES[array.dtype.kind], array.dtype.itemsize * 8, array.ndim, *array.shape]
        lines.append(" ".join(map(str, words)) + "\n")
        (folder / f"input{index}.bin").write_bytes(array.tobytes())
    (folder / "inputs.txt").write_text("".join(lines))


def _read_outputs(folder: Path) -> list[Array]:
    arrays = []
    for index, line in enumerate((folder / "outputs.txt").read_text().splitlines()):
        code, bits, _, *shape = map(int, line.split())
        dtype = np.dtype(f"{_KINDS[code]}{bits // 8}")
        data = (folder / f"output{index}.bin").read_bytes()
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return arrays
