"""Processes that answer line by line, and that may crash or hang: they are started anew."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT = 120.0
"""Seconds after which a process is said to hang; the slowest case takes two."""


class Lost(Exception):
    """The process that was asked has ended, or does not answer."""


class Server:
    """A process that is asked by lines of JSON.

    Args:
        command: How it is started, when it is first asked and after it was lost.
        limit: Seconds that it may take for one answer, its start aside.
    """

    def __init__(self, command: Sequence[str], limit: float = LIMIT) -> None:
        self._command = command
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Any) -> Any:
        """The answer to a question.

        Raises:
            Lost: it crashed (its argument is "crash"), or hangs ("hang").
        """
        is_new = self._process is None
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise Lost("crash") from None
        ready, _, _ = select.select([process.stdout], [], [], self._limit * (2 if is_new else 1))
        line = process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise Lost("crash" if ready else "hang")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def in_parallel(
    servers: Sequence[Server], questions: Iterable[T], ask: Callable[[Server, T], Any]
) -> Iterator[tuple[T, Any]]:
    """Each question with its answer, as they come; one thread for each server."""
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[T, Any] | BaseException] = queue.SimpleQueue()
    count = 0
    for question in questions:
        waiting.put(question)
        count += 1

    def work(server: Server) -> None:
        try:
            while True:
                question = waiting.get_nowait()
                done.put((question, ask(server, question)))
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by who asked
            done.put(error)

    threads = [threading.Thread(target=work, args=(s,), daemon=True) for s in servers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for server in servers:
            server.close()
