"""`aigcc opt` and `aigcc bisect`: run any pipeline on any model or dump, and find what broke it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigcc.cli.arguments import (
    DataRoots,
    DumpIr,
    Json,
    Model,
    PrintAfter,
    SamplesOption,
    Target,
    dump_folder,
)
from aigcc.cli.render import as_json, line, progress, seconds, table

if TYPE_CHECKING:
    from aigcc.pipeline.bisect import FirstWrong

Passes = Annotated[
    str,
    typer.Option(
        "--passes",
        "-p",
        metavar="PIPELINE",
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
    from aigcc.pipeline import dump
    from aigcc.pipeline.context import Context
    from aigcc.pipeline.manager import Observer, PassManager
    from aigcc.pipeline.text import parse
    from aigcc.targets import make_target

    if out.suffix not in (".onnx", ".onnxtxt"):
        raise ModelError(
            f"cannot tell the format of {out.name!r}",
            at="--out",
            hint="end the name with .onnx (binary) or .onnxtxt (text)",
        )
    observers: list[Observer] = []
    if dump_ir is not None:
        observers.append(dump.Dump(dump_folder(dump_ir, out)))
    if print_after is not None:
        observers.append(dump.PrintAfter(print_after))
    manager = PassManager(parse(passes), observers=observers)
    with progress(quiet=json) as report:
        ctx = Context(
            target=None if target is None else make_target(target), limit=limit, progress=report
        )
        module = load(model, roots=data_root or ())
        runs = manager.run(module, ctx)
        report(f"writing {out}", 1.0)
        module.save(out)
    if json:
        as_json({"out": str(out), "passes": runs, "rewrites": dict(ctx.rewrites)})
        return
    if runs:
        table(
            "",
            ["pass", ">rewrites", ">nodes before", ">nodes after", ">time"],
            [(r.text, r.rewrites, r.nodes_before, r.nodes_after, seconds(r.seconds)) for r in runs],
        )
    line(f"wrote {shlex.quote(str(out))}")


def bisect(
    model: Model,
    passes: Passes,
    samples: SamplesOption = None,
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="The largest max|a-b| / max|a| that counts as right.")
    ] = 1e-4,
    target: Target = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Find the first rewrite of a pipeline after which the outputs differ.

    Example: `aigcc bisect model.onnx -p canonicalize,fuse`
    """
    from aigcc.driver import load
    from aigcc.pipeline.bisect import find_first_wrong
    from aigcc.pipeline.text import parse
    from aigcc.samples import load_samples
    from aigcc.targets import make_target

    pipeline = parse(passes)
    module = load(model, roots=data_root or ())
    with progress(quiet=json) as report:
        found = find_first_wrong(
            module,
            pipeline,
            load_samples(samples, module),
            tolerance=tolerance,
            target=None if target is None else make_target(target),
            progress=report,
        )
    if json:
        as_json(found)
    elif found.remark is None:
        line(f"all {found.rewrites} rewrites are right within {tolerance:g}")
    else:
        command = ["aigcc", "opt", model, "-p", passes]
        command += [] if target is None else ["-t", target]
        for folder in data_root or ():
            command += ["--data-root", str(folder)]
        _show(found, command)


def _show(found: FirstWrong, command: list[str]) -> None:
    if found.number:
        line(f"rewrite {found.number} of {found.rewrites} is the first wrong one: {found.remark}")
    else:
        line(f"no rewrite is wrong, but a pass is: {found.remark}")
    if found.failure:
        line(f"with it, the module no longer runs: {found.failure}")
    else:
        line(f"relative error {found.before:.2g} before it, {found.error:.2g} after it")
    if found.number:
        command = [*command, "--limit", str(found.number), "-o", "wrong.onnxtxt"]
        line(f"see it: {shlex.join(command)}")


COMMANDS = (opt, bisect)
