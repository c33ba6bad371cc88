"""Cloud CPUs through OpenVINO: bf16 and int8 kernels for AVX-512, VNNI and AMX."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from onnx_ir.passes.common import InlinePass

from aigcc.errors import TargetError
from aigcc.ir.bodies import passed_outputs, put_copy
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.options import option
from aigcc.passes.legal.norms import SummedGroupNorm
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Rule, apply_rules
from aigcc.samples import load_samples
from aigcc.target import (
    Capabilities,
    Feeds,
    Lowered,
    NodeTime,
    Problem,
    Requirement,
    Target,
    node_label,
)
from aigcc.targets import worker
from aigcc.targets.cpu import convert
from aigcc.targets.cpu.example import example_for
from aigcc.targets.cpu.kernels import KERNELS, Kernel, summarise, with_products, write_table
from aigcc.targets.cpu.loops import count_rounds
from aigcc.targets.cpu.machine import has_bfloat16, processor
from aigcc.targets.cpu.refusals import refusals
from aigcc.targets.cpu.session import OpenVinoSession
from aigcc.targets.cpu.sums import SumInOrder
from aigcc.targets.culprit import Progress, built

MODEL = "model.xml"
WEIGHTS = "model.bin"
_SUMMED = 1 << 20  # elements of a sample from which group norms by sums are faster
_NO_BFLOAT16 = "this CPU has no instructions for bfloat16, and emulating it is slower than float32"
_FOREIGN_HINT = (
    "only ONNX Runtime knows its operators: build with --target mobile, or give the model as it "
    "was before ONNX Runtime quantised or optimised it"
)
INSTALL = "pip install openvino==2026.4.1"


@dataclasses.dataclass(frozen=True)
class Cpu(Target):
    """OpenVINO on the CPU of a server or a PC.

    Each node runs in the types that the module gives it: in bfloat16 between Casts, and in int8
    where QuantizeLinear and DequantizeLinear surround it. With `precision=bf16`, what the module
    leaves in float32 runs in bfloat16 as well, except sines, what sines are taken of, and
    variances; group norms of large images are then computed from sums over channels. A CPU without
    instructions for bfloat16 is not given any.

    OpenVINO holds integers in 32 bits and doubles in float32, and a NaN in an input does not always
    come out as NaN. The build reads back which kernels this machine chose; another CPU may choose
    others. The artifact keeps its dynamic shapes: a session is compiled for the shapes that it is
    given first, and once more, for all shapes, when it is given others.
    """

    name: ClassVar[str] = "cpu"
    runs_here: ClassVar[bool] = True
    summary: ClassVar[str] = "Intel and AMD servers and PCs, through OpenVINO"

    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        "of what the module leaves in float32; bf16 narrows nearly all of it, auto does so where a "
        "budget allows it",
    )
    activation_group: int = option(
        0, "round activations to int8 before int8 or int4 weights, so many to a scale; 0 does not"
    )
    threads: int | None = option(None, "threads of the program; all cores by default")

    @property
    def tolerance(self) -> float:
        """Bfloat16 has 8 bits, and errors add up over layers."""
        if self.precision == "bf16":
            return 1e-1
        return 1e-4 if not self.activation_group else 5e-2

    @property
    def can(self) -> Capabilities:
        """The table; no scheme for bfloat16 where all is that already, or the CPU has none."""
        table = super().can
        if self.precision == "bf16":
            reason = "cpu(precision=bf16) computes in bfloat16 as it is"
        elif _lacks_bfloat16():
            reason = _NO_BFLOAT16
        else:
            return table
        schemes = dict(table.facts["quantize"])
        del schemes["bf16"]
        facts = {**table.facts, "quantize": schemes, "closed": {"bf16": reason}}
        return dataclasses.replace(table, facts=facts)

    def bases(self) -> tuple[Target, ...]:
        """In float32 and, where that is left open and the CPU has it, in bfloat16."""
        if self.precision != "auto":
            return (self,)
        names: list[Literal["fp32", "bf16"]] = ["fp32"] if _lacks_bfloat16() else ["fp32", "bf16"]
        return tuple(dataclasses.replace(self, precision=name) for name in names)

    def pipeline(self) -> str:
        """Canonicalise, fuse, and replace what OpenVINO lacks."""
        return "canonicalize,fuse,legalize,canonicalize"

    def requirements(self) -> list[Requirement]:
        """The library that converts and runs."""
        if not _is_installed():
            return [Requirement("openvino", False, "not installed: nothing can be built", INSTALL)]
        return [Requirement("openvino", True, importlib.metadata.version("openvino"))]

    def runtime(self) -> str:
        """OpenVINO, and the CPU that it chooses kernels for."""
        return f"{super().runtime()}, {processor()}" if _is_installed() else super().runtime()

    def check_tools(self) -> None:
        """OpenVINO has to be there, and the CPU that precision=bf16 asks for."""
        if not _is_installed():
            raise TargetError("OpenVINO is not installed", hint=INSTALL)
        if self.precision == "bf16" and _lacks_bfloat16():
            raise TargetError(
                f"{_NO_BFLOAT16}; what others make of the program cannot be checked here",
                at=processor(),
                hint="build with cpu(precision=fp32), or on a machine such as it is to run on",
            )

    def check(self, module: Module) -> list[Problem]:
        """Operators, types and limits of the table, and what that cannot say."""
        problems = [
            dataclasses.replace(problem, hint=_FOREIGN_HINT)
            if problem.message.startswith("no kernel for com.microsoft::")
            else problem
            for problem in super().check(module)
        ]
        return [*problems, *refusals(module)]

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Write `model.xml` and its weights, and list the kernels in `kernels.json`.

        Raises:
            TargetError: no OpenVINO, or a refusal with the node that it names.
        """
        self.check_tools()
        module = self._spelt(module)
        properties = self.properties(ctx.threads)

        def build(part: Module, folder: Path, progress: Progress) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                source, feeds = Path(scratch) / "model.onnx", Path(scratch) / "feeds.npz"
                part.save(source, external=True)
                request = {
                    "source": str(source),
                    "out": str(folder / MODEL),
                    "properties": properties,
                    "nodes": [
                        [node_label(node), [value.name for value in node.outputs if value.name]]
                        for node in part.graph
                    ],
                    "inputs": _save_feeds(module, ctx, feeds),
                    "feeds": str(feeds),
                }
                return worker.call(f"{convert.__name__}:lower", request, progress)

        answer = built(module, out, ctx.progress, build)
        kernels = with_products([Kernel(**row) for row in answer["kernels"]], module)
        write_table(kernels, out / KERNELS)
        facts = {
            "library": f"OpenVINO {answer['version']}",
            "processor": answer["processor"],
            "properties": properties,
            "kernels": summarise(kernels),
        }
        return Lowered((MODEL, WEIGHTS, KERNELS), MODEL, facts, _precision(kernels))

    def session(self, folder: Path, entry: str, threads: int | None = None) -> OpenVinoSession:
        """The program on this machine's CPU."""
        return OpenVinoSession(folder / entry, self.properties(threads))

    def open(self, module: Module, threads: int | None = None) -> OpenVinoSession | None:
        """The module on this machine's CPU; None without OpenVINO."""
        if not _is_installed():
            return None
        with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            self._spelt(module).save(path, external=True)
            if self.precision == "bf16":
                path = convert.marked(path)
            return OpenVinoSession(path, self.properties(threads))

    def profile(
        self, folder: Path, entry: str, feeds: Feeds, threads: int | None = None
    ) -> list[NodeTime]:
        """How long OpenVINO's layers take, as it counts itself."""
        session = OpenVinoSession(folder / entry, {**self.properties(threads), "PERF_COUNT": True})
        return session.profile(feeds)

    def example(self, module: Module, entry: str) -> str:
        """Runs the model once with numpy and OpenVINO; prints shapes and a time."""
        return example_for(module, entry, self.properties())

    def _spelt(self, module: Module) -> Module:
        """A module as OpenVINO knows it, without calls of functions, and as it is fastest."""
        made = module.clone()
        InlinePass()(made.model)
        names = Names(made)
        for _, graph, index in list(passed_outputs(made)):
            put_copy(graph, index, names)
        count_rounds(made)
        for node in made.nodes():  # it takes an input without a name for one that is not known
            while node.inputs and node.inputs[-1] is None:
                node.resize_inputs(len(node.inputs) - 1)
        rules: list[Rule] = [SumInOrder()]
        if self.precision == "bf16":
            rules.append(SummedGroupNorm(_SUMMED))
        apply_rules(made, rules, Context())
        return made

    def properties(self, threads: int | None = None) -> dict[str, Any]:
        """What the model is compiled with; OpenVINO would choose types by itself otherwise.

        And it would pin threads to cores: where others run on these it waits for them.
        """
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.activation_group,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads or threads or 0,
            "ENABLE_CPU_PINNING": False,
        }


def _precision(kernels: list[Kernel]) -> dict[str, str]:
    """What the products are computed in, by node; int8 stands for uint8 as well."""
    return {
        node: "int8" if kernel.computes_in == "uint8" else kernel.computes_in
        for kernel in kernels
        if kernel.multiplies
        for node in kernel.nodes
    }


def _is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _lacks_bfloat16() -> bool:
    return _is_installed() and not has_bfloat16()


def _save_feeds(module: Module, ctx: Context, path: Path) -> list[str]:
    """Write the first sample and return the names of its arrays, in order.

    Types without a numpy type of their own become integers of their size.
    """
    feeds = next(iter(ctx.samples or load_samples(None, module)))
    arrays = [
        array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")
        for array in feeds.values()
    ]
    np.savez(path, *arrays)
    return list(feeds)
