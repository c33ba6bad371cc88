"""The errors that aigcc raises: each says what went wrong, where, and what to do."""

from __future__ import annotations

import difflib
import sysconfig
from collections.abc import Iterable

_LISTED = 40  # names in a message: all passes, not all nodes of a model
_INSTALLED = ("<frozen", sysconfig.get_path("stdlib"))


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
    """A sentence that offers the nearest of `known` names, or lists them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    more = len(names) - _LISTED
    listed = ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
    return f"known: {listed}" if names else "there is none"


def describe(error: BaseException) -> str:
    """The type and the first line of an error that aigcc did not raise itself."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def user_line(error: BaseException) -> str | None:
    """`file:line` of the innermost frame that is in no installed package, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    return next((place for place, package in _frames(error) if package is None), None)


def raised_at(error: BaseException) -> str:
    """`file:line` of the innermost frame: in the user's own code, else in aigcc, else anywhere."""
    own = (place for place, package in _frames(error) if package == "aigcc")
    anywhere = (place for place, _ in _frames(error))
    return user_line(error) or next(own, None) or next(anywhere, "an unknown place")


def _frames(error: BaseException) -> list[tuple[str, str | None]]:
    """Each `file:line` of a traceback, innermost first, with its package if that is installed."""
    found: list[tuple[str, str | None]] = []
    trace = error.__traceback__
    while trace is not None:
        file, name = trace.tb_frame.f_code.co_filename, trace.tb_frame.f_globals.get("__name__", "")
        package = name.partition(".")[0]
        is_installed = file.startswith(_INSTALLED) or "site-packages" in file or package == "aigcc"
        found.insert(0, (f"{file}:{trace.tb_lineno}", package if is_installed else None))
        trace = trace.tb_next
    return found
