"""`aigcc sensitivity`: what quantising each node costs, and quality against bits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigcc.cli.arguments import (
    DataRoots,
    Json,
    Model,
    SamplesOption,
    Threads,
    check_free_file,
    complete_target,
    read_page,
)
from aigcc.cli.render import as_json, line, progress, say, table
from aigcc.figures import amount, number

if TYPE_CHECKING:
    from aigcc.ir.module import Module
    from aigcc.pipeline.context import Context
    from aigcc.samples import Samples
    from aigcc.sensitivity import Curve, Point

_WIDTH, _HEIGHT = 60, 14


def sensitivity(
    model: Model,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            autocompletion=complete_target,
            help="Whose schemes are tried, after its pipeline; without it, portable ones on the "
            "model as it is.",
        ),
    ] = None,
    samples: SamplesOption = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page that needs nothing else."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Show so many nodes.")] = 20,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Measure what quantising each node costs, and plot quality against bits.

    Example: `aigcc sensitivity model.onnx --samples inputs/ --html curve.html`
    """
    from aigcc.driver import load
    from aigcc.ir.storage.atomic import replacing
    from aigcc.noise import describe_noise
    from aigcc.pipeline.context import Context
    from aigcc.report.sensitivity import render
    from aigcc.samples import load_samples
    from aigcc.sensitivity import measure_curve
    from aigcc.targets import make_target

    check_free_file(html, "report of aigcc", read_page)
    with progress(plain=json) as report:
        device = None if target is None else make_target(target)
        module = load(model, roots=data_root or ())
        feeds = load_samples(samples, module)
        ctx = Context(target=device, samples=feeds, threads=jobs, progress=report)
        curve = measure_curve(_prepared(module, ctx), ctx)
    if html is not None:
        page = render(curve, model, target, feeds.source, synthetic=feeds.synthetic)
        with replacing(html) as (file,):
            file.write(page.encode())
    noise = describe_noise(module)
    if json:
        facts = feeds.describe()
        as_json({**facts, "noise": noise, **dataclasses.asdict(curve)})
        return
    _show(curve, top, feeds, noise)
    if html is not None:
        line(f"\nwrote {html}")


def _prepared(module: Module, ctx: Context) -> Module:
    """The module as a build for the target would quantise it."""
    from aigcc.passes.quant.raising import raised
    from aigcc.pipeline.manager import PassManager
    from aigcc.pipeline.text import parse

    if ctx.target is None or ctx.samples is None:
        return module
    module = ctx.target.prepare(module, ctx)
    ctx.samples = ctx.samples.fitted(module)
    PassManager(parse(ctx.target.pipeline())).run(module, ctx)
    return raised(module, ctx)


def _show(curve: Curve, top: int, feeds: Samples, noise: str) -> None:
    origins = [c for c in ("module", "source") if any(getattr(n, c) for n in curve.nodes)]
    table(
        f"SQNR in dB with one node quantised, on the first of {feeds.source}",
        ["node", "op", ">weights", *(f">{name}" for name in curve.schemes), *origins],
        [
            (
                *(node.name, node.op, amount(node.elements)),
                *(number(node.sqnr.get(name), ".1f") for name in curve.schemes),
                *(getattr(node, column) or "" for column in origins),
            )
            for node in curve.nodes[:top]
        ],
    )
    if top < len(curve.nodes):
        line(f"{top} of {len(curve.nodes)} nodes; --top {len(curve.nodes)} shows all")
    for name, reason in curve.skipped.items():
        line(f"{name} was not tried: {reason}")
    if curve.inside:
        line(f"left as they are: {curve.inside} nodes in sub-graphs and functions")
    say([*feeds.notes, *([noise] if noise else [])])
    where = "" if feeds.synthetic else f"{curve.samples} samples of "
    table(
        f"\nthe whole model on {where}{feeds.source}, nodes in the order of least error per bit",
        [">bits per weight", ">SQNR dB", "nodes"],
        [
            (
                f"{point.bits:.2f}",
                number(point.sqnr, ".1f"),
                ", ".join(f"{count} {name}" for name, count in point.schemes.items()),
            )
            for point in curve.points
        ],
    )
    plotted = plot(curve.points)
    if plotted:
        line("\nSQNR dB")
        for text in plotted:
            line(text)
        line(f"{'bits per weight':>{_WIDTH + 9}}")


def plot(points: Sequence[Point]) -> list[str]:
    """Quality over bits as lines of text: `*` was measured, `.` lies between."""
    known = sorted((p.bits, p.sqnr) for p in points if math.isfinite(p.sqnr))
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return []
    low = min(quality for _, quality in known)
    high = max(max(quality for _, quality in known), low + 1)
    first, last = known[0][0], known[-1][0]
    rows = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]

    def put(bits: float, quality: float, mark: str) -> None:
        column = round((bits - first) / (last - first) * _WIDTH)
        rows[round((high - quality) / (high - low) * _HEIGHT)][column] = mark

    for (left, a), (right, b) in itertools.pairwise(known):
        for step in range(_WIDTH):
            put(left + (right - left) * step / _WIDTH, a + (b - a) * step / _WIDTH, ".")
    for bits, quality in known:
        put(bits, quality, "*")
    ticks = (0, _HEIGHT // 2, _HEIGHT)
    labels = {tick: f"{high - (high - low) * tick / _HEIGHT:.1f}" for tick in ticks}
    lines = [f"{labels.get(i, ''):>6} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    ends = f"{first:<{_WIDTH - 4}.2f}{last:>5.2f}"
    return [*lines, f"{'':>6} +{'-' * (_WIDTH + 1)}", f"{'':>8}{ends}"]


COMMANDS = (sensitivity,)
