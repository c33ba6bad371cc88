"""Pipelines as text: `canonicalize,fuse(attention=false)` to and from lists of passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aigcc.options import build, read_calls, show
from aigcc.pipeline.manager import Pass


def parse(text: str, catalogue: Mapping[str, type[Pass]] | None = None) -> list[Pass]:
    """The passes that a pipeline text names.

    Args:
        text: `name(option=value,...),name,...`; spaces are free.
        catalogue: The passes that may be named; those of aigcc by default. Add your own with
            `PASSES | {"mine": Mine}`.

    Raises:
        PipelineError: unknown pass or option, a value of the wrong type, or a syntax error.
    """
    if catalogue is None:
        from aigcc.passes import PASSES

        catalogue = PASSES
    return [build(call, catalogue, "pass") for call in read_calls(text)]


def format(passes: Iterable[Pass], *, explicit: bool = False) -> str:
    """The text of a pipeline; `explicit` writes the options that have their default too."""
    return ",".join(show(current, current.name, explicit=explicit) for current in passes)
