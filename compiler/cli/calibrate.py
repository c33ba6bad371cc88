"""`aigcc calibrate`: what samples show of the activations that would be quantised."""

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
    at_most_one_a_core,
    check_free_file,
)
from aigcc.cli.render import as_json, line, progress, say, table
from aigcc.errors import CompileError
from aigcc.figures import number

if TYPE_CHECKING:
    from aigcc.analysis.calibration.calibrate import Buckets
    from aigcc.analysis.calibration.statistics import Statistics
    from aigcc.ir.module import Module

_LEVELS = 256


@dataclasses.dataclass(frozen=True)
class _Row:
    """An activation.

    Attributes:
        value: Its name.
        reader: The first node that multiplies it with a constant weight.
        op: What that is.
        low: Smallest number.
        high: Largest number.
        rms: Root of the mean square.
        sqnr: In dB, of rounding to 256 levels from the smallest to the largest number.
        shares: By bucket, the part of that range which its samples use; None without any.
    """

    value: str
    reader: str
    op: str
    low: float
    high: float
    rms: float
    sqnr: float
    shares: tuple[float | None, ...]


def calibrate(
    model: Model,
    samples: SamplesOption = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="INPUT=N|INPUT=A,B",
            help="Also by the value of an input, such as a sampler's time step: in N buckets of "
            "equally many samples, or in those between the bounds A, B and so on.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Also write all statistics, as .npz."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Show so many values.")] = 20,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            callback=at_most_one_a_core,
            help="Samples that run at once, at most one a core.",
        ),
    ] = 1,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Show the ranges of the activations that would be quantised, hardest first.

    Example: `aigcc calibrate unet.onnx --samples trajectory/ --by timestep=4`
    """
    from aigcc.analysis.calibration import calibrate as calibration
    from aigcc.analysis.calibration.result import Calibration
    from aigcc.driver import load
    from aigcc.samples import load_samples

    check_free_file(out, "calibration", Calibration.load)
    buckets = None if by is None else _buckets(by)
    with progress(plain=json) as report:
        module = load(model, roots=data_root or ())
        feeds = load_samples(samples, module)
        readers = _readers(module)
        found = calibration.calibrate(
            module, feeds, dict.fromkeys(readers), buckets=buckets, jobs=jobs, progress=report
        )
    if out is not None:
        found.save(out)
    rows = [
        _row(name, *readers[name], found.tensors[name], parts)
        for name, parts in found.buckets.items()
    ]
    rows.sort(key=lambda row: row.sqnr)
    if json:
        facts = {**feeds.describe(), "edges": found.edges}
        as_json({**facts, "activations": [dataclasses.asdict(row) for row in rows]})
        return
    name = "" if buckets is None else buckets.input
    _show(rows[:top], feeds.source, _bounds(name, found.edges))
    if top < len(rows):
        line(f"{top} of {len(rows)} activations; --top {len(rows)} shows all")
    say(feeds.notes)
    if out is not None:
        line(f"\nwrote {out}")


def _buckets(text: str) -> Buckets:
    from aigcc.analysis.calibration.calibrate import Buckets

    name, _, rest = text.partition("=")
    try:
        edges = tuple(float(part) for part in rest.split(","))
    except ValueError:
        edges = ()
    if not name or not all(map(math.isfinite, edges)) or not edges:
        raise CompileError(
            "this names no buckets",
            at=f"--by {text}",
            hint="such as timestep=4 or timestep=250,500",
        )
    if len(edges) == 1 and rest.isdecimal():
        return Buckets(name, count=int(rest))
    return Buckets(name, edges)


def _readers(module: Module) -> dict[str, tuple[str, str]]:
    """By activation, the first node of the main graph that multiplies it with a constant weight."""
    from aigcc.passes.quant.placement import weight_of

    found: dict[str, tuple[str, str]] = {}
    for node in module.graph:
        value = node.inputs[0] if weight_of(node) is not None else None
        if value is not None and value.name and not value.is_initializer():
            found.setdefault(value.name, (node.name or "", node.op_type))
    if not found:
        raise CompileError(
            "no convolution or matrix product of the main graph has a constant weight",
            hint="if they have when constants are folded: aigcc opt MODEL -p canonicalize",
        )
    return found


def _row(
    name: str, reader: str, op: str, statistics: Statistics, parts: Sequence[Statistics]
) -> _Row:
    reach = statistics.high - statistics.low
    noise = (reach / (_LEVELS - 1)) ** 2 / 12
    power = statistics.mean_square
    sqnr = 10 * math.log10(power / noise) if noise > 0 and power > 0 else math.inf
    shares = [(p.high - p.low) / reach if p.count and reach > 0 else None for p in parts]
    return _Row(
        name, reader, op, statistics.low, statistics.high, math.sqrt(power), sqnr, tuple(shares)
    )


def _bounds(name: str, edges: Sequence[float]) -> list[str]:
    """What the buckets are called; nothing if there is one."""
    if not edges:
        return []
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    return [f"{name} < {edges[0]:g}", *between, f"from {edges[-1]:g}"]


def _show(rows: Sequence[_Row], source: str, bounds: Sequence[str]) -> None:
    table(
        f"activations with {source}"
        + ("; by bucket, the part of the range that it uses" if bounds else ""),
        ["value", "read by", "op", ">lowest", ">highest", ">rms", ">int8 SQNR dB"]
        + [f">{bound}" for bound in bounds],
        [
            (
                *(row.value, row.reader, row.op),
                *(number(x, ".3g") for x in (row.low, row.high, row.rms)),
                number(row.sqnr, ".1f"),
                *(["" if s is None else f"{s:.0%}" for s in row.shares] if bounds else ()),
            )
            for row in rows
        ],
    )


COMMANDS = (calibrate,)
