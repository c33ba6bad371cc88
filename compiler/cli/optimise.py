"""`aigcc opt` and `aigcc bisect`: run any pipeline on any model or dump, and find what broke it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigcc.cli.arguments import DataRoots, Json, Model, Out, SamplesOption
from aigcc.cli.render import as_json, console, progress, seconds, table

Passes = Annotated[
    str, typer.Option("--passes", "-p", help='The pipeline, for example "canonicalize,fuse".')
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(opt)
    app.command()(bisect)


def opt(
    model: Model,
    passes: Passes,
    out: Out,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Stop after so many rewrites (see bisect).")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="A target that passes may ask.")
    ] = None,
    dump_ir: Annotated[
        Path | None, typer.Option("--dump-ir", metavar="DIR", help="Write the IR after every pass.")
    ] = None,
    print_after: Annotated[
        str | None, typer.Option("--print-after", metavar="PASS", help="Print the IR after a pass.")
    ] = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Run a pipeline on a model or a dump; write .onnx or .onnxtxt.

    Example: `aigcc opt model.onnx -p canonicalize,fuse -o smaller.onnx`
    """
    from aigcc.driver import load
    from aigcc.errors import ModelError
    from aigcc.pipeline.context import Context
    from aigcc.pipeline.dump import Dump, PrintAfter
    from aigcc.pipeline.manager import Observer, PassManager
    from aigcc.pipeline.text import parse
    from aigcc.targets import make_target

    if out.suffix not in (".onnx", ".onnxtxt"):
        raise ModelError(
            f"cannot tell the format of {out.name!r}",
            at="--out",
            hint="end the name with .onnx (binary) or .onnxtxt (text)",
        )
    pipeline = parse(passes)
    observers: list[Observer] = [] if dump_ir is None else [Dump(dump_ir)]
    if print_after is not None:
        observers.append(PrintAfter(print_after))
    with progress(quiet=json) as report:
        ctx = Context(
            target=None if target is None else make_target(target), limit=limit, progress=report
        )
        module = load(model, roots=data_root or ())
        runs = PassManager(pipeline, observers=observers).run(module, ctx)
        report(f"writing {out}", 1.0)
        module.save(out)
    if json:
        as_json({"out": str(out), "passes": runs, "rewrites": dict(ctx.rewrites)})
        return
    table(
        "",
        ["pass", ">rewrites", ">nodes before", ">nodes after", ">time"],
        [(r.text, r.rewrites, r.nodes_before, r.nodes_after, seconds(r.seconds)) for r in runs],
    )
    console.print(f"wrote [bold]{out}[/]")


def bisect(
    model: Model,
    passes: Passes,
    samples: SamplesOption = None,
    tolerance: Annotated[
        float, typer.Option(help="The largest max|a-b| / max|a| that counts as right.")
    ] = 1e-4,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="A target that passes may ask.")
    ] = None,
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
        console.print(f"all {found.rewrites} rewrites are right within {tolerance:g}")
    else:
        console.print(
            f"rewrite {found.number} of {found.rewrites} is the first wrong one: {found.remark}"
        )
        console.print(f"relative error {found.before:.2g} before it, {found.error:.2g} after it")
        console.print(
            f"see it: aigcc opt {model} -p '{passes}' --limit {found.number} -o wrong.onnxtxt"
        )
