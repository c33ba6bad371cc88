"""How long the nodes of a program take in ONNX Runtime, as it counts itself."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

from aigcc.runtime import OrtSession
from aigcc.target import Feeds, NodeTime

_RUNS = 5
_KERNEL = "_kernel_time"


def profile(path: Path, feeds: Feeds, threads: int | None = None) -> list[NodeTime]:
    """The average over some runs, after one that does not count.

    Raises:
        CompileError: the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as folder:
        session = OrtSession(path, threads=threads, profile=Path(folder) / "run")
        for _ in range(1 + _RUNS):
            session.run(feeds)
        events = json.loads(session.end_profile().read_text("utf-8"))
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            key = name.removesuffix(_KERNEL), event["args"].get("op_name", "")
            times[key].append(event["dur"] * 1e-6)
    # a node in a loop comes several times a run
    return [
        NodeTime(name, kind, "", sum(taken[len(taken) // (1 + _RUNS) :]) / _RUNS)
        for (name, kind), taken in times.items()
    ]
