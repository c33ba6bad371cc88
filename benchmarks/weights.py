"""Quantise all weights of a large model, beside a copy of its files.

    python benchmarks/weights.py [--model unet] [--rounds 3]

`cp` and `aigcc opt` run in turn, each as a process of its own, on files that were read into memory
before; what they wrote is deleted before the next one begins. aigcc waits until the disk has its
file, so ratios are to `cp` with `sync` behind it, of the same round. Prints a table: the median
time, its ratio, the largest anonymous memory, and the size of what was written.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys

from compile import CACHE, MODELS, export
from process import Finished, run

from aigcc.machine import describe_processor

PASSES = "convert-opset(version=21),insert-qdq(scheme={})"
ROWS = {
    "w8": ["-p", PASSES.format("w8")],
    "w8 for cpu": ["-p", PASSES.format("w8"), "-t", "cpu"],
    "w8 for mobile": ["-p", PASSES.format("w8"), "-t", "mobile"],
    "w4": ["-p", PASSES.format("w4")],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="unet", choices=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = export(arguments.model)
    files = [file for file in model.parent.iterdir() if file.is_file()]
    opt = [sys.executable, "-m", "aigcc", "opt", "--verify", "structure", str(model)]
    commands = {
        "cp": ["cp", *map(str, files), "{out}"],
        "cp and sync": ["sh", "-c", 'cp "$@" "$0" && sync "$0"/*', "{out}", *map(str, files)],
        **{name: [*opt, *options, "-o", "{out}/model.onnx"] for name, options in ROWS.items()},
    }
    out = CACHE / "bench" / arguments.model / "weights"
    found: dict[str, list[tuple[Finished, int]]] = {name: [] for name in commands}
    for file in files:
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            done = run([part.replace("{out}", str(out)) for part in command], out / "log")
            if done.code:
                sys.exit(f"{name} failed: {done.output.strip()[-500:]}")
            found[name].append((done, sum(file.stat().st_size for file in out.iterdir())))
    shutil.rmtree(out)
    size = sum(file.stat().st_size for file in files)
    print(f"\n## {arguments.model}: {MODELS[arguments.model]}, {size / 1e9:.2f} GB\n")
    print(f"On {describe_processor()}.\n")
    print("| | seconds | ratio to cp and sync | peak anonymous MB | GB written |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        seconds = [done.seconds for done, _ in runs]
        copies = [done.seconds for done, _ in found["cp and sync"]]
        ratios = [own / copy for own, copy in zip(seconds, copies, strict=True)]
        memory = statistics.median(done.anonymous for done, _ in runs)
        print(
            f"| {name} | {statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} "
            f"| {memory / 1e6:.0f} | {runs[0][1] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
