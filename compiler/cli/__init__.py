"""The command line: where every failure becomes a sentence, and every end an exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator

from aigcc.errors import CompileError

_FAULT = 70  # what sysexits.h calls an internal software error


class Stopped(BaseException):
    """Something asked the process to end; not an Exception, so that nothing on the way keeps it.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def main() -> None:
    """Run the command line on `sys.argv`.

    Exits with 0; 1 for a failure that was explained; 2 for wrong usage; 70 for a fault of aigcc; or
    128 and the number of the signal that ended it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of any script, on any terminal
    warnings.showwarning = _show_warning
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # `aigcc.ir.verify` says it better
    try:
        with _stoppable():
            from aigcc.cli.app import app

            app(prog_name="aigcc")
    except Stopped as stopped:
        if stopped.number == signal.SIGPIPE:
            # Whoever read our output has closed it: that is its choice and no failure of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print("\nstopped; nothing half-written was left behind", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except Exception as error:
        raise SystemExit(_explain(error)) from error


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn the signals that ask a process to end into `Stopped`, unless they are ignored."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: Exception) -> int:
    """Say what failed, and return the exit code."""
    from aigcc.cli.render import fail, fail_with_fault

    if "--traceback" in sys.argv:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        error = CompileError(
            f"there is not enough memory: {error}" if str(error) else "there is not enough memory",
            hint="use a machine with more memory, smaller samples, or a smaller model",
        )
    if isinstance(error, OSError) and error.strerror:
        what = "a file cannot be used" if error.filename else "output cannot be written"
        error = CompileError(f"{what}: {error.strerror}", at=error.filename and str(error.filename))
    if isinstance(error, CompileError):
        fail(error)
        return 1
    fail_with_fault(error)
    return _FAULT
