"""What a device can do, and how a module becomes files for it: the base class of all targets."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.operators import op_key
from aigcc.limits import Limits, broken_limit
from aigcc.pipeline.context import Context

Feeds = Mapping[str, np.ndarray]

_TABLE = "capabilities.toml"
_SCHEMES = "quantize.toml"
_NARROW = frozenset({"bfloat16", "float16"})
_NARROW_HINT = "let the pipeline begin with to-fp32"


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a device's runtime takes, as data.

    Attributes:
        opset: The lowest and the highest version of the default opset, inclusive.
        ops: `Op` or `domain::Op` to the element types it takes (ONNX names in lower case, such as
            "float16"); an empty tuple means any of `dtypes`.
        dtypes: Element types that values may have.
        facts: Everything else of the target's table (Q/DQ placement, channel multiples, layouts,
            sparsity patterns): read by the passes that need it.
        versions: By operator, the lowest and the highest version of the default opset in which it
            runs, where those are not the ones of `opset`.
        limits: By operator, what its nodes must fulfil besides; see `aigcc.limits`.
    """

    opset: tuple[int, int]
    ops: Mapping[str, tuple[str, ...]]
    dtypes: frozenset[str]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, Limits] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, package: str, file: str = _TABLE) -> Capabilities:
        """The table `file` of a target's package, and its schemes where it has `quantize.toml`."""
        folder = importlib.resources.files(package)
        table = tomllib.loads(folder.joinpath(file).read_text("utf-8"))
        if folder.joinpath(_SCHEMES).is_file():
            table["quantize"] = tomllib.loads(folder.joinpath(_SCHEMES).read_text("utf-8"))
        lowest, highest = table.pop("opset")
        ops = {name: tuple(dtypes) for name, dtypes in table.pop("ops").items()}
        dtypes, limits = frozenset(table.pop("dtypes")), table.pop("limits", {})
        versions = {
            name: (first, last) for name, (first, last) in table.pop("versions", {}).items()
        }
        return cls((lowest, highest), ops, dtypes, table, limits, versions)

    def supports(self, node: ir.Node) -> bool:
        """Whether the runtime has a kernel for this node's operator (types aside)."""
        return op_key(node) in self.ops


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something in a module that a target cannot lower."""

    message: str
    node: str = ""
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """Something a target needs on this machine, for `aigcc doctor`."""

    name: str
    present: bool
    detail: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What `Target.lower` made.

    Attributes:
        files: Names of the device files, relative to the artifact's folder.
        entry: The file that the runtime opens first.
        facts: What was read back from the result (kernels, sizes, builder versions).
        precision: The dtypes in which products are computed, read back, by node.
    """

    files: tuple[str, ...]
    entry: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Session(Protocol):
    """A loaded program: feeds in, outputs out, both by name."""

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs for one set of inputs."""
        ...


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """How long one node of a program takes.

    Attributes:
        name: Of the node, or of what the runtime made of several.
        kind: Its operator.
        kernel: The implementation; empty where it is not told.
        seconds: Of one run.
    """

    name: str
    kind: str
    kernel: str
    seconds: float


@runtime_checkable
class General(Protocol):
    """A session that makes a program of its own for the first sizes that come."""

    def generalise(self) -> None:
        """Take the program for all sizes from now on."""
        ...


@dataclasses.dataclass(frozen=True)
class Target(ABC):
    """A kind of device. Fields are its options; `capabilities.toml` beside it is its table."""

    name: ClassVar[str]
    summary: ClassVar[str]
    runs_here: ClassVar[bool] = False
    """Whether its programs are for machines such as the one that builds them."""
    is_onnxruntime: ClassVar[bool] = False
    """Whether ONNX Runtime runs its programs, and rewrites them when it loads them."""

    @property
    def tolerance(self) -> float:
        """The largest max|a-b| / max|a| against the original that a build accepts."""
        return 1e-4

    @property
    def can(self) -> Capabilities:
        """The capability table: of the class's own package, or of the class it derives from."""
        modules = [cls.__module__ for cls in type(self).__mro__]
        return _load_capabilities(next(m for m in modules if _has_table(m)))

    def bases(self) -> tuple[Target, ...]:
        """This target in all the types that nodes which are not quantised may have.

        The first is the most exact one, which others are compared with. With a budget
        `assign-precision` takes the fastest one that keeps it.
        """
        return (self,)

    @abstractmethod
    def pipeline(self) -> str:
        """The passes that prepare a module for this target, in the text form."""

    @abstractmethod
    def requirements(self) -> list[Requirement]:
        """What lowering and running need on this machine. Cheap: nothing is loaded or built."""

    def check_tools(self) -> None:
        """Refuse what cannot be lowered on this machine at all; asked before any pass runs.

        Raises:
            TargetError: a library or a tool is missing, or an option asks for what there is not.
        """
        return

    def prepare(self, module: Module, ctx: Context) -> Module:
        """What the passes get: the module, or a copy whose inputs the device can take.

        A target that needs static shapes fixes the sizes of dynamic dims here, so that passes,
        samples and the program all have the same ones. May be asked before samples are there.

        Raises:
            CompileError: an option does not fit the module, or the samples contradict it.
        """
        return module

    def check(self, module: Module) -> list[Problem]:
        """Everything that cannot be lowered, without the device's library."""
        return check_against(module, self.can)

    @abstractmethod
    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        """Write the device files of `module` into the existing, empty folder `out`.

        Raises:
            TargetError: a library is missing, or the device's compiler refused the module.
        """

    @abstractmethod
    def session(self, folder: Path, entry: str, threads: int | None = None) -> Session | None:
        """The lowered program, ready to run here; None where this machine cannot run it.

        Args:
            folder: The artifact's folder.
            entry: The file to open.
            threads: How many threads it may use, if it can use several; all cores by default.
        """

    def open(self, module: Module, threads: int | None = None) -> Session | None:
        """A module as this target runs it, without an artifact; None where that cannot be here.

        Passes measure with it: the latency of single nodes, the quality of whole models.
        """
        return None

    def profile(
        self, folder: Path, entry: str, feeds: Feeds, threads: int | None = None
    ) -> list[NodeTime]:
        """How long each node of the lowered program takes here; empty where that is not known.

        Raises:
            CompileError: the program fails.
        """
        return []

    def runtime(self) -> str:
        """The name and version of what runs the programs, which measurements depend on."""
        return ", ".join(f"{r.name} {r.detail}" for r in self.requirements())

    @abstractmethod
    def example(self, module: Module, entry: str) -> str:
        """A Python program that runs the artifact from its own folder."""


def _has_table(module: str) -> bool:
    folders: list[str] = getattr(sys.modules[module], "__path__", [])
    return any((Path(folder) / _TABLE).is_file() for folder in folders)


@functools.cache
def _load_capabilities(package: str) -> Capabilities:
    return Capabilities.load(package)


def check_against(module: Module, can: Capabilities) -> list[Problem]:
    """The problems that a capability table alone shows: opset, operators, types and limits."""
    problems = []
    low, high = can.opset
    is_standard = any(node.domain in ("", "ai.onnx") for node in module.nodes())
    if is_standard and not low <= module.opset <= high:
        hint = _convert_hint(min(max(module.opset, low), high))
        problems.append(Problem(f"opset {module.opset} is outside {low} to {high}", hint=hint))
    functions = set(module.model.functions)
    for node in module.nodes():
        if node.op_identifier() in functions:
            continue
        key = op_key(node)
        dtypes = can.ops.get(key)
        if dtypes is None:
            problems.append(Problem(f"no kernel for {key}", node=node_label(node)))
            continue
        first, last = can.versions.get(key, (module.opset, module.opset))
        if not first <= module.opset <= last:
            versions = f"from {first} to {last}" if first < last else f"{first}"
            problems.append(
                Problem(
                    f"no kernel for {key} of opset {module.opset}, only of {versions}",
                    node=node_label(node),
                    hint=_convert_hint(min(max(module.opset, first), last)),
                )
            )
        reason = broken_limit(node, can.limits[key], module.opset) if key in can.limits else ""
        if reason:
            problems.append(Problem(f"{key}: {reason}", node=node_label(node)))
        for value in (*node.inputs, *node.outputs):
            if value is None or value.dtype is None:
                continue
            dtype = value.dtype.name.lower()
            if dtype not in (dtypes or can.dtypes):
                message = f"{key} has no {dtype} kernel, and {value.name!r} is {dtype}"
                hint = _NARROW_HINT if dtype in _NARROW else ""
                problems.append(Problem(message, node=node_label(node), hint=hint))
                break
    return problems


def _convert_hint(version: int) -> str:
    return f"run the pass convert-opset(version={version}); its remark says what is in the way"


def node_label(node: ir.Node) -> str:
    """How messages name a node: its name, or its first output's."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type
