"""NVIDIA Jetson boards through Apache TVM: a shared library for their Arm cores."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from aigcc.analysis.flops import flops
from aigcc.dims import with_sizes
from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.target import Lowered, Problem, Requirement, Session, Target
from aigcc.targets import worker
from aigcc.targets.culprit import Progress, built
from aigcc.targets.jetson.bucketed import BUCKETS, BucketedSession, save, share_parameters
from aigcc.targets.jetson.buckets import Buckets, specialised
from aigcc.targets.jetson.example import BUCKETS_EXAMPLE, EXAMPLE
from aigcc.targets.jetson.machine_code import read_library
from aigcc.targets.jetson.prepare import prepare_buckets
from aigcc.targets.jetson.program import (
    LIBRARY,
    PARAMETERS,
    SIGNATURE,
    EmulatedSession,
    NativeSession,
    Signature,
)
from aigcc.targets.jetson.resizes import find_wrong_resizes
from aigcc.targets.jetson.sizes import given_sizes, refuse_dynamic, seen_sizes
from aigcc.targets.jetson.spelling import spelt
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
_SLOW_FLOPS = 1 << 34  # of one run; kernels that are not tuned do about 2**30 a second
_LARGE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Jetson(Target):
    """The Arm cores of a Jetson board, or of this machine with board=host.

    Shapes are static: each dynamic dim gets its size from `dims` or from the samples. One dim may
    have several sizes, as in `dims=[tokens:64|128]`: there is a program for each, and each input
    runs in the smallest that holds it, filled up at its end. Kernels are fused, and not yet
    scheduled for the cores; the GPU of the board is not used.
    """

    name: ClassVar[str] = "jetson"
    summary: ClassVar[str] = "the Arm cores of NVIDIA Jetson boards, through Apache TVM"

    board: str = option("agx-orin", "a board of the table, or host for this machine")
    precision: Literal["fp32", "fp16"] = option(
        "fp32", "of factors in products and convolutions that hold them; sums are float32"
    )
    dims: tuple[str, ...] = option(
        (), "sizes of dynamic dims, each NAME:SIZE; one may have several, with bars between them"
    )
    emulate: bool = option(False, "compare outputs by running the program in qemu, which is slow")

    @property
    def tolerance(self) -> float:
        """float16 keeps 11 bits, and products of products lose some of them."""
        return 1e-4 if self.precision == "fp32" else 2e-2

    def pipeline(self) -> str:
        """Canonicalise, fuse, replace what the front end lacks, and round factors where asked."""
        passes = "canonicalize,fuse,legalize,canonicalize"
        return passes if self.precision == "fp32" else f"to-fp32,{passes},fp16-operands"

    def prepare(self, module: Module, ctx: Context) -> Module:
        """Fix every dynamic dim: at its size in `dims`, else in the samples, which a remark says.

        A dim that has several sizes in `dims` stays, and a program is made for each.

        Raises:
            TargetError: `dims` names no dim, or the samples have another size than it or than each
                other; inputs that are filled up to one of several sizes change outputs.
            ModelError: the sizes contradict each other within the model.
        """
        given = given_sizes(module, self.dims)
        sizes = {name: few[0] for name, few in given.items() if len(few) == 1}
        for name, seen in seen_sizes(module, given, ctx.samples).items():
            sizes[name] = seen
            ctx.note(
                None,
                f"the dim {name!r} is fixed at {seen}, its size in the samples; "
                f"dims=[{name}:SIZE] gives it another",
            )
        for name, few in given.items():
            if len(few) > 1:
                return prepare_buckets(module, name, few, sizes, ctx)
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
        """Operators, types and limits of the table, and resizes that the front end gets wrong."""
        if (buckets := Buckets.read(module)) is not None:
            module = specialised(module, buckets, buckets.sizes[-1], self)
        problems = [*super().check(module), *find_wrong_resizes(module)]
        if self.precision == "fp16":
            return problems
        hint = "jetson(precision=fp16) takes models of float16, and computes sums in float32"
        return [
            dataclasses.replace(problem, hint=hint) if " float16" in problem.message else problem
            for problem in problems
        ]

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Compile `model.so`, with `model.params` and the signature `model.json` beside it.

        Where a dim has several sizes, they lie in a folder for each.

        Raises:
            TargetError: TVM or a linker is missing, a dim varies, or TVM refused the module.
        """
        self.check_tools()
        buckets = Buckets.read(module)
        if buckets is None:
            refuse_dynamic(module)
            facts = self._build(module, out, ctx)
            lowered = Lowered((LIBRARY, PARAMETERS, SIGNATURE), LIBRARY, facts)
        else:
            lowered = self._build_buckets(module, buckets, out, ctx)
        ctx.note(
            None,
            "kernels are fused but neither tiled, vectorised by hand nor tuned, and run on one "
            "core: expect 10 to 100 times the time of a tuned library",
        )
        return lowered

    def _build(self, module: Module, out: Path, ctx: Context) -> dict[str, Any]:
        """Compile one program into a folder; returns its facts."""
        target = self._tvm_target()

        def build(part: Module, folder: Path, progress: Progress) -> dict[str, Any]:
            return _compile(part, folder, target, self._linker(), progress)

        found = built(module, out, ctx.progress, build)
        code = read_library(out / LIBRARY)
        return {
            "library": f"Apache TVM {found.pop('version')}",
            "board": self.board,
            "machine": code.machine,
            "instructions": code.instructions,
            "target": target,
            **found,
        }

    def _build_buckets(self, module: Module, buckets: Buckets, out: Path, ctx: Context) -> Lowered:
        """Compile a program for each bucket into a folder of its own; facts are of the largest."""
        facts: dict[str, Any] = {}
        for size in buckets.sizes:
            folder = out / str(size)
            folder.mkdir()
            facts = self._build(specialised(module, buckets, size, self), folder, ctx)
        is_shared = share_parameters(buckets, out)
        save(buckets, out)
        facts["buckets"] = {buckets.dim: list(buckets.sizes), "weights are shared": is_shared}
        files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
        return Lowered(tuple(files), BUCKETS, facts)

    def session(self, folder: Path, entry: str, threads: int | None = None) -> Session | None:
        """In this process for board=host; in qemu where `emulate` asks for it; on one thread."""
        if self.board == _HOST:
            return _open_any(folder, entry, NativeSession)
        if not self.emulate:
            return None
        runner = find_runner()
        if runner is None:
            raise TargetError("the emulator is not ready", hint=PREPARE)
        cpu = self._board()["qemu"]
        return _open_any(folder, entry, lambda one: EmulatedSession(one, runner, cpu))

    def open(self, module: Module, threads: int | None = None) -> Session | None:
        """The same kernels for this machine; None without a linker, or where that takes minutes."""
        buckets = Buckets.read(module)
        if buckets is None:
            refuse_dynamic(module)
            parts = {"": module}
        else:
            parts = {str(size): specialised(module, buckets, size, self) for size in buckets.sizes}
        linker = native_linker()
        if linker is None or any(map(_is_slow, parts.values())):
            return None
        with tempfile.TemporaryDirectory(prefix="aigcc-") as name:
            for place, part in parts.items():
                folder = Path(name, place)
                folder.mkdir(exist_ok=True)
                _compile(part, folder, None, linker, lambda text, fraction: None)
            if buckets is None:
                return NativeSession(Path(name))
            save(buckets, Path(name))
            session = BucketedSession(Path(name), NativeSession)
            session.open_all()
            return session

    def example(self, module: Module, entry: str) -> str:
        """Runs the program once on the board, with TVM's runtime."""
        return BUCKETS_EXAMPLE if entry == BUCKETS else EXAMPLE

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


def _open_any(folder: Path, entry: str, open_one: Callable[[Path], Session]) -> Session:
    """A session for one program, or for those of several sizes."""
    return BucketedSession(folder, open_one) if entry == BUCKETS else open_one(folder)


def _compile(
    module: Module,
    out: Path,
    target: dict[str, Any] | None,
    linker: list[str] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the library, its parameters and its signature; None as a target is this machine."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        onnx = Path(scratch) / "model.onnx"
        spelt(module).save(onnx)
        request = {
            "onnx": str(onnx),
            "library": str(out / LIBRARY),
            "parameters": str(out / PARAMETERS),
            "target": target,
            "link": linker,
        }
        found = worker.call("aigcc.targets.jetson.compiler:compile_model", request, progress)
    Signature.of(module).save(out / SIGNATURE)
    return found


def _is_slow(module: Module) -> bool:
    """Whether kernels that are not tuned need minutes for the samples, or weights much memory."""
    work = sum(flops(node, {}) or 0 for node in module.nodes())
    weights = sum(
        value.const_value.nbytes
        for value in module.graph.initializers.values()
        if value.const_value
    )
    return work > _SLOW_FLOPS or weights > _LARGE_BYTES
