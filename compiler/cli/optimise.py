"""`aigcc opt` and `aigcc bisect`: run any pipeline on any model or dump, and find what broke it."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigcc.cli.arguments import (
    DataRoots,
    DumpIr,
    Json,
    Model,
    PrintAfter,
    SamplesOption,
    Set,
    Target,
    check_free_file,
    complete_pipeline,
    dump_folder,
)
from aigcc.cli.build import Verify, VerifyLevel, show_edges, show_quality
from aigcc.cli.render import as_json, line, progress, table
from aigcc.cli.show import show_remarks
from aigcc.errors import CompileError
from aigcc.figures import number, seconds

if TYPE_CHECKING:
    from aigcc.ir.module import Module
    from aigcc.pipeline.attempts import FirstWrong
    from aigcc.pipeline.context import Context
    from aigcc.pipeline.manager import PassRun
    from aigcc.pipeline.parts import Parts
    from aigcc.samples import Samples

_TOLERANCE = 1e-4  # max|a-b| / max|a| that rounding explains

Passes = Annotated[
    str,
    typer.Option(
        "--passes",
        "-p",
        metavar="PIPELINE",
        autocompletion=complete_pipeline,
        help='For example "canonicalize,fuse"; see aigcc passes.',
    ),
]


def opt(
    model: Model,
    passes: Passes,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to write: .onnx (binary) or .onnxtxt (text)."
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Stop after so many rewrites (see bisect)."),
    ] = None,
    target: Target = None,
    set: Set = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            "-s",
            metavar="SAMPLES",
            help="Compare the model before and after on these, as for aigcc build; by default on "
            "inputs that are made up.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Fail if max|a-b| / max|a| of any output is larger; by default what the target "
            "allows, or 1e-4, and on inputs that are made up nothing where a pass rounds on "
            "purpose.",
        ),
    ] = None,
    verify: VerifyLevel = Verify.numeric,
    dump_ir: DumpIr = None,
    print_after: PrintAfter = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Run a pipeline on a model or a dump; write .onnx or .onnxtxt.

    Example: `aigcc opt model.onnx -p canonicalize,fuse -o smaller.onnx`
    """
    from aigcc.driver import load
    from aigcc.errors import ModelError
    from aigcc.freeze import parse_settings
    from aigcc.ir.module import Module
    from aigcc.pipeline import dump
    from aigcc.pipeline.context import Context
    from aigcc.pipeline.manager import Observer, PassManager
    from aigcc.pipeline.parts import Parts
    from aigcc.pipeline.text import parse
    from aigcc.samples import load_samples
    from aigcc.targets import make_target

    if out.suffix not in (".onnx", ".onnxtxt"):
        raise ModelError(
            f"cannot tell the format of {out.name!r}",
            at="--out",
            hint="end the name with .onnx (binary) or .onnxtxt (text)",
        )
    check_free_file(out, "model", Module.load, source=model)
    observers: list[Observer] = []
    if dump_ir is not None:
        observers.append(dump.Dump(dump_folder(dump_ir, out)))
    if print_after is not None:
        observers.append(dump.PrintAfter(print_after))
    parts = Parts()
    if verify is Verify.numeric:
        observers.append(parts)
    manager = PassManager(parse(passes), observers=observers, check=verify is not Verify.off)
    with progress(plain=json) as report:
        ctx = Context(
            target=None if target is None else make_target(target), limit=limit, progress=report
        )
        original = load(model, roots=data_root or (), freeze=parse_settings(set or ()))
        if samples is not None:
            ctx.samples = load_samples(samples, original)
        if ctx.target is not None:
            original = ctx.target.prepare(original, ctx)
        if ctx.samples is not None:
            ctx.samples = ctx.samples.fitted(original)
        module, quality, edges = original.clone(), None, None
        runs = manager.run(module, ctx)
        if verify is Verify.numeric and ctx.total:
            report("comparing with the original", 0.0)
            again = _command("bisect", model, passes, target, data_root, set)
            again += [] if samples is None else ["--samples", samples]
            allowed = _tolerance(tolerance, ctx, runs)
            quality = _compare(original, module, ctx, allowed, again)
            if quality is not None:
                edges = _at_edges(parts, module, original, ctx, allowed, again)
        report(f"writing {out}", 1.0)
        module.save(out)
    remarks = [dataclasses.asdict(r) for r in ctx.remarks if r.kind != "applied"]
    if json:
        facts = {
            "out": str(out),
            "passes": runs,
            "rewrites": dict(ctx.rewrites),
            "remarks": remarks,
        }
        as_json(facts if quality is None else {**facts, "quality": quality, "edges": edges})
        return
    if runs:
        table(
            "",
            ["pass", ">rewrites", ">nodes before", ">nodes after", ">time"],
            [(r.text, r.rewrites, r.nodes_before, r.nodes_after, seconds(r.seconds)) for r in runs],
        )
    show_remarks(remarks)
    if quality is not None:
        line()
        show_quality(quality)
        show_edges(edges)
    if remarks or quality is not None:
        line()
    line(f"wrote {shlex.quote(str(out))}")


def _tolerance(given: float | None, ctx: Context, runs: Sequence[PassRun]) -> float:
    if given is not None:
        return given
    if ctx.samples is None and not all(run.exact for run in runs):
        return math.inf
    return _TOLERANCE if ctx.target is None else ctx.target.tolerance


def _command(
    name: str,
    model: str,
    passes: str,
    target: str | None,
    roots: list[Path] | None,
    set: list[str] | None,
) -> list[str]:
    """The words of a command on the same model and pipeline."""
    words = ["aigcc", name, model, "-p", passes]
    words += [] if target is None else ["-t", target]
    for folder in roots or ():
        words += ["--data-root", str(folder)]
    for text in set or ():
        words += ["--set", text]
    return words


def _compare(
    original: Module, module: Module, ctx: Context, tolerance: float, bisect: list[str]
) -> dict[str, Any] | None:
    """How far a module's outputs are from the original's; None, and a remark, if that has no way.

    It runs as its target deploys it, where that can be here, and as it means without a target.

    Args:
        original: The module before the passes.
        module: The module after them.
        ctx: Has the inputs of both, if there are any; they are made up where there are none.
        tolerance: The largest relative error that passes.
        bisect: The command, but for its tolerance, that names the rewrite that is to blame.

    Raises:
        CompileError: further than `tolerance`, or it does not run.
    """
    from aigcc.deployed import open_module
    from aigcc.quality import count_calibrated, measure
    from aigcc.reference import Reference
    from aigcc.samples import load_samples

    try:
        feeds = ctx.samples or load_samples(None, original).fitted(original)
        Reference(original).run(next(iter(feeds)))
    except CompileError as error:
        if ctx.samples is not None:
            raise
        ctx.note(None, f"the outputs are not compared: {error.what}")
        return None
    deployed = None if ctx.target is None else open_module(ctx.target, module, ctx.threads)
    session = deployed or Reference(module, rounds=True)
    quality = measure(original, session, feeds)
    quality.calibrated = count_calibrated(ctx)
    wrong = quality.unexplained(tolerance, original, feeds)
    if quality.failure is not None:
        fault = f"after these passes the module does not run: {quality.failure.what}"
    elif wrong:
        fault = (
            f"output {wrong[0].name!r} is wrong after these passes: its relative error is "
            f"{number(wrong[0].relative, '.2g')}, and {tolerance:g} is allowed"
        )
    else:
        return quality.describe(feeds)
    hint = f"{shlex.join([*bisect, '--tolerance', f'{tolerance:g}'])} names the rewrite"
    raise CompileError(fault, at=feeds.source, hint=hint) from quality.failure


def _at_edges(
    parts: Parts,
    module: Module,
    original: Module,
    ctx: Context,
    tolerance: float,
    bisect: list[str],
) -> dict[str, Any] | None:
    """What became of edges of inputs in all passes that are exact; see `aigcc.edge_parts`.

    Raises:
        CompileError: something else than before.
    """
    from aigcc.edge_parts import EdgeJudge
    from aigcc.samples import load_samples

    feeds = ctx.samples or load_samples(None, original).fitted(original)
    allowed = tolerance if math.isfinite(tolerance) else _TOLERANCE
    judge = EdgeJudge(feeds, allowed, ctx.target, ctx.threads)
    command = shlex.join([*bisect, "--tolerance", f"{allowed:g}"])
    return judge.refuse(parts.found(module), command)


def bisect(
    model: Model,
    passes: Passes,
    samples: SamplesOption = None,
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="The largest max|a-b| / max|a| that counts as right.")
    ] = _TOLERANCE,
    target: Target = None,
    set: Set = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Find the first rewrite of a pipeline after which the outputs differ.

    Example: `aigcc bisect model.onnx -p canonicalize,fuse`
    """
    from aigcc.driver import load
    from aigcc.edge_parts import find_at_edges
    from aigcc.freeze import parse_settings
    from aigcc.noise import describe_noise
    from aigcc.pipeline.bisect import find_first_wrong
    from aigcc.pipeline.context import Context
    from aigcc.pipeline.text import parse
    from aigcc.samples import load_samples
    from aigcc.targets import make_target

    fault, pipeline = None, parse(passes)
    module = load(model, roots=data_root or (), freeze=parse_settings(set or ()))
    feeds = load_samples(samples, module)
    device = None if target is None else make_target(target)
    if device is not None:
        module = device.prepare(module, Context(target=device, samples=feeds))
    with progress(plain=json) as report:
        found = find_first_wrong(
            module,
            pipeline,
            feeds.fitted(module),
            tolerance=tolerance,
            target=device,
            progress=report,
        )
        if found.is_right:
            at_edges = find_at_edges(module, pipeline, feeds.fitted(module), tolerance, device)
            fault, found = at_edges or (None, found)
    noise = describe_noise(module)
    if json:
        as_json({**dataclasses.asdict(found), "noise": noise})
    elif found.is_right:
        where = f"{_first(feeds)} and on edge inputs"
        line(f"{_all(found.rewrites)} right within {tolerance:g} on {where}")
        if found.deployed:
            line(f"so is the result as {found.deployed} runs it")
    elif fault is not None:
        line(f"with {fault.edge.name} {fault.what}:")
        _show(found, _command("opt", model, passes, target, data_root, set), at_edge=True)
    else:
        line(f"on {_first(feeds)}:")
        _show(found, _command("opt", model, passes, target, data_root, set))
    if noise and not json:
        line(f"note: {noise}")


def _all(rewrites: int) -> str:
    return "the one rewrite is" if rewrites == 1 else f"all {rewrites} rewrites are"


def _first(feeds: Samples) -> str:
    return f"the first of {feeds.source}"


def _show(found: FirstWrong, command: list[str], *, at_edge: bool = False) -> None:
    if found.only_deployed:
        line(f"{_all(found.rewrites)} right as the model is meant, without optimisations")
    if found.remark is None:
        line(f"no rewrite is to blame: {found.deployed} computes the model itself otherwise")
    elif found.only_deployed and found.number:
        line(
            f"rewrite {found.number} is the first that {found.deployed} gets wrong: {found.remark}"
        )
    elif found.number:
        line(f"rewrite {found.number} of {found.rewrites} is the first wrong one: {found.remark}")
    else:
        line(f"no rewrite is wrong, but a pass is: {found.remark}")
    if not at_edge or found.failure:
        line(_how_wrong(found))
    if found.remark is not None and found.original:
        line(
            f"judged by the model as it runs there, which is off by {found.original:.2g} from the "
            "model as it is meant"
        )
    if found.blame is not None:
        line(str(found.blame))
    if found.number:
        command = [*command, "--limit", str(found.number), "-o", "wrong.onnxtxt"]
        line(f"see it: {shlex.join(command)}")


def _how_wrong(found: FirstWrong) -> str:
    if found.remark is None:
        return (
            f"it fails there: {found.failure}"
            if found.failure
            else f"relative error {found.original:.2g}"
        )
    if found.failure:
        return f"with it, the module no longer runs: {found.failure}"
    before = "it does not run" if math.isnan(found.before) else f"relative error {found.before:.2g}"
    return f"{before} before it, {found.error:.2g} after it"


COMMANDS = (opt, bisect)
