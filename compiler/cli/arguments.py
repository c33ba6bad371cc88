"""The arguments and options that several commands share, with one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigcc.errors import CompileError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=".onnx, .onnxtxt, .pt2, or package.module:callable that returns "
        "(nn.Module, inputs[, dynamic shapes]).",
    ),
]
Program = Annotated[
    str, typer.Argument(metavar="ARTIFACT|MODEL", help="An artifact's folder, or a model.")
]
SamplesOption = Annotated[
    str | None,
    typer.Option(
        "--samples",
        "-s",
        help="A folder of .npz files (one a sample) or of .npy files (one an input), one .npz, "
        "or module:callable that yields feeds. Without it, inputs are synthetic, and figures say "
        "so.",
        metavar="SAMPLES",
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", "-t", metavar="TARGET", help="A target that passes may ask."),
]
DumpIr = Annotated[
    str | None,
    typer.Option(
        "--dump-ir",
        metavar="[=DIR]",
        help="Write the IR as text after every pass that changed it: into DIR, or OUT-ir.",
    ),
]
PrintAfter = Annotated[
    str | None,
    typer.Option("--print-after", metavar="PASS", help="Print the IR after a pass."),
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
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="Threads that running and lowering may use."
    ),
]


def dump_folder(given: str, out: Path) -> Path:
    """The folder that `--dump-ir` means: `given`, or `OUT-ir` where that is empty."""
    if given:
        return Path(given)
    place = out.resolve()
    return place.with_name(f"{place.stem if place.suffix.startswith('.onnx') else place.name}-ir")


def check_folder(file: Path | None) -> None:
    """Do nothing if a file can be written where it shall be; None is no file.

    Raises:
        CompileError: its folder is missing.
    """
    if file is not None and not file.absolute().parent.is_dir():
        raise CompileError("the folder is missing", at=str(file), hint="make it first")
