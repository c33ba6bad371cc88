"""How the command line shows things: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from aigcc.errors import CompileError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def fail(error: CompileError) -> None:
    """Print what went wrong, where, what to do, and the command that shows it again."""
    errors.print(f"[bold red]error:[/] {escape(error.what)}")
    if error.at:
        errors.print(f"  [dim]at:[/] {escape(error.at)}")
    if error.hint:
        errors.print(f"  [dim]hint:[/] {escape(error.hint)}")
    errors.print(f"  [dim]again:[/] {escape(shlex.join(['aigcc', *sys.argv[1:]]))}")


def as_json(thing: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(_plain(thing), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(thing: Any) -> Any:
    """`thing` in JSON's own types; numbers that JSON lacks become text."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: _plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, dict):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [_plain(item) for item in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)
    if isinstance(thing, Path):
        return str(thing)
    return thing


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns named with a leading '>' are aligned to the right."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    console.print(made)


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def amount(count: float) -> str:
    """A plain count for people: 124.4M."""
    for unit in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f}T"


def seconds(duration: float) -> str:
    """A duration for people."""
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1e3:.2f} ms"


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on standard error while the block runs; yields what reports to it."""
    if quiet or not errors.is_terminal:
        yield lambda text, fraction: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, fraction: bar.update(task, description=text, completed=fraction)
