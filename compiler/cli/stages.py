"""Progress without a terminal: a line for each stage, with the time since the start."""

from __future__ import annotations

import threading
import time
from typing import IO

_LASTS = 1.0  # seconds after which a stage is worth a line
_EVERY = 10.0  # seconds after which there is a line, even if stages are short


class Stages:
    """Prints what is going on, and not more often than somebody can read.

    A stage gets a line once it has lasted a second. Where many short ones follow each other, such
    as the timing of nodes, one in ten seconds gets a line.

    Args:
        file: Where lines go.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._started = self._since = self._printed = time.monotonic()
        self._text = self._last = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stages:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def report(self, text: str, fraction: float) -> None:
        """Take in what is being done now; `fraction` needs a bar."""
        with self._lock:
            if text != self._text:
                self._text, self._since = text, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(_LASTS / 4):
            with self._lock:
                try:
                    self._look(time.monotonic())
                except OSError:  # nobody reads what is printed; the work goes on
                    return

    def _look(self, now: float) -> None:
        is_due = now - self._since >= _LASTS or now - self._printed >= _EVERY
        if not self._text or self._text == self._last or not is_due:
            return
        self._last, self._printed = self._text, now
        print(f"{now - self._started:7.1f} s  {self._text}", file=self._file, flush=True)
