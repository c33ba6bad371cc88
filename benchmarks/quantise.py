"""Compare quantised programs: aigcc, ONNX Runtime's quantisation, OpenVINO and NNCF.

    python benchmarks/quantise.py [--models gpt2,vae,...] [--tools aigcc] [--rounds 1] [--reuse]

Each tool runs as a process of its own and gets the same four calibration samples; the peers live in
venvs that the script makes in .cache. Then the programs run in one process, a few of one runtime at
a time in turn with ONNX Runtime on the model as it was exported, which latencies are ratios to, and
their outputs on other samples are compared with the original's in ONNX Runtime without any
optimisation. SQNR is of the worst sample. OpenVINO's and NNCF's programs are compiled as they come,
for all shapes that they take, and in rows of their own for those of the samples, as aigcc's are.
What OpenVINO runs is timed once more without ONNX Runtime, in turn with NNCF's int8 in bfloat16.
aigcc starts without any measurement that it remembers. Needs `pip install -e '.[models,cpu]'`, and
for trained models and real data `python -m aigcc.models.fetch`. Prints a table for each model.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from process import Finished, run
from quantise_kernels import slowest_of_onnxruntime
from quantise_models import MODELS, Feeds, Model, Prepared, prepare, sqnr
from quantise_tools import Tool, make_venv, precisions, tools_for

from aigcc.benchmark import Timing, interleave
from aigcc.errors import CompileError
from aigcc.machine import describe_processor
from aigcc.runtime import OrtSession
from aigcc.target import Session
from aigcc.targets import make_target

CACHE = Path(".cache")
TOGETHER = 6  # programs that are timed in turn with ONNX Runtime on the original
RIVAL = "NNCF int8, rest bf16"


@dataclasses.dataclass
class Row:
    """A tool, and what was found of its program."""

    tool: Tool
    folder: Path
    runs: Sequence[Finished] = ()
    note: str = ""
    fault: str = ""
    size: int = 0
    sqnr: float = 0.0
    metric: str = ""
    timing: Timing | None = None
    against_rival: Timing | None = None
    slowest: str = ""


class Judge:
    """Compares what programs of a model give with what the model itself gives.

    Args:
        model: Has the metric, and what drives a program for it.
        feeds: What programs are asked.
        reference: The model, without any optimisation.
    """

    def __init__(self, model: Model, feeds: Sequence[Feeds], reference: Session) -> None:
        self._model, self._feeds = model, feeds
        self._expected: list[Feeds] = [reference.run(feed) for feed in feeds]
        self._driven = model.drive(reference) if model.drive else self._expected

    def look(self, row: Row, session: Session) -> None:
        """Fill in the quality of a row, whose program is `session`."""
        given = []
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            # OpenVINO picks among several names that an output has, but keeps their order.
            given.append(dict(zip(expected, session.run(feed).values(), strict=True)))
        row.sqnr = sqnr(self._expected, given)
        if self._model.metric is not None:
            driven = self._model.drive(session) if self._model.drive else given
            row.metric = self._model.metric[1](self._feeds, self._driven, driven)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="gpt2,vae,unet_medium,face_gan,terrain")
    parser.add_argument("--tools", default="", help="only rows whose name starts so; with commas")
    parser.add_argument("--rounds", type=int, default=1, help="how often each tool builds")
    parser.add_argument("--seconds", type=float, default=60, help="for all latencies of a model")
    parser.add_argument(
        "--reuse", action="store_true", help="take programs that the same command built"
    )
    arguments = parser.parse_args()
    try:
        for name in arguments.models.split(","):
            if name not in MODELS:
                raise CompileError(f"no model {name!r}", hint=f"one of {', '.join(MODELS)}")
            _compare(name, arguments)
    except CompileError as error:
        sys.exit(str(error))


def _compare(name: str, arguments: argparse.Namespace) -> None:
    model = MODELS[name]
    prepared = prepare(name, model, CACHE)
    make_target("cpu").check_tools()
    tools = list(tools_for(model, prepared, CACHE))
    wanted = tuple(arguments.tools.split(","))
    tools = tools[:1] + [tool for tool in tools[1:] if tool.name.startswith(wanted)]
    out = CACHE / "bench" / name / "quantised"
    out.mkdir(exist_ok=True)
    rows = _build(tools, prepared, out, arguments)
    _measure(model, prepared, rows, arguments.seconds)
    _print(name, model, prepared, rows)


def _build(
    tools: Sequence[Tool], prepared: Prepared, out: Path, arguments: argparse.Namespace
) -> list[Row]:
    rows: list[Row] = []
    built: dict[tuple[str, ...], Row] = {}
    for tool in tools:
        if not tool.command:
            rows.append(Row(tool, prepared.path.parent))
            continue
        if tool.command not in built:
            row = Row(tool, out / re.sub(r"\W+", "_", tool.name))
            row.runs = _runs(row, arguments.rounds, reuse=arguments.reuse)
            built[tool.command] = row
        first = built[tool.command]
        note = _failure(first.runs[-1].output) if first.runs[-1].code else ""
        rows.append(Row(tool, first.folder, first.runs, note))
    return rows


def _runs(row: Row, rounds: int, *, reuse: bool) -> list[Finished]:
    """Build a program several times, or read what an earlier run of this script wrote down."""
    record = row.folder.with_suffix(".json")
    made_of = _digest(row.tool.command)
    if reuse and record.exists():
        known = json.loads(record.read_text())
        if known["made_of"] == made_of:
            return [Finished(**finished) for finished in known["runs"]]
    for peer in ("onnxruntime", "openvino"):
        if f"peers-{peer}" in row.tool.command[0]:
            make_venv(peer, CACHE)
    runs = []
    for _ in range(rounds):
        shutil.rmtree(row.folder, ignore_errors=True)
        row.folder.mkdir()
        print(f"building {row.tool.name}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                part.replace("{out}", str(row.folder)).replace("{scratch}", scratch)
                for part in row.tool.command
            ]
            runs.append(run(command, row.folder.with_suffix(".log")))
    facts = [dataclasses.asdict(finished) for finished in runs]
    record.write_text(json.dumps({"made_of": made_of, "runs": facts}))
    return runs


def _digest(command: Sequence[str]) -> str:
    """Of a command and the scripts and recipes that it names."""
    digest = hashlib.blake2b(repr(command).encode(), digest_size=12)
    for file in re.findall(r"[^\s'\"]+\.(?:py|toml)\b", " ".join(command)):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _failure(output: str) -> str:
    """The line of a failed tool's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w|\.)*(error|Error|Exception)\b", line)]
    return (errors or lines or ["no message"])[-1][:160].replace("|", "/")


def _measure(model: Model, prepared: Prepared, rows: list[Row], seconds: float) -> None:
    """Fill in what the programs do."""
    feeds = prepared.feeds()
    judge = Judge(model, feeds, OrtSession(prepared.path, optimise=False))
    original, *others = rows
    first = OrtSession(prepared.path)
    original.size = prepared.path.stat().st_size
    original.slowest = slowest_of_onnxruntime(prepared.path, feeds[0])
    judge.look(original, first)
    built = [row for row in others if not row.note]
    rival: dict[str, Session] = {}
    for group in _groups(built):
        sessions = {row.tool.name: s for row in group if (s := _open(row, judge)) is not None}
        timed = {row.tool.name for row in group if not row.tool.quality_only}
        sessions = {name: session for name, session in sessions.items() if name in timed}
        share = seconds * len(group) / len(built)
        timings = _time({original.tool.name: first, **sessions}, feeds[0], share)
        rival = {name: s for name, s in sessions.items() if name == RIVAL} or rival
        is_rivalry = rival and group[0].tool.runtime == "openvino"
        against = _time({**rival, **sessions}, feeds[0], share) if is_rivalry else {}
        original.timing = timings[original.tool.name]
        for row in group:
            row.timing = timings.get(row.tool.name)
            row.against_rival = against.get(row.tool.name)
            if row.timing is not None:
                row.slowest = row.tool.slowest(row.folder, feeds[0])


def _time(sessions: Mapping[str, Session], feed: Feeds, seconds: float) -> dict[str, Timing]:
    """Latencies; ratios are to the first session's."""
    calls = {name: (lambda s=session: s.run(feed)) for name, session in sessions.items()}
    return interleave(calls, seconds=seconds)


def _groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """A few programs at a time: all of them would not fit into memory."""
    for runtime in ("onnxruntime", "openvino"):
        alike = [row for row in rows if row.tool.runtime == runtime]
        for start in range(0, len(alike), TOGETHER):
            yield alike[start : start + TOGETHER]


def _open(row: Row, judge: Judge) -> Session | None:
    """The program of a row, after a look at what it gives; None if it does not run."""
    try:
        session = row.tool.open(row.folder)
        judge.look(row, session)
    except (CompileError, RuntimeError, ValueError) as error:
        row.note = f"does not run: {str(error)[:160]}".replace("|", "/").replace("\n", " ")
        return None
    row.fault, row.size = row.tool.fault(row.folder), row.tool.size(row.folder)
    return session


def _print(name: str, model: Model, prepared: Prepared, rows: list[Row]) -> None:
    counts = [len(list(f.glob("*.npz"))) for f in (prepared.calibration, prepared.evaluation)]
    print(
        f"\n## {name}: {model.note}; {counts[0]} samples calibrate, {counts[1]} others evaluate\n"
    )
    print(f"On {describe_processor()}.\n")
    heads = ["tool", "valid", "latency ms", "ratio (quartiles)", "to NNCF", "SQNR dB"]
    heads += [model.metric[0]] if model.metric else []
    heads += ["MB", "build s", "peak anonymous MB", "nodes by precision", "most time in"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(_cells(row, model)) + " |")


def _cells(row: Row, model: Model) -> list[str]:
    cost = ["", ""]
    if row.runs:
        cost[0] = f"{statistics.median(finished.seconds for finished in row.runs):.0f}"
        cost[1] = f"{statistics.median(finished.anonymous for finished in row.runs) / 1e6:.0f}"
    empty = [""] * (2 if model.metric else 1)
    if row.note:
        return [row.tool.name, f"**failed**: {row.note}", "", "", "", *empty, "", *cost, "", ""]
    latency, size = ["", "", ""], ""
    if row.timing is not None:
        t = row.timing
        latency = [
            f"{t.median * 1e3:.1f}",
            f"{t.ratio:.2f} ({t.ratio_low:.2f} to {t.ratio_high:.2f})",
            "" if row.against_rival is None else f"{row.against_rival.ratio:.2f}",
        ]
        size = f"{row.size / 1e6:.1f}"
    quality = [f"{row.sqnr:.1f}", *([row.metric] if model.metric else [])]
    valid = f"no: {row.fault[:120]}".replace("|", "/") if row.fault else "yes"
    nodes = precisions(row.folder)
    return [row.tool.name, valid, *latency, *quality, size, *cost, nodes, row.slowest]


if __name__ == "__main__":
    main()
