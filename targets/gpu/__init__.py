"""NVIDIA GPUs through TensorRT: an engine of TensorRT-RTX, built without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.target import Capabilities, Lowered, Problem, Requirement, Target, node_label
from aigcc.targets import worker
from aigcc.targets.culprit import Progress, built
from aigcc.targets.gpu import builder
from aigcc.targets.gpu.example import example_for
from aigcc.targets.gpu.faults import find_faults
from aigcc.targets.gpu.kernels import Kernel, computed_in, read_table, summarise
from aigcc.targets.gpu.profiles import make_profiles, parse_ranges

ENGINE = "model.engine"
ONNX = "model.onnx"
KERNELS = "kernels.json"
INSTALL = "pip install tensorrt-rtx==1.7.1.116"

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_MULTIPLY = _PRODUCTS | {"Attention", "Conv", "ConvTranspose", "Einsum"}
_FLOATS = ("float", "float16", "bfloat16")
_SHOWN_NODES = 4


@dataclasses.dataclass(frozen=True)
class Gpu(Target):
    """A GeForce RTX or RTX PRO card.

    The network is strongly typed: what runs in float16 is what the module says is float16, and the
    builder's own table of kernels is read back to prove it. Building needs no GPU; running does.
    """

    name: ClassVar[str] = "gpu"
    summary: ClassVar[str] = "NVIDIA GeForce RTX and RTX PRO GPUs, through TensorRT-RTX"

    precision: Literal["fp16", "fp32", "tf32"] = option(
        "fp16", "of products and convolutions; tf32 is float32 with factors rounded to 10 bits"
    )
    architectures: tuple[str, ...] = option(
        ("sm86", "sm89", "sm120"), "GPUs that the engine runs on: the 30, 40 and 50 series"
    )
    dims: tuple[str, ...] = option((), "sizes of dynamic dims, each NAME:SMALLEST:BEST:LARGEST")
    emit: Literal["engine", "onnx"] = option(
        "engine", "onnx writes the typed model and a build script, and builds nothing"
    )

    @property
    def can(self) -> Capabilities:
        """The table without the schemes that one of the architectures has no instructions for."""
        table = super().can
        lacking = _lacking(self.architectures, table)
        schemes = table.facts["quantize"]
        closed = {
            name: _lacks(dtype, lacking[dtype], self.architectures)
            for name, row in schemes.items()
            for dtype in (row["weight"], row.get("activation"))
            if dtype in lacking
        }
        left = {name: row for name, row in schemes.items() if name not in closed}
        facts = {**table.facts, "quantize": left, "closed": closed}
        return dataclasses.replace(table, facts=facts)

    @property
    def tolerance(self) -> float:
        """Half precision has 11 bits, and errors add up over layers."""
        return 1e-4 if self.precision == "fp32" else 2e-2

    def pipeline(self) -> str:
        """Canonicalise, fuse, replace what the builder lacks; narrow, and again for what stays."""
        passes = ["canonicalize", "fuse", "legalize", "canonicalize"]
        if self.precision == "fp16":
            passes += ["to-fp16", "legalize"]
        return ",".join(passes)

    def requirements(self) -> list[Requirement]:
        """The library that builds, and the driver that runs."""
        library = importlib.util.find_spec("tensorrt_rtx") is not None
        driver = Path("/proc/driver/nvidia/version").exists()
        return [
            Requirement(
                "tensorrt-rtx",
                library,
                "builds engines" if library else "not installed, so no engine can be built",
                "" if library else INSTALL,
            ),
            Requirement(
                "NVIDIA driver",
                driver,
                "runs engines" if driver else "none here: engines are built but not run",
                "" if driver else "run the artifact's example.py on a machine with a GPU",
            ),
        ]

    def check_tools(self) -> None:
        """Architectures have to be known; an engine needs its builder."""
        self._check_architectures()
        if self.emit == "engine" and importlib.util.find_spec("tensorrt_rtx") is None:
            raise TargetError(
                "TensorRT-RTX is not installed, so no engine can be built",
                hint=f"{INSTALL}, or gpu(emit=onnx) for the typed model and a build script",
            )

    def check(self, module: Module) -> list[Problem]:
        """Operators, types and limits of the table, what crashes, what single GPUs lack."""
        narrows = self.precision == "fp16"
        problems = [*super().check(module), *find_faults(module, narrows=narrows)]
        lacking = _lacking(self.architectures, self.can)
        for node in module.nodes() if lacking else ():
            dtypes = {v.dtype.name.lower() for v in node.outputs if v.dtype is not None}
            problems.extend(
                Problem(
                    f"{', '.join(lacking[dtype])} cannot compute in {dtype}",
                    node_label(node),
                    _lacks(dtype, lacking[dtype], self.architectures),
                )
                for dtype in dtypes & lacking.keys()
            )
        if "sm75" in self.architectures:
            problems.extend(
                Problem(
                    "sm75 has no float32 matrix product",
                    node_label(node),
                    "leave sm75 out of architectures, or use precision=fp16",
                )
                for node in module.nodes()
                if node.op_type in _PRODUCTS and node.outputs[0].dtype == ir.DataType.FLOAT
            )
        return problems

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Build `model.engine`, and list its kernels in `kernels.json`.

        Raises:
            TargetError: no TensorRT-RTX, a wrong option, or a refusal with the node that it names.
        """
        self.check_tools()
        request = {
            "architectures": list(self.architectures),
            "profiles": make_profiles(module, parse_ranges(self.dims), ctx),
            "tf32": self.precision != "fp32",
        }
        if self.emit == "onnx":
            return _write_recipe(module, out, request, ctx)
        result = _build(module, request, out, ctx)
        kernels = read_table(result["table"])
        table = [dataclasses.asdict(kernel) for kernel in kernels]
        (out / KERNELS).write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        products = {node_label(node) for node in module.nodes() if node.op_type in _MULTIPLY}
        found = computed_in(kernels)
        precision = {name: dtype for name, dtype in found.items() if name in products}
        self._remark(kernels, ctx)
        for node in _left_in_float(module, precision):
            ctx.note(node, f"reads quantised numbers, and runs in {precision[node_label(node)]}")
        if not kernels:
            ctx.note(None, "the builder listed no kernels, so no precision was read back")
        for warning in result["warnings"]:
            ctx.note(None, f"TensorRT-RTX warns: {warning}")
        facts = {
            "library": f"TensorRT-RTX {result['version']}",
            **request,
            "kernels": summarise(kernels),
        }
        return Lowered((ENGINE, KERNELS), ENGINE, facts, precision)

    def session(self, folder: Path, entry: str, threads: int | None = None) -> None:
        """None: engines run on the device, through `example.py`."""
        return

    def example(self, module: Module, entry: str) -> str:
        """Runs the engine once on inputs of its best shapes; needs a GPU and PyTorch."""
        return example_for(module)

    def _check_architectures(self) -> None:
        known = self.can.facts["architectures"]
        if not self.architectures:
            raise TargetError("no architecture to build for", hint="known: " + ", ".join(known))
        for name in self.architectures:
            if name not in known:
                elsewhere = self.can.facts["elsewhere"].get(name)
                raise TargetError(
                    f"TensorRT-RTX builds no engine for {name!r}",
                    hint=elsewhere or did_you_mean(name, known),
                )

    def _remark(self, kernels: Sequence[Kernel], ctx: Context) -> None:
        """Say which products run in float32 though float16 was asked for."""
        if self.precision != "fp16":
            return
        for kernel in kernels:
            if kernel.multiplies and kernel.computes_in == "float":
                nodes = ", ".join(kernel.nodes[:_SHOWN_NODES]) or kernel.name
                ctx.note(None, f"{nodes}: runs in float32, not in float16")


def _with_names(module: Module) -> Module:
    """A copy in which every node has the name that its kernel will be found by."""
    named = module.clone()
    for node in named.nodes():
        node.name = node_label(node)
    return named


def _left_in_float(module: Module, precision: Mapping[str, str]) -> list[ir.Node]:
    """Products between DequantizeLinear that have no kernel of integers or of 8 bits."""
    return [
        node
        for node in module.nodes()
        if node.op_type in (*_PRODUCTS, "Conv")
        and precision.get(node_label(node)) in _FLOATS
        and all(_is_dequantised(value) for value in node.inputs[:2])
    ]


def _is_dequantised(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose":
        return _is_dequantised(producer.inputs[0])
    return producer is not None and producer.op_type == "DequantizeLinear"


def _lacking(architectures: Sequence[str], table: Capabilities) -> dict[str, list[str]]:
    """By dtype, those of the architectures that have no instructions for it."""
    lacks: dict[str, list[str]] = table.facts["lacks"]
    found = {dtype: [a for a in architectures if a in without] for dtype, without in lacks.items()}
    return {dtype: without for dtype, without in found.items() if without}


def _lacks(dtype: str, without: Sequence[str], architectures: Sequence[str]) -> str:
    """What to write instead."""
    left = [name for name in architectures if name not in without] or ["sm89"]
    return (
        f"{', '.join(without)} cannot compute in {dtype}: "
        f"build for -t 'gpu(architectures=[{','.join(left)}])'"
    )


def _build(module: Module, request: dict[str, Any], out: Path, ctx: Context) -> dict[str, Any]:
    """Build the engine of a module, or of its first nodes, in a process of its own."""

    def build(part: Module, folder: Path, progress: Progress) -> dict[str, Any]:
        inputs = {value.name for value in part.inputs}
        profiles = {n: s for n, s in request["profiles"].items() if n in inputs}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            onnx = Path(scratch) / ONNX
            _with_names(part).save(onnx)
            paths = {"onnx": str(onnx), "engine": str(folder / ENGINE), "profiles": profiles}
            return worker.call(f"{builder.__name__}:build", request | paths, progress)

    return built(module, out, ctx.progress, build)


def _write_recipe(module: Module, out: Path, request: dict[str, Any], ctx: Context) -> Lowered:
    module.save(out / ONNX)
    recipe = {"onnx": ONNX, "engine": ENGINE, **request}
    (out / "build.json").write_text(json.dumps(recipe, indent=2) + "\n", "utf-8")
    script = Path(builder.__file__).read_text("utf-8")
    (out / "build_engine.py").write_text(script, "utf-8")
    message = f"no engine was built: run build_engine.py where {INSTALL} works"
    ctx.note(None, message)
    files = tuple(sorted(path.name for path in out.iterdir()))
    return Lowered(files, ONNX, {"engine": message, **request})
