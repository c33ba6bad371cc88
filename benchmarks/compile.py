"""Compare aigcc with onnxslim, onnxsim, onnxscript and ONNX Runtime's offline optimiser.

    python benchmarks/compile.py [--models gpt2,unet_medium,...] [--rounds 3]

Each tool runs as a process of its own, in turn with the others; the peers live in a venv that the
script makes in .cache/peers. Then all models that came out run in ONNX Runtime, in turn, on the
same synthetic inputs, and their outputs are compared with the original's, run without any
optimisation. The weights are random. Prints a table for each model.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

from process import Finished, run

from aigcc.analysis.metrics import compare_outputs
from aigcc.benchmark import Timing, interleave
from aigcc.driver import load
from aigcc.errors import CompileError
from aigcc.machine import describe_processor
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets import make_target

HERE = Path(__file__).parent
CACHE = Path(".cache")
MODELS = {
    "gpt2": "aigcc.models.gpt2:full",
    "gpt2_cache": "aigcc.models.gpt2:full_cache",
    "unet_medium": "aigcc.models.unet:medium",
    "vae": "aigcc.models.vae:full",
    "unet": "aigcc.models.unet:full",
}


@dataclasses.dataclass
class Row:
    tool: str
    runs: list[Finished]
    path: Path
    nodes: int = 0
    contrib: int = 0
    timing: Timing | None = None
    error: float | None = None
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="gpt2,unet_medium,vae")
    parser.add_argument("--tools", default="", help="only those whose name starts so")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="for all latencies of a model")
    arguments = parser.parse_args()
    peers = peers_python()
    for name in arguments.models.split(","):
        model = export(name)
        rows = _compile(name, model, peers, arguments.rounds, arguments.tools)
        _measure(model, rows, arguments.seconds)
        _print(name, model, rows)


def peers_python() -> str:
    """The Python of the peers' venv, made on first use."""
    folder = CACHE / "peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        requirements = str(HERE / "peers" / "requirements.txt")
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        (folder / "ready").touch()
    return str(python)


def export(name: str) -> Path:
    """The model as torch's exporter writes it by default, kept in .cache/bench."""
    path = CACHE / "bench" / name / "model.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, HERE / "export.py", MODELS[name], path], check=True)
    return path


def _compile(name: str, model: Path, peers: str, rounds: int, only: str) -> list[Row]:
    out = CACHE / "bench" / name / "out"
    shutil.rmtree(out, ignore_errors=True)
    # peers write what they make without running it
    opt = [sys.executable, "-m", "aigcc", "opt", "--verify", "structure"]
    commands = {
        "aigcc opt": [*opt, model, "-p", "canonicalize,fuse", "-o", "{out}"],
        "aigcc mobile": [
            *opt,
            model,
            "-p",
            make_target("mobile").pipeline(),
            "-t",
            "mobile",
            "-o",
            "{out}",
        ],
        "onnxslim": [peers, HERE / "peers" / "run_onnxslim.py", model, "{out}"],
        "onnxsim": [peers, HERE / "peers" / "run_onnxsim.py", model, "{out}"],
        "onnxscript": [peers, HERE / "peers" / "run_onnxscript.py", model, "{out}"],
        "ONNX Runtime": [peers, HERE / "peers" / "run_ort.py", model, "{out}"],
    }
    rows = [
        Row(tool, [], out / tool.replace(" ", "_") / "model.onnx")
        for tool in commands
        if tool.startswith(only)
    ]
    for _ in range(rounds):
        for row in rows:
            shutil.rmtree(row.path.parent, ignore_errors=True)
            row.path.parent.mkdir(parents=True)
            command = [str(part).replace("{out}", str(row.path)) for part in commands[row.tool]]
            row.runs.append(run(command, out / f"{row.tool}.log"))
    for row in rows:
        if row.runs[-1].code or not row.path.exists():
            row.note = "failed: " + (row.runs[-1].output.strip().splitlines() or ["?"])[-1][:80]
    return rows


def _measure(model: Path, rows: list[Row], seconds: float) -> None:
    module = load(model)
    feeds = next(iter(load_samples(None, module)))
    expected = OrtSession(model, optimise=False).run(feeds)
    original = Row("as exported", [], model)
    rows.insert(0, original)
    sessions = {}
    for row in rows:
        if row.note:
            continue
        try:
            row.nodes, row.contrib = _count(row.path)
            sessions[row.tool] = OrtSession(row.path)
            outputs = sessions[row.tool].run(feeds)
        except CompileError as error:
            row.note = f"cannot run: {error.what[:80]}"
            continue
        row.error = max(output.relative for output in compare_outputs(expected, outputs))
    calls = {
        tool: (lambda session=session: session.run(feeds)) for tool, session in sessions.items()
    }
    timings = interleave(calls, seconds=seconds)
    for row in rows:
        row.timing = timings.get(row.tool)


def _count(path: Path) -> tuple[int, int]:
    domains = Counter(node.domain in ("", "ai.onnx") for node in load(path).nodes())
    return domains[True], domains[False]


def _print(name: str, model: Path, rows: list[Row]) -> None:
    print(f"\n## {name}: {MODELS[name]}, random weights, synthetic inputs\n")
    print(f"On {describe_processor()}.\n")
    print("| tool | nodes | contrib | seconds | peak anonymous MB | latency ms | ratio | error |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cost = ("", "")
        if row.runs:
            seconds = statistics.median(finished.seconds for finished in row.runs)
            memory = statistics.median(finished.anonymous for finished in row.runs) / 1e6
            cost = (f"{seconds:.1f}", f"{memory:.0f}")
        if row.note or row.timing is None:
            print(f"| {row.tool} | {row.note} | | {cost[0]} | {cost[1]} | | | |")
            continue
        t = row.timing
        print(
            f"| {row.tool} | {row.nodes} | {row.contrib} | {cost[0]} | {cost[1]} "
            f"| {t.median * 1e3:.1f} | {t.ratio:.2f} ({t.ratio_low:.2f} to {t.ratio_high:.2f}) "
            f"| {row.error:.1e} |"
        )


if __name__ == "__main__":
    main()
