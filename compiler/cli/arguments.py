"""The arguments and options that several commands share, with one wording for each."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from aigcc.errors import CompileError


def complete_target(incomplete: str) -> list[str]:
    """What a target's name may go on with, for the shell."""
    from aigcc.targets import TARGETS

    return [name for name in TARGETS if name.startswith(incomplete)]


def complete_pipeline(incomplete: str) -> list[str]:
    """What a pipeline may go on with, for the shell: names of passes behind the last comma."""
    from aigcc.passes import PASSES

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in PASSES if name.startswith(last)]


def at_most_one_a_core(wanted: int | None) -> int | None:
    """As many threads as are wanted, where there are as many cores."""
    from aigcc.pipeline.context import usable_threads

    return usable_threads(wanted)


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
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Freeze an input to a number, true or false, a list such as [1,2], or a .npy file; "
        "what depends on it alone is folded, and branches for other values go. May be repeated.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        autocompletion=complete_target,
        help="A target that passes may ask.",
    ),
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
        "--jobs",
        "-j",
        min=1,
        metavar="N",
        callback=at_most_one_a_core,
        help="Threads that running and lowering may use, at most one a core.",
    ),
]


def dump_folder(given: str, out: Path) -> Path:
    """The folder that `--dump-ir` means: `given`, or `OUT-ir` where that is empty."""
    if given:
        return Path(given)
    place = out.resolve()
    return place.with_name(f"{place.stem if place.suffix.startswith('.onnx') else place.name}-ir")


def check_free_file(
    file: Path | None, what: str, read: Callable[[Path], object], source: str = ""
) -> None:
    """Do nothing if a file can be written: there is none, or one of its kind; None is no file.

    Args:
        file: Which.
        what: Its kind, such as "model".
        read: Raises for files of other kinds.
        source: What the command reads, which it must not write.

    Raises:
        CompileError: its folder is missing, or what would be replaced is something else.
    """
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        hint = f"make it first: mkdir -p {shlex.quote(str(file.parent))}"
        raise CompileError("the folder is missing", at=str(file), hint=hint)
    if not file.exists():
        return
    if Path(source).exists() and file.samefile(source):
        raise CompileError(
            f"{file} is the model that is read, and would be replaced",
            at="--out",
            hint="give the result a name of its own",
        )
    try:
        read(file)
    except (CompileError, OSError, ValueError):
        raise CompileError(
            f"{file} is no {what}, and would be lost",
            at=str(file),
            hint="choose another file, or remove this one yourself",
        ) from None


def read_page(path: Path) -> None:
    """Do nothing if a file is a page that aigcc wrote.

    Raises:
        ValueError: it is not.
    """
    if "- aigcc</title>" not in path.read_text("utf-8"):
        raise ValueError(f"{path} is somebody else's")
