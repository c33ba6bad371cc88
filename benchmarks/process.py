"""Run a command as a whole process: wall time, and the peak of its anonymous memory."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Finished:
    """What one run of a command cost.

    Attributes:
        seconds: Wall time from start to exit.
        anonymous: Largest RssAnon of the process and its children, in bytes, polled every 5 ms.
        code: Exit status.
        output: Its standard output and error together.
    """

    seconds: float
    anonymous: int
    code: int
    output: str


def run(command: Sequence[str], log: Path) -> Finished:
    """Run `command` to its end, writing what it prints to `log`."""
    peak, started = 0, time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(_anonymous(pid) for pid in _family(process.pid)))
            time.sleep(0.005)
    seconds = time.perf_counter() - started
    return Finished(seconds, peak, process.returncode, log.read_text(errors="replace"))


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        found.extend(int(child) for child in children)
    return found


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # the process has ended between listing and reading
    return 0
