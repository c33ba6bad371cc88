"""The one-call driver behind `aigcc build` and `aigcc.build`: load, transform, lower, measure."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import platform
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from aigcc.artifact import (
    MANIFEST,
    Artifact,
    check_free,
    describe_files,
    describe_value,
    staged,
    write_manifest,
)
from aigcc.deployed import open_before_lowering, open_here, open_program
from aigcc.edge_parts import EdgeJudge
from aigcc.errors import CompileError, ModelError, TargetError, VerifyError
from aigcc.ir.draws import count_draws
from aigcc.ir.module import Module
from aigcc.ir.names import name_apart
from aigcc.ir.verify import verify as verify_module
from aigcc.jsontext import to_json
from aigcc.latency import Latency, measure_latency
from aigcc.options import show
from aigcc.pipeline.context import Context, Remark, usable_threads
from aigcc.pipeline.manager import Observer, Pass, PassManager, PassRun
from aigcc.pipeline.parts import Parts
from aigcc.pipeline.text import format, parse
from aigcc.provenance import PROVENANCE, folders, origins, stripped, without_folders
from aigcc.quality import Suspects, count_calibrated, measure
from aigcc.ranges import settled
from aigcc.report.page import write_report
from aigcc.report.program import describe_program, stored_bytes
from aigcc.samples import Samples, load_samples
from aigcc.samples import Source as SampleSource
from aigcc.synthetic import vocabulary
from aigcc.target import Target

if TYPE_CHECKING:
    import torch

RECIPE = "recipe.toml"
"""The file of an artifact that says which node is quantised how."""

EDGE_TOLERANCE = 1e-4
"""The largest max|a-b| / max|a| of passes that are exact, at the edges of inputs."""

Verify = Literal["off", "structure", "numeric"]
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        facts = self.artifact.manifest
        said = f"{len(self.remarks)} remarks"
        nodes = f"{facts['nodes']['before']} nodes before, {facts['nodes']['after']} after"
        place = str(self.artifact.folder)
        return f"<Build {place!r}: {facts['source']} for {facts['target']}, {nodes}, {said}>"


def load(
    source: str | Path | Module | torch.nn.Module,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    dynamic_shapes: Any = None,
    *,
    roots: Iterable[Path] = (),
    freeze: Mapping[str, Any] | None = None,
) -> Module:
    """Read a model from wherever it is.

    Args:
        source: A path ending in .onnx, .onnxtxt or .pt2; `package.module:callable`; a torch
            module; or a Module, which is returned as it is.
        inputs: Example inputs of a torch module.
        dynamic_shapes: The dims of a torch module that may change.
        roots: Folders besides its own in which a `.onnxtxt` may name data.
        freeze: Inputs that become constants, and their values; see `aigcc.freeze`.

    Raises:
        ModelError: it cannot be read, or is no legal model; says why, and what to do.
    """
    if isinstance(source, Module):
        module = source
    elif not isinstance(source, str | Path):
        from aigcc.ir.trace import from_torch

        module = from_torch(source, inputs, dynamic_shapes)
    else:
        module = _load_path(source, roots)
    name = _name(source)
    try:
        verify_module(module.model)
    except VerifyError as error:
        hint = error.hint or "export the model again; onnx.checker may say more"
        raise ModelError(error.what, at=f"{name}: {error.at}", hint=hint) from error
    if not module.outputs:
        raise ModelError("the model has no outputs, so there is nothing to compute", at=name)
    if freeze:
        from aigcc.freeze import freeze as frozen

        module = frozen(module, freeze)
    return module


def _load_path(source: str | Path, roots: Iterable[Path]) -> Module:
    text, path = str(source), Path(source)
    if path.suffix == ".pt2":
        from aigcc.ir.pt2 import from_pt2

        return from_pt2(path)
    if path.is_dir() and (path / MANIFEST).is_file():
        raise ModelError(
            f"{text} is an artifact, and a model is needed here",
            at=text,
            hint=f"give the model that it was built from; aigcc explain {text} names it",
        )
    if ":" in text and not path.exists() and path.suffix not in (".onnx", ".onnxtxt"):
        from aigcc.ir.trace import from_callable

        return from_callable(text)
    if not path.exists():
        raise ModelError(f"there is no model at {text!r}", at=text, hint=_guess(path))
    if path.suffix == ".py":
        raise ModelError(
            f"{text} is Python code, and a model is what a function in it returns",
            at=text,
            hint=f"name the function: {path.stem}:FUNCTION, in the folder of the file; it returns "
            "(nn.Module, inputs[, dynamic shapes]) or the path of a model",
        )
    module = Module.load(path, roots=roots)
    name_apart(module)  # ONNX Runtime refuses nodes of one name
    return module


def _guess(path: Path) -> str:
    """What was meant by a path that does not exist."""
    known = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, known, n=1, cutoff=0.75)
    if near:
        return f"did you mean {str(path.with_name(near[0]))!r}?"
    return "give a file that ends with .onnx, .onnxtxt or .pt2, or package.module:callable"


def build(
    source: str | Path | Module | torch.nn.Module,
    target: str | Target,
    out: str | Path,
    *,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    dynamic_shapes: Any = None,
    passes: str | Iterable[Pass] | None = None,
    catalogue: Mapping[str, type[Pass]] | None = None,
    samples: SampleSource | Samples | None = None,
    calibration: SampleSource | Samples | None = None,
    budget: str | None = None,
    recipe: str | Path | None = None,
    freeze: Mapping[str, Any] | None = None,
    observers: Iterable[Observer] = (),
    verify: Verify = "numeric",
    latency: bool = False,
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
        samples: A folder, a file, `module:callable`, a function that yields feeds, or a list of
            feeds; synthetic inputs by default.
        calibration: More samples, to calibrate quantisation on; those of `samples` by default.
        budget: Quantise as far as this allows, such as `sqnr>=30,size<=0.5x`: appends
            `assign-precision` and `insert-qdq` to the pipeline.
        recipe: Quantise as this file says, instead of looking for the best.
        freeze: Inputs that become constants, by name, such as `{"sample_rate": 16000}`: the program
            does not have them, and branches for other values go. Samples may still hold them.
        observers: Told about every pass.
        verify: "structure" checks the IR after every pass; "numeric" also runs the artifact and
            the original on the samples and compares; "off" checks the original only.
        latency: Time the original in ONNX Runtime and the artifact in turn, where it can run here;
            artifacts are equal byte by byte without.
        overwrite: Replace an artifact that lies at `out`.
        roots: See `load`.
        threads: Threads for running and lowering; all cores by default.
        progress: Told how far the build is.

    Raises:
        CompileError: with what, where and what to do. Nothing is left at `out` then.
    """
    from aigcc.passes.quant.readback import refuse_mismatches

    if verify not in get_args(Verify):
        raise CompileError(f"verify cannot be {verify!r}", hint=f"one of {get_args(Verify)}")
    threads = usable_threads(threads)
    if isinstance(target, str):
        from aigcc.targets import make_target

        target = make_target(target)
    pipeline = [*_pipeline(passes, target, catalogue), *_quantisation(budget, recipe)]
    _refuse_unused(calibration, pipeline)
    parts = Parts()
    watching = [*observers, parts] if verify == "numeric" else observers
    manager = PassManager(pipeline, observers=watching, check=verify != "off")
    out = Path(out)
    check_free(out, overwrite=overwrite)
    target.check_tools()
    progress("reading the model", 0.0)
    original = load(source, inputs, dynamic_shapes, roots=roots, freeze=freeze)
    feeds = samples if isinstance(samples, Samples) else load_samples(samples, original)
    ctx = Context(target=target, samples=feeds, threads=threads, progress=progress)
    ctx.maker, ctx.original = target.name, original
    prepared = target.prepare(original, ctx)
    ctx.samples = feeds = feeds.fitted(prepared)
    if calibration is not None:
        ctx.calibration_samples = (
            calibration if isinstance(calibration, Samples) else load_samples(calibration, prepared)
        )
    module = prepared.clone()
    with staged(out, overwrite=overwrite) as staging, _recipe_left(ctx, out, recipe):
        runs = manager.run(module, ctx)
        target = ctx.target or target
        _refuse_problems(target, module, pipeline)
        ctx.maker = target.name
        progress(f"lowering for {target.name}", 0.0)
        lowered = target.lower(stripped(module), staging, ctx)
        if unknown := refuse_mismatches(module, target, lowered.precision):
            count = f"{len(unknown)} quantised products, {unknown[0]} first"
            ctx.note(None, f"the program does not say what it computes in: {count}")
        (staging / "example.py").write_text(target.example(module, lowered.entry), "utf-8")
        if ctx.recipe is not None:
            ctx.recipe.save(staging / RECIPE)
        if known := origins(module):
            (staging / PROVENANCE).write_text(to_json(known) + "\n", "utf-8")
        quality = session = edges = None
        command = _bisect_command(source, pipeline, target, samples, roots, freeze)
        if verify == "numeric":
            session = open_program(target, module, staging, lowered, ctx)
            is_lowered = session is not None
            session = session or open_here(target, module, ctx) or open_before_lowering(module, ctx)
        if session is not None:
            progress("comparing with the original", 0.0)
            quality = measure(original, session, feeds, threads, ctx.budget, inputs=module.inputs)
            quality.is_lowered = is_lowered
            quality.calibrated = count_calibrated(ctx)
            if ctx.budget is None:
                Suspects(prepared, pipeline, runs, target, feeds, command).refuse(quality)
            else:
                quality.refuse(ctx.budget, show(target, target.name))
            quality.refuse_elsewhere(target.tolerance, show(target, target.name))
        if verify == "numeric":
            progress("comparing at the edges of inputs", 0.0)
            taken = 0.0 if quality is None else quality.seconds
            judge = EdgeJudge(feeds, EDGE_TOLERANCE, target, threads, taken)
            edges = judge.refuse(parts.found(module), command, TargetError)
        timing = None
        if latency:
            progress("measuring latency", 0.0)
            timing = measure_latency(original, target, staging, lowered.entry, feeds, threads)
        rows = {value.name: vocabulary(value) for value in original.inputs}
        files = describe_files(staging)
        after = sum(files[name]["bytes"] for name in lowered.files)
        before = stored_bytes(original)
        described = None
        if quality is not None:
            described = {**quality.describe(feeds), "tolerance": target.tolerance}
            described["bounds"] += _other_bounds(ctx, prepared, module, timing)
        manifest = {
            "target": show(target, target.name, explicit=True),
            "pipeline": format(pipeline, explicit=True),
            "entry": lowered.entry,
            "device_files": list(lowered.files),
            "source": _name(source),
            "command": _build_command(
                source, target, pipeline, samples, calibration, roots, verify, freeze
            ),
            "frozen": {name: array.tolist() for name, array in original.frozen.items()},
            "versions": _versions(),
            "inputs": [describe_value(value, rows.get(value.name)) for value in module.inputs],
            "outputs": [describe_value(value) for value in module.outputs],
            "sizes": settled(module),
            "nodes": {"before": _count(original), "after": _count(module)},
            "bytes": {"before": before, "after": after},
            **describe_program(original, module, pipeline, runs),
            "quality": described,
            "edges": edges,
            "latency": None if timing is None else timing.describe(target.name),
            "draws": count_draws(module),
            "facts": {**lowered.facts, **_counted(lowered.precision)},
            "remarks": [dataclasses.asdict(r) for r in ctx.remarks if r.kind != "applied"],
            "rewrites": dict(sorted(ctx.rewrites.items())),
            "files": files,
        }
        manifest = without_folders(
            manifest, folders(source, samples, calibration, recipe, out, *roots)
        )
        files = manifest["files"]
        files |= write_report(staging, manifest)
        write_manifest(staging, manifest)
    return Build(Artifact.load(out, check=False), original, module, runs, ctx.remarks, feeds)


@contextlib.contextmanager
def _recipe_left(ctx: Context, out: Path, given: str | Path | None) -> Iterator[None]:
    """Where a build ends in an error after a search, leave what was found beside `out`.

    That is the mixture that was chosen; where a budget is missed, the best one.
    """
    from aigcc.analysis.recipe import BudgetMissed
    from aigcc.passes.quant.summary import tried

    try:
        yield
    except CompileError as error:
        missed = error.__cause__ if isinstance(error.__cause__, BudgetMissed) else None
        recipe = ctx.recipe if missed is None else missed.recipe
        if recipe is None or given is not None:
            raise
        path = out.with_name(f"{out.name}.{RECIPE}")
        recipe.save(path)
        if missed is None:
            kept = f"--recipe {path} builds what the search found, once this is mended"
            hint = f"{error.hint}; {kept}" if error.hint else kept
            raise type(error)(error.what, at=error.at, hint=hint) from error
        hint = f"{missed.hint}; --recipe {path} builds the best one"
        lines = [str(error.at or out), *tried(map(dataclasses.asdict, ctx.remarks))]
        raise CompileError(missed.what, at="\n      ".join(lines), hint=hint) from error


def _other_bounds(
    ctx: Context, before: Module, after: Module, timing: Latency | None
) -> list[dict[str, Any]]:
    """The bounds of a budget on size, that of weights, and on latency, and what came of them."""
    from aigcc.passes.quant.trial import size_of

    found = []
    for limit in ctx.budget.limits if ctx.budget is not None else ():
        if limit.metric == "size":
            found.append(limit.verdict(size_of(after), size_of(before)))
        elif limit.metric == "latency" and timing is not None:
            original = timing.before.median
            found.append(limit.verdict(timing.after.ratio * original, original))
    return found


def _counted(precision: Mapping[str, str]) -> dict[str, Any]:
    """How many products are computed in each dtype."""
    return {"products": dict(Counter(precision.values()).most_common())} if precision else {}


def _pipeline(
    passes: str | Iterable[Pass] | None,
    target: Target,
    catalogue: Mapping[str, type[Pass]] | None,
) -> list[Pass]:
    if passes is None:
        passes = target.pipeline()
    return parse(passes, catalogue) if isinstance(passes, str) else list(passes)


def _quantisation(budget: str | None, recipe: str | Path | None) -> list[Pass]:
    """The passes that quantise within a budget, or as a recipe says."""
    from aigcc.analysis.budget import Budget
    from aigcc.analysis.recipe import Recipe
    from aigcc.passes.assign_precision import AssignPrecision
    from aigcc.passes.insert_qdq import InsertQdq
    from aigcc.passes.quant.quantise import FULL

    if budget is None and recipe is None:
        return []
    # what is wrong with them is said before anything is done
    if recipe is not None:
        Recipe.load(recipe)
    if budget is not None:
        Budget.parse(budget)
    assign = AssignPrecision(budget=budget or "", recipe="" if recipe is None else str(recipe))
    return [assign, InsertQdq(scheme=FULL)]


def _refuse_unused(calibration: object, pipeline: Sequence[Pass]) -> None:
    """Samples that nothing would read are a mistake, or the rest of a command is."""
    from aigcc.passes.assign_precision import AssignPrecision
    from aigcc.passes.insert_qdq import InsertQdq

    readers = (AssignPrecision, InsertQdq)
    if calibration is not None and not any(isinstance(each, readers) for each in pipeline):
        raise CompileError(
            "samples to calibrate on were given, and nothing is quantised",
            at="calibration",
            hint="give a budget or a recipe, or end the pipeline with insert-qdq",
        )


def _refuse_problems(target: Target, module: Module, pipeline: Sequence[Pass]) -> None:
    problems = target.check(module)
    if not problems:
        return
    shown = [f"{p.node + ': ' if p.node else ''}{p.message}" for p in problems[:20]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    hints = list(dict.fromkeys(p.hint for p in problems if p.hint))
    if not hints and "legalize" not in [current.name for current in pipeline]:
        hints = ["let the pipeline end with legalize"]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise TargetError(
        f"{target.name} cannot run this model: {count}",
        at="\n      ".join(shown),
        hint="; ".join(hints[:3]) or "put other operators in the place of these",
    )


def _bisect_command(
    source: object,
    pipeline: Sequence[Pass],
    target: Target,
    samples: object,
    roots: Iterable[Path],
    freeze: Mapping[str, Any] | None,
) -> str:
    from aigcc.freeze import settings

    frozen = settings(freeze or {})
    if frozen is None or not _is_command(source, pipeline, samples):
        return "aigcc.pipeline.bisect.find_first_wrong"
    words = ["aigcc", "bisect", str(source), "-p", format(pipeline)]
    words += ["-t", show(target, target.name), "--tolerance", f"{target.tolerance:g}"]
    words += [] if samples is None else ["--samples", str(samples)]
    for root in roots:
        words += ["--data-root", str(root)]
    return shlex.join([*words, *frozen])


def _is_command(source: object, pipeline: Sequence[Pass], samples: object) -> bool:
    """Whether the command line can name all of this."""
    from aigcc.passes import PASSES

    is_text = isinstance(source, str | Path) and isinstance(samples, str | Path | None)
    return is_text and all(PASSES.get(current.name) is type(current) for current in pipeline)


def _build_command(
    source: object,
    target: Target,
    pipeline: Sequence[Pass],
    samples: object,
    calibration: object,
    roots: Iterable[Path],
    verify: Verify,
    freeze: Mapping[str, Any] | None,
) -> str | None:
    """What builds this again where the files that it names lie; None if Python is needed."""
    from aigcc.freeze import settings
    from aigcc.targets import TARGETS

    frozen = settings(freeze or {})
    named = _is_command(source, pipeline, samples) and isinstance(calibration, str | Path | None)
    if not named or frozen is None or TARGETS.get(target.name) is not type(target):
        return None
    words = ["aigcc", "build", _name(source), "-t", show(target, target.name)]
    if format(pipeline) != format(parse(target.pipeline())):
        words += ["-p", format(pipeline)]
    words += [] if samples is None else ["--samples", _name(samples)]
    words += [] if calibration is None else ["--calibration", _name(calibration)]
    for root in roots:
        words += ["--data-root", Path(root).name]
    words += [] if verify == "numeric" else ["--verify", verify]
    return shlex.join([*words, *frozen, "-o", "out"])


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


def _count(module: Module) -> int:
    return sum(1 for _ in module.nodes())
