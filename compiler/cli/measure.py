"""`aigcc run`, `bench` and `compare`: programs on inputs, and what comes out."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigcc.cli.arguments import DataRoots, Json, SamplesOption, Threads
from aigcc.cli.render import as_json, seconds, size, table
from aigcc.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from aigcc.ir.module import Module
    from aigcc.target import Session

Program = Annotated[
    str, typer.Argument(metavar="ARTIFACT|MODEL", help="An artifact's folder, or a model.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(run)
    app.command()(bench)
    app.command()(compare)


def run(
    program: Program,
    samples: SamplesOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write outputs as NNNN.npz, one a sample."),
    ] = None,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Run an artifact or a model on samples; print or save the outputs.

    Example: `aigcc run out --samples inputs/ -o outputs`
    """
    import numpy as np

    from aigcc.samples import load_samples

    module, session = _open(program, jobs, data_root)
    feeds = load_samples(samples, module)
    if out is not None:
        _make_empty(out)
    rows = []
    for number, feed in enumerate(feeds):
        outputs = session.run(feed)
        if out is not None:
            np.savez(out / f"{number:04d}.npz", allow_pickle=False, **outputs)
        for name, array in outputs.items():
            numbers = array.astype(np.float64)
            rows.append(
                {
                    "sample": number,
                    "output": name,
                    "dtype": str(array.dtype),
                    "shape": list(array.shape),
                    "min": float(numbers.min()) if array.size else None,
                    "mean": float(numbers.mean()) if array.size else None,
                    "max": float(numbers.max()) if array.size else None,
                }
            )
    if json:
        as_json({"samples": feeds.source, "synthetic": feeds.synthetic, "outputs": rows})
        return
    table(
        _title("outputs", feeds),
        ["sample", "output", "type", "shape", ">min", ">mean", ">max"],
        [
            (
                r["sample"],
                r["output"],
                r["dtype"],
                r["shape"],
                *map(_number, (r["min"], r["mean"], r["max"])),
            )
            for r in rows
        ],
    )


def bench(
    programs: Annotated[
        list[str], typer.Argument(metavar="A [B ...]", help="Artifacts or models; ratios are to A.")
    ],
    samples: SamplesOption = None,
    time: Annotated[float, typer.Option("--seconds", help="About how long to measure.")] = 5.0,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Time programs in turn (A B A B ...), and print ratios with their spread.

    Example: `aigcc bench model.onnx out`
    """
    from aigcc.benchmark import interleave
    from aigcc.samples import load_samples

    calls: dict[str, Callable[[], object]] = {}
    memory: dict[str, int] = {}
    feeds = None
    for program in programs:
        before = _anonymous_bytes()
        module, session = _open(program, jobs, data_root, optimise=True)
        feeds = feeds or load_samples(samples, module)
        feed = next(iter(feeds))
        calls[program] = lambda session=session, feed=feed: session.run(feed)  # type: ignore[misc]
        calls[program]()
        memory[program] = _anonymous_bytes() - before
    timings = interleave(calls, seconds=time)
    assert feeds is not None
    if json:
        as_json(
            {
                "samples": feeds.source,
                "synthetic": feeds.synthetic,
                "programs": {
                    name: {**dataclasses.asdict(timing), "memory_bytes": memory[name]}
                    for name, timing in timings.items()
                },
            }
        )
        return
    table(
        _title("latency", feeds),
        [
            "program",
            ">median",
            ">quartiles",
            f">ratio to {programs[0]}",
            ">quartiles",
            ">memory",
            ">runs",
        ],
        [
            (
                name,
                seconds(t.median),
                f"{seconds(t.low)} to {seconds(t.high)}",
                f"{t.ratio:.3f}",
                f"{t.ratio_low:.3f} to {t.ratio_high:.3f}",
                size(memory[name]),
                t.rounds,
            )
            for name, t in timings.items()
        ],
    )


def compare(
    a: Program,
    b: Program,
    samples: SamplesOption = None,
    psnr: Annotated[
        float | None, typer.Option(help="Also print PSNR, for this peak value (1.0, 255, ...).")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Fail if max|a-b| / max|a| of any output is larger.")
    ] = None,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Compare the outputs of two programs on the same samples.

    Example: `aigcc compare model.onnx out --psnr 1.0`
    """
    from aigcc.analysis.metrics import compare_outputs
    from aigcc.analysis.metrics import psnr as psnr_of
    from aigcc.samples import load_samples

    module, first = _open(a, jobs, data_root)
    _, second = _open(b, jobs, data_root)
    feeds = load_samples(samples, module)
    rows: list[dict[str, Any]] = []
    for number, feed in enumerate(feeds):
        left, right = first.run(feed), second.run(feed)
        for row in compare_outputs(left, right):
            fact = {"sample": number, **dataclasses.asdict(row)}
            if psnr is not None:
                fact["psnr"] = psnr_of(left[row.name], right[row.name], peak=psnr)
            rows.append(fact)
    if json:
        as_json({"samples": feeds.source, "synthetic": feeds.synthetic, "outputs": rows})
    else:
        columns = ["sample", "output", ">SQNR dB", ">cosine", ">max |a-b|", ">relative"]
        keys = ["sample", "name", "sqnr", "cosine", "max_abs", "relative"]
        if psnr is not None:
            columns.append(">PSNR dB")
            keys.append("psnr")
        table(
            _title(f"{b} against {a}", feeds),
            columns,
            [[_number(r[k]) for k in keys] for r in rows],
        )
    if tolerance is not None and not all(row["relative"] <= tolerance for row in rows):
        raise ModelError(
            f"the outputs differ by more than {tolerance:g}",
            at=b,
            hint="aigcc bisect names the rewrite",
        )


def _open(
    program: str, threads: int | None, roots: list[Path] | None, *, optimise: bool = False
) -> tuple[Module, Session]:
    """A program's signature, and the program ready to run."""
    from aigcc.artifact import Artifact
    from aigcc.driver import load
    from aigcc.runtime import OrtSession
    from aigcc.targets import make_target

    folder = Path(program)
    if not folder.is_dir():
        module = load(program, roots=roots or ())
        return module, OrtSession(module, optimise=optimise, threads=threads)
    artifact = Artifact.load(folder)
    target = make_target(artifact.manifest["target"])
    session = target.session(folder, artifact.entry)
    if session is None:
        raise ArtifactError(
            f"an artifact for {target.name} cannot run on this machine",
            at=program,
            hint="see aigcc doctor; the artifact's example.py runs it on the device",
        )
    return artifact.signature(), session


def _make_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is not empty", hint="give a new folder with -o")
    folder.mkdir(parents=True, exist_ok=True)


def _anonymous_bytes() -> int:
    """Anonymous memory of this process now; where the system does not tell, its peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _title(what: str, feeds: Any) -> str:
    return f"{what} on {'synthetic inputs' if feeds.synthetic else feeds.source}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
