"""Phones and tablets through ONNX Runtime: a model file, and what a small runtime must contain."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.ir.operators import op_key
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.target import (
    Capabilities,
    Feeds,
    Lowered,
    NodeTime,
    Problem,
    Requirement,
    Session,
    Target,
    check_against,
    node_label,
)
from aigcc.targets import worker
from aigcc.targets.mobile.example import example_for
from aigcc.targets.mobile.operators import names_in, required_operators, to_config
from aigcc.targets.mobile.outline import write_outline
from aigcc.targets.mobile.refusals import refusals

CONFIG = "required_operators.config"
TYPED_CONFIG = "required_operators_and_types.config"

PRODUCTS = {
    "Conv": "float",
    "FusedConv": "float",
    "FusedGemm": "float",
    "FusedMatMul": "float",
    "Gemm": "float",
    "MatMul": "float",
    "DynamicQuantizeMatMul": "int8",
    "MatMulIntegerToFloat": "int8",
    "QGemm": "int8",
    "QLinearConv": "int8",
    "QLinearMatMul": "int8",
}
"""What ONNX Runtime's operators for products and convolutions compute in."""

_CHILD = "aigcc.targets.mobile.convert"
_FLATBUFFER_LIMIT = (1 << 31) - (1 << 24)  # leaves room for the graph itself


@dataclasses.dataclass(frozen=True)
class Mobile(Target):
    """ONNX Runtime on the CPU of a phone or tablet.

    The artifact runs with the ready-made packages for Android and iOS. The list of operators that
    lies beside the model is for building a smaller ONNX Runtime with `--include_ops_by_config`.
    """

    name: ClassVar[str] = "mobile"
    runs_here: ClassVar[bool] = True
    is_onnxruntime: ClassVar[bool] = True
    summary: ClassVar[str] = "phones and tablets, through ONNX Runtime"

    weights: Literal["fp32", "fp16"] = option(
        "fp32", "how weights are stored; fp16 halves the file, and computing stays as it was"
    )
    format: Literal["onnx", "ort"] = option(
        "onnx", "ort is already optimised, and needs no ONNX parser in the runtime"
    )
    external: bool | None = option(
        None, "weights beside the .onnx file; by default when they are larger than 1 GiB"
    )

    @property
    def can(self) -> Capabilities:
        """The table; what is folded when a model is loaded would be folded in a .ort file."""
        table = super().can
        if self.format == "onnx":
            return table
        schemes = {
            name: {**row, "ops": {op: {**k, "folded": False} for op, k in row["ops"].items()}}
            for name, row in table.facts["quantize"].items()
        }
        return dataclasses.replace(table, facts={**table.facts, "quantize": schemes})

    @property
    def tolerance(self) -> float:
        """Rounded weights may cost more than a rewrite."""
        return 1e-4 if self.weights == "fp32" else 2e-2

    def pipeline(self) -> str:
        """Canonicalise, fuse, replace what the runtime lacks, and round weights if asked to."""
        passes = ["canonicalize", "fuse", "legalize", "canonicalize"]
        if self.weights == "fp16":
            passes.append("weights-fp16")
        return ",".join(passes)

    def requirements(self) -> list[Requirement]:
        """ONNX Runtime itself, and what reads .ort files back."""
        version = importlib.metadata.version("onnxruntime")
        table = self.can.facts["onnxruntime"]
        flatbuffers = importlib.util.find_spec("flatbuffers") is not None
        return [
            Requirement("onnxruntime", True, f"{version}; the table of kernels is of {table}"),
            Requirement(
                "flatbuffers",
                flatbuffers,
                "lists the operators of .ort files",
                "" if flatbuffers else "pip install flatbuffers",
            ),
        ]

    def check(self, module: Module) -> list[Problem]:
        """Opset, operators and types of the table, and what the .ort format cannot hold."""
        can = self.can
        problems = check_against(module, _with_conversions(can))
        problems.extend(_check_slots(module, can))
        problems.extend(refusals(module))
        if self.format == "ort":
            problems.extend(self._check_ort(module))
        return problems

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Write `model.onnx` or `model.ort`, and the operators that it needs.

        Raises:
            TargetError: ONNX Runtime refuses the model.
        """
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            lower = self._lower_onnx if self.format == "onnx" else self._lower_ort
            entry, texts, weights, kernels = lower(module, out, Path(scratch), ctx)
        for name, text in texts.items():
            (out / name).write_text(f"# What {entry} needs of ONNX Runtime.\n{text}", "utf-8")
        if self.weights == "fp16" and "float16" not in weights:
            ctx.note(None, "no weight is stored as float16")
        facts = {
            "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
            "opset": module.opset,
            "weights": weights,
            "operators": names_in(texts[CONFIG]),
        }
        models = sorted(path.name for path in out.iterdir() if path.name not in texts)
        precision = {name: PRODUCTS[op] for name, op in kernels.items() if op in PRODUCTS}
        return Lowered((*models, *texts), entry, facts, precision)

    def session(self, folder: Path, entry: str, threads: int | None = None) -> Session:
        """The program in ONNX Runtime on this machine's CPU."""
        from aigcc.runtime import OrtSession

        return OrtSession(folder / entry, threads=threads)

    def open(self, module: Module, threads: int | None = None) -> Session:
        """The module in ONNX Runtime on this machine's CPU."""
        from aigcc.runtime import OrtSession

        return OrtSession(module, threads=threads)

    def profile(
        self, folder: Path, entry: str, feeds: Feeds, threads: int | None = None
    ) -> list[NodeTime]:
        """How long ONNX Runtime's nodes take, as it counts itself."""
        from aigcc.targets.mobile.profiling import profile

        return profile(folder / entry, feeds, threads)

    def example(self, module: Module, entry: str) -> str:
        """Runs the model once with numpy and ONNX Runtime; prints shapes and a time."""
        return example_for(module, entry)

    def _lower_onnx(
        self, module: Module, out: Path, scratch: Path, ctx: Context
    ) -> tuple[str, dict[str, str], dict[str, int], dict[str, str]]:
        path = out / "model.onnx"
        module.save(path, external=self.external)
        operators, kernels = [required_operators(module)], {}
        request = {"source": str(write_outline(module, scratch))}
        try:
            answer = worker.call(f"{_CHILD}:list_operators", request, ctx.progress)
        except TargetError as error:
            ctx.note(None, f"{CONFIG} lacks what ONNX Runtime fuses when it loads: {error.what}")
        else:
            kernels = answer["kernels"]
            operators.append({(d, v): frozenset(names) for d, v, names in answer["operators"]})
        stored: Counter[str] = Counter()
        for tensor in _initializers(Module.load(path)):
            stored[tensor.dtype.name.lower()] += tensor.nbytes
        return path.name, {CONFIG: to_config(*operators)}, dict(stored.most_common()), kernels

    def _lower_ort(
        self, module: Module, out: Path, scratch: Path, ctx: Context
    ) -> tuple[str, dict[str, str], dict[str, int], dict[str, str]]:
        source, path = scratch / "model.onnx", out / "model.ort"
        module.save(source, external=True)
        request = {"source": str(source), "out": str(path), "scratch": str(scratch)}
        answer = worker.call(f"{_CHILD}:convert_ort", request, ctx.progress)
        ctx.note(
            None,
            f"{path.name} has no layouts of one kind of CPU, so that it runs on all; "
            "a .onnx file gets them when it is loaded, and may be faster for convolutions",
        )
        texts = {CONFIG: answer["config"], TYPED_CONFIG: answer["typed_config"]}
        return path.name, texts, answer["weights"], {}

    def _check_ort(self, module: Module) -> Iterator[Problem]:
        if self.weights == "fp16":
            yield Problem(
                "a .ort file holds weights as they are computed with, so fp16 would be undone",
                hint="use mobile(format=onnx,weights=fp16)",
            )
        if self.external:
            yield Problem("a .ort file holds its weights inside", hint="leave external out")
        size = sum(tensor.nbytes for tensor in _initializers(module))
        if size > _FLATBUFFER_LIMIT:
            yield Problem(
                f"the weights take {size / 1e9:.2f} GB, and a .ort file ends at 2.15 GB",
                hint="use mobile(format=onnx)",
            )


def _initializers(module: Module) -> Iterator[ir.TensorProtocol]:
    tensors = {
        id(value.const_value): value.const_value
        for graph in [module.graph, *module.graph.subgraphs()]
        for value in graph.initializers.values()
        if value.const_value is not None and value.dtype != ir.DataType.STRING
    }
    yield from tensors.values()


def _with_conversions(can: Capabilities) -> Capabilities:
    """The table with the types that the runtime converts by itself where it has no kernel."""
    return dataclasses.replace(can, ops={op: _widen(types, can) for op, types in can.ops.items()})


def _widen(types: tuple[str, ...], can: Capabilities) -> tuple[str, ...]:
    converted = can.facts["converted"].items()
    return (*types, *(old for old, new in converted if new in types and old not in types))


def _check_slots(module: Module, can: Capabilities) -> Iterator[Problem]:
    """Inputs and outputs that take fewer types than the operator as a whole."""
    slots: dict[str, dict[str, list[str]]] = can.facts["slots"]
    for node in module.nodes():
        for places, types in slots.get(op_key(node), {}).items():
            refused = [
                value.dtype.name.lower()
                for value in _at(node, places.split())
                if value.dtype is not None
                and value.dtype.name.lower() not in _widen(tuple(types), can)
            ]
            if refused:
                yield Problem(
                    f"{op_key(node)} has no {refused[0]} kernel",
                    node=node_label(node),
                    hint=f"it takes {', '.join(types)} there; a Cast before and after it helps",
                )


def _at(node: ir.Node, places: list[str]) -> Iterator[Any]:
    named = {
        **{f"in{index}": value for index, value in enumerate(node.inputs)},
        **{f"out{index}": value for index, value in enumerate(node.outputs)},
    }
    yield from (named[place] for place in places if named.get(place) is not None)
