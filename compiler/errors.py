"""The errors that aigcc raises: each says what went wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompileError(Exception):
    """A failure that a user can act on.

    Args:
        what: One sentence that says what went wrong.
        at: Where: a file, a node, a value, a pass, or a line of text.
        hint: What to do about it, or the command that shows more.
    """

    def __init__(self, what: str, *, at: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.at = at
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.at:
            lines.append(f"  at: {self.at}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class ModelError(CompileError):
    """A model file cannot be read, or what it holds is not a legal model."""


class VerifyError(ModelError):
    """The IR breaks one of its invariants (see `aigcc.ir.verify`)."""


class PipelineError(CompileError):
    """A pipeline text, a pass name or a pass option is wrong."""


class PassError(CompileError):
    """A pass failed, or left the module in a state that does not verify."""


class TargetError(CompileError):
    """A target cannot lower the module, or the library it needs is missing."""


class SampleError(CompileError):
    """Samples do not fit the model's inputs, or cannot be read."""


class ArtifactError(CompileError):
    """An artifact folder is incomplete, altered, or cannot be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of `known` names, or lists them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + ", ".join(names)
