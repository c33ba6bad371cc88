"""`aigcc build`: a model in, an artifact out, and a table of what that changed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigcc.analysis.budget import NAMED
from aigcc.cli.arguments import (
    DataRoots,
    DumpIr,
    Json,
    Model,
    PrintAfter,
    SamplesOption,
    Set,
    Threads,
    complete_pipeline,
    complete_target,
    dump_folder,
)
from aigcc.cli.render import as_json, line, progress, say, table
from aigcc.errors import CompileError
from aigcc.figures import number, seconds, size

if TYPE_CHECKING:
    from aigcc.driver import Build


_EDGES = {
    "refused": "that the model itself refuses",
    "rounded": "where it overflows or loses all digits itself",
    "spread": "where a NaN or an infinity reaches more of the outputs",
    "unsupported": "that ONNX Runtime has no kernel for afterwards",
}


class Verify(StrEnum):
    """How much a build checks."""

    off = "off"
    structure = "structure"
    numeric = "numeric"


VerifyLevel = Annotated[
    Verify,
    typer.Option(
        metavar="LEVEL",
        help="numeric: check the IR after every pass, run both models and compare; "
        "structure: check the IR only; off: check nothing but the input.",
    ),
]


def build(
    model: Model,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            autocompletion=complete_target,
            help="For example mobile, gpu, or 'mobile(weights=fp16)'; see aigcc targets.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The artifact's new folder.")
    ],
    passes: Annotated[
        str | None,
        typer.Option(
            "--passes",
            "-p",
            metavar="PIPELINE",
            autocompletion=complete_pipeline,
            help='Such as "canonicalize,fuse", instead of the target\'s own; see aigcc passes.',
        ),
    ] = None,
    samples: SamplesOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BOUNDS",
            help="Quantise as far as this allows, as measured: sqnr>=30, psnr>=40, cosine>=0.999, "
            "perplexity<=+1%, size<=0.3x, latency<=0.5x; several with commas.",
        ),
    ] = None,
    smaller: Annotated[
        bool, typer.Option("--smaller", help=f"As --budget '{NAMED['smaller']}'.")
    ] = False,
    faster: Annotated[
        bool, typer.Option("--faster", help=f"As --budget '{NAMED['faster']}'.")
    ] = False,
    best: Annotated[bool, typer.Option("--best", help=f"As --budget '{NAMED['best']}'.")] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Quantise as a recipe.toml of an earlier build says, unmeasured."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLES",
            help="More samples, to calibrate on, so that --samples judge what they did not make.",
        ),
    ] = None,
    set: Set = None,
    dump_ir: DumpIr = None,
    print_after: PrintAfter = None,
    verify: VerifyLevel = Verify.numeric,
    jobs: Threads = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an artifact that lies at --out.")
    ] = False,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="Do not time the original and the artifact.")
    ] = False,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Build a model for a device.

    Example: `aigcc build model.onnx --target mobile -o out`
    """
    from aigcc import driver
    from aigcc.freeze import parse_settings
    from aigcc.pipeline import dump
    from aigcc.pipeline.manager import Observer

    observers: list[Observer] = []
    if dump_ir is not None:
        observers.append(dump.Dump(dump_folder(dump_ir, out)))
    if print_after is not None:
        observers.append(dump.PrintAfter(print_after))
    with progress(plain=json) as report:
        made = driver.build(
            model,
            target,
            out,
            passes=passes,
            samples=samples,
            calibration=calibration,
            budget=_one_budget(budget, {"smaller": smaller, "faster": faster, "best": best}),
            recipe=recipe,
            freeze=parse_settings(set or ()),
            observers=observers,
            verify=verify.value,
            latency=not no_latency,
            overwrite=overwrite,
            threads=jobs,
            roots=data_root or (),
            progress=report,
        )
    facts = _facts(made)
    if json:
        as_json(facts)
    else:
        _show(facts, numeric=verify is Verify.numeric)


COMMANDS = (build,)


def _one_budget(given: str | None, named: Mapping[str, bool]) -> str | None:
    """The budget that was asked for, if one was."""
    asked = [name for name, wanted in named.items() if wanted]
    if len(asked) + (given is not None) > 1:
        names = [f"--{name}" for name in asked] + ["--budget"] * (given is not None)
        raise CompileError(
            f"{' and '.join(names)} are budgets, and a build has one",
            hint="give one of them, or all bounds to --budget, with commas",
        )
    return NAMED[asked[0]] if asked else given


def _facts(made: Build) -> dict[str, Any]:
    from aigcc.passes.quant.summary import summary_of, tried

    manifest = made.artifact.manifest
    return {
        "artifact": str(made.artifact.folder),
        "target": manifest["target"],
        "entry": manifest["entry"],
        "nodes": manifest["nodes"],
        "bytes": manifest["bytes"],
        "latency": manifest["latency"],
        "quality": manifest["quality"],
        "edges": manifest["edges"],
        "quantisation": summary_of(manifest["remarks"]),
        "tried": tried(manifest["remarks"]),
        "passes": [dataclasses.asdict(run) for run in made.runs],
        "facts": manifest["facts"],
    }


def _show(facts: dict[str, Any], *, numeric: bool) -> None:
    rows = [
        _row("size", facts["bytes"]["before"], facts["bytes"]["after"], size),
        _row("nodes", facts["nodes"]["before"], facts["nodes"]["after"], str),
    ]
    if facts["latency"] is not None:
        before, after = facts["latency"]["before"], facts["latency"]["after"]
        rows.append(
            (
                "latency",
                seconds(before["median"]),
                seconds(after["median"]),
                f"{after['ratio']:.2f}x ({after['ratio_low']:.2f} to {after['ratio_high']:.2f})",
            )
        )
    table(facts["target"], ["", ">before", ">after", ">after / before"], rows)
    if facts["quantisation"]:
        line(f"\n{facts['quantisation']}")
        for text in facts["tried"] if facts["quantisation"].startswith("0 of") else ():
            line(f"  {text}")
        if facts["latency"] is not None and facts["latency"]["after"]["ratio_low"] > 1:
            line("note: it did not pay: the program is slower than the model as it was")
    if facts["latency"] is not None and facts["latency"]["notes"]:
        line()
        for text in facts["latency"]["notes"]:
            line(f"latency: {text}")
    line()
    if facts["quality"] is None:
        reason = "this machine cannot run the artifact" if numeric else "as --verify asks"
        line(f"quality: not measured, {reason}")
    else:
        show_quality(facts["quality"])
    show_edges(facts["edges"])
    folder = shlex.quote(facts["artifact"])
    line(f"\nwrote {folder}\nrun it: python {folder}/example.py\nread it: {folder}/report.html")


def show_quality(quality: dict[str, Any]) -> None:
    """Print what `aigcc.quality.Quality.describe` says."""
    kind = "synthetic samples" if quality["synthetic"] else "samples"
    what = "quality" if quality["is_lowered"] else "quality before lowering"
    table(
        f"{what} against the original, worst of {quality['count']} {kind}",
        ["output", ">SQNR dB", ">cosine", ">max |a-b|", ">relative"],
        [(o["name"], *_measures(o)) for o in quality["outputs"]],
    )
    if not quality["is_lowered"]:
        line("note: this machine cannot run the program, so the module that it was made of ran")
    if quality["noise"]:
        line(f"note: {quality['noise']}")
    if quality["calibrated"]:
        line(
            f"note: activations were calibrated on {quality['calibrated']} of these samples, "
            "so others may come out worse"
        )
    say(quality["notes"])
    for o in quality["outputs"]:
        if not o["elements"]:
            line(f"note: {o['name']} is empty for all samples, so nothing is known of it")
        if o["not_finite"]:
            line(f"note: {o['not_finite']} values of {o['name']} are NaN or infinite in both")


def show_edges(edges: Mapping[str, Any] | None) -> None:
    """Print what `aigcc.edge_check.EdgeReport.describe` says, in a line."""
    if edges is None:
        return
    same, others = edges["same"], {kind: edges[kind] for kind in _EDGES if edges[kind]}
    count = len(same) + sum(map(len, others.values()))
    parts = [f"{len(same)} of {count} come out the same"] if count else []
    parts += [f"{len(names)} {_EDGES[kind]}" for kind, names in others.items()]
    if edges["left_out"]:
        parts.append(f"{'others' if count else 'all'} are left out: {edges['left_out']}")
    line(f"edge inputs: {'; '.join(parts) or 'there are none'}")


def _measures(output: dict[str, Any]) -> tuple[str, ...]:
    if not output["elements"]:
        return ("-",) * 4
    return (
        number(output["sqnr"], ".1f"),
        number(output["cosine"], ".6f"),
        number(output["max_abs"], ".2g"),
        number(output["relative"], ".2g"),
    )


def _row(name: str, before: float, after: float, show: Any) -> tuple[str, str, str, str]:
    return name, show(before), show(after), f"{after / before:.2f}x" if before else ""
