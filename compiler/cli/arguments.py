"""The arguments and options that several commands share, with one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=".onnx, .onnxtxt, .pt2, or package.module:callable that returns "
        "(nn.Module, inputs[, dynamic shapes]).",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.", metavar="PATH")]
SamplesOption = Annotated[
    str | None,
    typer.Option(
        "--samples",
        "-s",
        help="A folder of .npz files, one .npz, or module:callable that yields feeds. "
        "Without it, inputs are synthetic, and figures say so.",
        metavar="SAMPLES",
    ),
]
DataRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="A folder besides its own in which a .onnxtxt may name data; may be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Threads = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Threads that running and lowering may use."),
]
