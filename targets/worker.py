"""Runs a vendor's compiler in a process of its own, so that its crashes and prints stay there.

The child is `python -m aigcc.targets.worker MODULE:FUNCTION`. It reads a JSON request from its
standard input and answers with JSON lines: `{"progress": [text, fraction]}`, and at the end
`{"result": ...}` or `{"error": {...}}`. What the vendor's library prints goes to a log.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any

from aigcc.errors import TargetError

Progress = Callable[[str, float], None]

_SHOWN_LINES = 12


class Died(TargetError):
    """The child crashed."""


def call(function: str, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Call `module:function(request, progress)` in a child process.

    Args:
        function: A function that takes a JSON object and a progress callback and returns a JSON
            object. What it raises with `at` and `hint` reaches the user as it is.
        request: Its argument.
        progress: Told what the child is at.

    Raises:
        TargetError: the function failed or the child died; with the end of what was printed.
    """
    command = [sys.executable, "-m", "aigcc.targets.worker", function]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8"
        )
        try:
            answer = _converse(child, request, progress)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result
        raise _failure(answer.get("error"), code, _tail(log), function)


def _converse(
    child: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    try:
        json.dump(request, child.stdin)
        child.stdin.close()
    except BrokenPipeError:
        return {}
    answer: dict[str, Any] = {}
    for line in child.stdout:
        message = json.loads(line)
        if "progress" in message:
            progress(*message["progress"])
        else:
            answer = message
    return answer


def _tail(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.rstrip() for line in log if line.strip()]
    return "\n      ".join(lines[-_SHOWN_LINES:])


def _failure(
    error: Mapping[str, str] | None, code: int, printed: str, function: str
) -> TargetError:
    if error is not None:
        return TargetError(error["what"], at=error["at"] or None, hint=error["hint"] or None)
    died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    what, at = f"the device's compiler died ({died})", printed or function
    if code != -signal.SIGKILL:
        return Died(what, at=at, hint="this is a fault of that compiler: write this otherwise")
    what += ", which is how a system that is out of memory ends a process"
    return TargetError(what, at=at, hint="the model may be too large for this machine")


def _serve(function: str) -> None:
    """The child's side. Anything printed from here on goes to the log, not to the parent."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Mapping[str, Any]) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        traceback.print_exception(kind, error, trace)
        named = getattr(error, "what", None) or str(error)
        what = named if hasattr(error, "hint") else f"{kind.__name__}: {named}"
        details = {key: getattr(error, key, None) or "" for key in ("at", "hint")}
        send({"error": {"what": what.strip(), **details}})

    sys.excepthook = report
    module, _, name = function.partition(":")
    run = getattr(importlib.import_module(module), name)
    request = json.load(sys.stdin)
    send({"result": run(request, lambda text, fraction: send({"progress": [text, fraction]}))})


if __name__ == "__main__":
    _serve(sys.argv[1])
