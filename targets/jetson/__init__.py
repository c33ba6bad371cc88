"""NVIDIA Jetson boards through Apache TVM: a shared library for their Arm cores."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ir.weights import read
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.samples import Samples
from aigcc.target import Lowered, Problem, Requirement, Session, Target, node_label
from aigcc.targets import worker
from aigcc.targets.dims import dynamic_dims, sample_sizes, with_input_sizes, with_sizes
from aigcc.targets.jetson.example import EXAMPLE
from aigcc.targets.jetson.machine_code import read_library
from aigcc.targets.jetson.program import (
    LIBRARY,
    PARAMETERS,
    SIGNATURE,
    EmulatedSession,
    NativeSession,
    Signature,
)
from aigcc.targets.jetson.toolchain import INSTALL as INSTALL_LINKER
from aigcc.targets.jetson.toolchain import (
    INSTALL_NATIVE,
    PREPARE,
    cross_linker,
    find_runner,
    native_linker,
)

INSTALL = "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1"

_HOST = "host"
_FORM = "dims=[NAME:SIZE]"


@dataclasses.dataclass(frozen=True)
class Jetson(Target):
    """The Arm cores of a Jetson board, or of this machine with board=host.

    Shapes are static: each dynamic dim gets its size from `dims` or from the samples. Kernels are
    fused, and not yet scheduled for the cores; the GPU of the board is not used.
    """

    name: ClassVar[str] = "jetson"
    summary: ClassVar[str] = "the Arm cores of NVIDIA Jetson boards, through Apache TVM"

    board: str = option("agx-orin", "a board of the table, or host for this machine")
    precision: Literal["fp32", "fp16"] = option(
        "fp32", "of factors in products and convolutions; sums are float32"
    )
    dims: tuple[str, ...] = option((), "sizes of dynamic dims, each NAME:SIZE")
    emulate: bool = option(False, "compare outputs by running the program in qemu, which is slow")

    @property
    def tolerance(self) -> float:
        """float16 keeps 11 bits, and products of products lose some of them."""
        return 1e-4 if self.precision == "fp32" else 2e-2

    def pipeline(self) -> str:
        """Canonicalise, fuse, and replace what the front end lacks."""
        return "canonicalize,fuse,legalize,canonicalize"

    def prepare(self, module: Module, ctx: Context) -> Module:
        """Fix every dynamic dim: at its size in `dims`, else in the samples, which a remark says.

        Raises:
            TargetError: `dims` names no dim, or the samples have another size than it or than each
                other.
            ModelError: the sizes contradict each other within the model.
        """
        sizes = self._given_sizes(module)
        for name, seen in _seen_sizes(module, sizes, ctx.samples).items():
            sizes[name] = seen
            ctx.note(
                None,
                f"the dim {name!r} is fixed at {seen}, its size in the samples; "
                f"dims=[{name}:SIZE] gives it another",
            )
        return with_sizes(module, sizes) if sizes else module

    def requirements(self) -> list[Requirement]:
        """The compiler, a linker for aarch64, and the emulator for comparisons."""
        tvm = importlib.util.find_spec("tvm") is not None
        linker = self._linker()
        runner = find_runner()
        return [
            Requirement(
                "apache-tvm", tvm, "compiles" if tvm else "not installed", "" if tvm else INSTALL
            ),
            Requirement(
                "linker",
                linker is not None,
                " ".join(linker) if linker else f"none for the board {self.board!r}",
                "" if linker else self._link_hint(),
            ),
            Requirement(
                "qemu",
                runner is not None,
                f"runs programs with {runner}" if runner else "not ready: outputs not compared",
                "" if runner else PREPARE,
            ),
        ]

    def check_tools(self) -> None:
        """TVM, and a linker for the board."""
        if importlib.util.find_spec("tvm") is None:
            raise TargetError("Apache TVM is not installed", hint=INSTALL)
        if self._linker() is None:
            raise TargetError(
                f"there is no linker here for the board {self.board!r}", hint=self._link_hint()
            )

    def check(self, module: Module) -> list[Problem]:
        """Operators, types and limits of the table, and scales that the front end rounds."""
        problems = super().check(module)
        problems.extend(_inexact_resizes(module))
        return problems

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Compile `model.so`, with `model.params` and the signature `model.json` beside it.

        Raises:
            TargetError: TVM or a linker is missing, a dim varies, or TVM refused the module.
        """
        self.check_tools()
        target = self._tvm_target()
        _refuse_dynamic(module)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            onnx = Path(scratch) / "model.onnx"
            module.save(onnx)
            request = {
                "onnx": str(onnx),
                "library": str(out / LIBRARY),
                "parameters": str(out / PARAMETERS),
                "target": target,
                "half": self.precision == "fp16",
                "link": self._linker(),
            }
            function = "aigcc.targets.jetson.compiler:compile_model"
            found = worker.call(function, request, ctx.progress)
        Signature.of(module).save(out / SIGNATURE)
        ctx.note(
            None,
            "kernels are fused but neither tiled, vectorised by hand nor tuned, and run on one "
            "core: expect 10 to 100 times the time of a tuned library",
        )
        code = read_library(out / LIBRARY)
        facts = {
            "library": f"Apache TVM {found.pop('version')}",
            "board": self.board,
            "machine": code.machine,
            "instructions": code.instructions,
            "target": target,
            **found,
        }
        return Lowered((LIBRARY, PARAMETERS, SIGNATURE), LIBRARY, facts)

    def session(self, folder: Path, entry: str, threads: int | None = None) -> Session | None:
        """In this process for board=host; in qemu where `emulate` asks for it; on one thread."""
        if self.board == _HOST:
            return NativeSession(folder)
        if not self.emulate:
            return None
        runner = find_runner()
        if runner is None:
            raise TargetError("the emulator is not ready", hint=PREPARE)
        return EmulatedSession(folder, runner, self._board()["qemu"])

    def example(self, module: Module, entry: str) -> str:
        """Runs the program once on the board, with TVM's runtime."""
        return EXAMPLE

    def _linker(self) -> list[str] | None:
        return native_linker() if self.board == _HOST else cross_linker()

    def _link_hint(self) -> str:
        return INSTALL_NATIVE if self.board == _HOST else INSTALL_LINKER

    def _board(self) -> dict[str, Any]:
        boards: Mapping[str, dict[str, Any]] = self.can.facts["boards"]
        if self.board not in boards:
            raise TargetError(
                f"unknown board {self.board!r}", hint=did_you_mean(self.board, [*boards, _HOST])
            )
        return boards[self.board]

    def _tvm_target(self) -> dict[str, Any] | None:
        if self.board == _HOST:
            return None
        board = self._board()
        return {
            "kind": "llvm",
            "mtriple": "aarch64-linux-gnu",
            "mcpu": board["mcpu"],
            "mattr": board["mattr"],
            "num-cores": board["cores"],
        }

    def _given_sizes(self, module: Module) -> dict[str, int]:
        """The sizes in `dims`."""
        places = dynamic_dims(module)
        sizes: dict[str, int] = {}
        for text in self.dims:
            name, _, size = text.rpartition(":")
            if not size.isdecimal() or not int(size):
                raise TargetError(f"{text!r} is no size of a dim", hint=f"the form is {_FORM}")
            if name not in places:
                known = did_you_mean(name, places) if places else "all shapes are fixed"
                raise TargetError(f"the model has no dynamic dim {name!r}", hint=known)
            sizes[name] = int(size)
        return sizes


def _seen_sizes(
    module: Module, given: Mapping[str, int], samples: Samples | None
) -> dict[str, int]:
    """The sizes that samples give to the dims that `given` leaves open."""
    if samples is None or not dynamic_dims(module):
        return {}
    if samples.synthetic:
        samples = samples.fitted(with_input_sizes(module, given))
        return sample_sizes(samples.module, next(iter(samples)))
    first: dict[str, int] = {}
    for index, feeds in enumerate(samples):
        sizes = sample_sizes(module, feeds)
        first = first or sizes
        for name, size in sizes.items():
            if given.get(name, size) != size:
                raise TargetError(
                    f"the dim {name!r} is {size} in sample {index}, and {given[name]} in dims",
                    hint=f"give dims=[{name}:{size}], or samples with a size of {given[name]}",
                )
            if first[name] != size:
                raise TargetError(
                    f"the dim {name!r} is {first[name]} in sample 0, and {size} in sample {index}; "
                    "this target needs static shapes",
                    hint="pad or crop the samples to one size",
                )
    return {name: size for name, size in first.items() if name not in given}


def _refuse_dynamic(module: Module) -> None:
    places = dynamic_dims(module)
    if places:
        raise TargetError(
            f"the dim {next(iter(places))!r} has no size, and this target needs static shapes",
            at=next(iter(places.values())),
            hint=f"give dims=[{','.join(f'{name}:SIZE' for name in places)}], or samples",
        )


def _inexact_resizes(module: Module) -> list[Problem]:
    """Resizes whose scales do not give whole sizes: there TVM samples at other places."""
    problems = []
    for node in module.nodes():
        if node.op_type != "Resize" or len(node.inputs) < 3 or node.inputs[0] is None:
            continue
        scales, shape = read(node.inputs[2]), node.inputs[0].shape
        if scales is None or shape is None or len(scales) != len(shape):
            continue
        for scale, size in zip(scales.tolist(), shape, strict=True):
            if isinstance(size, int) and not (scale * size).is_integer():
                problems.append(
                    Problem(
                        f"Resize by {scale:g} of a size of {size} gives no whole size",
                        node_label(node),
                        "give the Resize its sizes instead of its scales",
                    )
                )
                break
    return problems
