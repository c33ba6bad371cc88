"""The command line: one app, and the place where every failure becomes a sentence."""

from __future__ import annotations

import os
import signal
import sys

import typer

from aigcc.cli import build, measure, optimise, show
from aigcc.cli.render import fail
from aigcc.errors import CompileError

app = typer.Typer(
    name="aigcc",
    help="A compiler for generative models: nn.Module, .pt2 and ONNX in; "
    "ONNX Runtime, TensorRT and TVM out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (build, optimise, measure, show):
    commands.register(app)


class _Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that nothing on the way keeps it."""


def _stop(number: int, frame: object) -> None:
    raise _Stopped(number)


def main() -> None:
    """Run the command line.

    Exits with 0, 1 (a failure that was explained), 2 (usage), or 128 + the signal that ended it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except CompileError as error:
        fail(error)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has closed it: that is its choice and no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except _Stopped as stopped:
        print("\nstopped; nothing half-written was left behind", file=sys.stderr)
        sys.exit(128 + stopped.args[0])
