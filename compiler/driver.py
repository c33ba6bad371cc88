"""The one-call driver behind `aigcc build` and `aigcc.build`: load, transform, lower, measure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aigcc.analysis.metrics import OutputError, compare_outputs
from aigcc.artifact import Artifact, describe_files, staged, write_manifest
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.options import show
from aigcc.pipeline.context import Context, Remark
from aigcc.pipeline.manager import Observer, Pass, PassManager, PassRun
from aigcc.pipeline.text import format, parse
from aigcc.runtime import OrtSession
from aigcc.samples import Samples, load_samples
from aigcc.target import Target

if TYPE_CHECKING:
    import torch

Verify = Literal["off", "structure", "numeric"]
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Build:
    """What a build did.

    Attributes:
        artifact: The folder and its manifest.
        original: The module as it was read.
        module: The module that was lowered.
        runs: One entry a pass.
        remarks: What the passes said.
        samples: The inputs that quality was measured on.
    """

    artifact: Artifact
    original: Module
    module: Module
    runs: Sequence[PassRun]
    remarks: Sequence[Remark]
    samples: Samples


def load(
    source: str | Path | Module | torch.nn.Module,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    dynamic_shapes: Any = None,
    *,
    roots: Iterable[Path] = (),
) -> Module:
    """Read a model from wherever it is.

    Args:
        source: A path ending in .onnx, .onnxtxt or .pt2; `package.module:callable`; a torch
            module; or a Module, which is returned as it is.
        inputs: Example inputs of a torch module.
        dynamic_shapes: The dims of a torch module that may change.
        roots: Folders besides its own in which a `.onnxtxt` may name data.

    Raises:
        ModelError: it cannot be read; says why, and what to do.
    """
    if isinstance(source, Module):
        return source
    if not isinstance(source, str | Path):
        from aigcc.ir.trace import from_torch

        return from_torch(source, inputs, dynamic_shapes)
    text = str(source)
    if text.endswith(".pt2"):
        from aigcc.ir.pt2 import from_pt2

        return from_pt2(Path(source))
    if ":" in text and not Path(text).exists() and not text.endswith((".onnx", ".onnxtxt")):
        from aigcc.ir.trace import from_callable

        return from_callable(text)
    return Module.load(source, roots=roots)


def build(
    source: str | Path | Module | torch.nn.Module,
    target: str | Target,
    out: str | Path,
    *,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    dynamic_shapes: Any = None,
    passes: str | Iterable[Pass] | None = None,
    catalogue: Mapping[str, type[Pass]] | None = None,
    samples: str | Path | Samples | None = None,
    observers: Iterable[Observer] = (),
    verify: Verify = "numeric",
    overwrite: bool = False,
    roots: Iterable[Path] = (),
    threads: int | None = None,
    progress: Progress = lambda text, fraction: None,
) -> Build:
    """Compile a model for a target.

    Args:
        source: See `load`.
        target: A target, or its text such as `mobile(weights=fp16)`.
        out: The artifact's folder; written whole or not at all.
        inputs: Example inputs, where `source` is a torch module.
        dynamic_shapes: Its dims that may change.
        passes: The pipeline, as text or as passes; the target's own by default.
        catalogue: The passes that a pipeline text may name; aigcc's by default.
        samples: A folder, file or `module:callable`; synthetic inputs by default.
        observers: Told about every pass.
        verify: "structure" checks the IR after every pass; "numeric" also runs the artifact and
            the original on the samples and compares; "off" does neither.
        overwrite: Replace an artifact that lies at `out`.
        roots: See `load`.
        threads: Threads for running and lowering; all cores by default.
        progress: Told how far the build is.

    Raises:
        CompileError: with what, where and what to do. Nothing is left at `out` then.
    """
    if isinstance(target, str):
        from aigcc.targets import make_target

        target = make_target(target)
    progress("reading the model", 0.0)
    original = load(source, inputs, dynamic_shapes, roots=roots)
    feeds = samples if isinstance(samples, Samples) else load_samples(samples, original)
    module = original.clone()
    ctx = Context(target=target, samples=feeds, threads=threads, progress=progress)
    pipeline = _pipeline(passes, target, catalogue)
    with staged(Path(out), overwrite=overwrite) as staging:
        manager = PassManager(pipeline, observers=observers, check=verify != "off")
        runs = manager.run(module, ctx)
        _refuse_problems(target, module)
        progress(f"lowering for {target.name}", 0.0)
        lowered = target.lower(module, staging, ctx)
        (staging / "example.py").write_text(target.example(module, lowered.entry), "utf-8")
        quality = None
        if verify == "numeric":
            progress("comparing with the original", 0.0)
            quality = _measure(original, target, staging, lowered.entry, feeds, threads)
        manifest = {
            "target": show(target, target.name, explicit=True),
            "pipeline": format(pipeline, explicit=True),
            "entry": lowered.entry,
            "device_files": list(lowered.files),
            "source": _name(source),
            "versions": _versions(),
            "inputs": [_signature(value) for value in module.inputs],
            "outputs": [_signature(value) for value in module.outputs],
            "nodes": {"before": _count(original), "after": _count(module)},
            "quality": quality,
            "facts": dict(lowered.facts),
            "remarks": [dataclasses.asdict(r) for r in ctx.remarks if r.kind != "applied"],
            "rewrites": dict(sorted(ctx.rewrites.items())),
            "files": describe_files(staging),
        }
        write_manifest(staging, manifest)
    return Build(Artifact.load(out), original, module, runs, ctx.remarks, feeds)


def _pipeline(
    passes: str | Iterable[Pass] | None,
    target: Target,
    catalogue: Mapping[str, type[Pass]] | None,
) -> list[Pass]:
    if passes is None:
        passes = target.pipeline()
    return parse(passes, catalogue) if isinstance(passes, str) else list(passes)


def _refuse_problems(target: Target, module: Module) -> None:
    problems = target.check(module)
    if not problems:
        return
    shown = [f"{p.node + ': ' if p.node else ''}{p.message}" for p in problems[:20]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    hints = list(dict.fromkeys(p.hint for p in problems if p.hint))
    raise TargetError(
        f"{target.name} cannot run this model: {len(problems)} problems",
        at="\n      ".join(shown),
        hint="; ".join(hints[:3]) or "let the pipeline end with legalize",
    )


def _measure(
    original: Module,
    target: Target,
    folder: Path,
    entry: str,
    samples: Samples,
    threads: int | None,
) -> dict[str, Any] | None:
    session = target.session(folder, entry)
    if session is None:
        return None
    worst: dict[str, OutputError] = {}
    reference = OrtSession(original, optimise=False, threads=threads)
    count = 0
    for feeds in samples:
        count += 1
        for row in compare_outputs(reference.run(feeds), session.run(feeds)):
            if row.name not in worst or row.relative > worst[row.name].relative:
                worst[row.name] = row
    _refuse_wrong(target, worst)
    return {
        "samples": samples.source,
        "synthetic": samples.synthetic,
        "count": count,
        "outputs": [dataclasses.asdict(row) for row in worst.values()],
    }


def _refuse_wrong(target: Target, worst: Mapping[str, OutputError]) -> None:
    for row in worst.values():
        if not row.relative <= target.tolerance:
            raise TargetError(
                f"output {row.name!r} is wrong: its relative error is {row.relative:.2g}, "
                f"more than the {target.tolerance:.2g} that {target.name} allows here",
                at=f"artifact for {show(target, target.name)}",
                hint="aigcc bisect MODEL -p PIPELINE names the rewrite that broke it",
            )


def _name(source: object) -> str:
    if isinstance(source, Path):
        return source.name
    if isinstance(source, str):
        return source if ":" in source else Path(source).name
    return type(source).__name__


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("aigcc", "numpy", "onnx", "onnx-ir", "onnxruntime"):
        found[package] = importlib.metadata.version(package)
    return found


def _signature(value: Any) -> dict[str, Any]:
    shape = None if value.shape is None else [_dim(dim) for dim in value.shape]
    dtype = None if value.dtype is None else value.dtype.name.lower()
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _dim(dim: Any) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def _count(module: Module) -> int:
    return sum(1 for _ in module.nodes())
