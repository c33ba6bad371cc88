"""How the command line shows things: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from aigcc.cli.stages import Stages
from aigcc.errors import CompileError, describe, raised_at
from aigcc.figures import printable
from aigcc.jsontext import to_json


class _Console(Console):
    """A console that leaves closed pipes to the command line, which knows the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise what rich would end the process for."""
        raise BrokenPipeError


console = _Console(highlight=False)
errors = _Console(stderr=True, highlight=False)

_UNWRAPPED = 10_000  # columns of an output that is no terminal: a row stays a line
_LONG_WORD = 24  # longer ones, such as paths of nodes, are broken where a table is too wide
_PROSE = 104  # a line of code in a docstring, and a blank on both sides

_json_output: ContextVar[TextIO | None] = ContextVar("_json_output", default=None)


def fail(error: CompileError) -> None:
    """Print what went wrong, where, what to do, and the command that shows it again."""
    _print_error("error", "bold red", error.what)
    for label, text in (("at", error.at), ("hint", error.hint), ("again", _command())):
        if text:
            _print_error(f"  {label}", "dim", text)


def fail_with_fault(error: Exception) -> None:
    """Print that aigcc itself is at fault, where, and how to see and to report it."""
    _print_error("error", "bold red", f"this is a fault of aigcc: {describe(error)}")
    _print_error("  at", "dim", raised_at(error) or "")
    _print_error("  again", "dim", _command("--traceback"))
    _print_error("  hint", "dim", "please report it with that command's output and the model")


def _command(*options: str) -> str:
    return shlex.join(["aigcc", *options, *sys.argv[1:]])


def _print_error(label: str, style: str, text: str) -> None:
    # soft_wrap: the terminal breaks lines where it likes, and copies them whole
    errors.print(Text.assemble((f"{label}: ", style), printable(text)), soft_wrap=True)


@contextlib.contextmanager
def json_only(*, enabled: bool) -> Iterator[None]:
    """Let nothing but `as_json` reach standard output; what else is printed goes to the errors."""
    if not enabled:
        yield
        return
    token = _json_output.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.reset(token)


def as_json(thing: Any) -> None:
    """Print one JSON document on standard output."""
    print(to_json(thing), file=_json_output.get())


def line(text: str = "") -> None:
    """Print a line that is not wrapped, so that it can be copied."""
    console.print(Text(printable(text)), soft_wrap=True)


def say(notes: Iterable[str]) -> None:
    """Print what has to be known besides, a line a note."""
    for note in notes:
        line(f"note: {note}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns named with a leading '>' are aligned to the right."""
    if title:
        line(title)
    texts = [[printable(str(cell)).replace("\n", "\\n") for cell in row] for row in rows]
    made = Table(header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            min_width=_longest_word(column.lstrip(">"), *(row[index] for row in texts)),
        )
    for row in texts:
        made.add_row(*map(Text, row))
    _print(made, _UNWRAPPED)


def _longest_word(*texts: str) -> int:
    """The columns that a text needs if no word of ordinary length is broken."""
    words = (len(word) for text in texts for word in text.split())
    return min(max(words, default=1), _LONG_WORD)


def markdown(text: str) -> None:
    """Print Markdown."""
    _print(Markdown(text), _PROSE)


def _print(thing: RenderableType, width: int) -> None:
    """Print as wide as the terminal; elsewhere as wide as `width`, without blanks at line ends."""
    if console.is_terminal:
        console.print(thing)
        return
    wide = _Console(highlight=False, width=width)
    with wide.capture() as captured:
        wide.print(thing)
    for text in captured.get().splitlines():
        print(text.rstrip())


@contextlib.contextmanager
def progress(*, plain: bool = False) -> Iterator[Callable[[str, float], None]]:
    """What reports how far the work in the block is, on standard error.

    A bar on a terminal; else, or where `plain` asks for it, a line for each stage that takes long.
    """
    if plain or not errors.is_terminal:
        with Stages(errors.file) as stages:
            yield stages.report
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=errors, transient=True, redirect_stdout=console.is_terminal)
    with bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, fraction: bar.update(task, description=text, completed=fraction)
