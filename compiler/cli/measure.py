"""`aigcc run`, `bench` and `compare`: programs on inputs, and what comes out."""

from __future__ import annotations

import dataclasses
import functools
import resource
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigcc.cli.arguments import DataRoots, Json, Program, SamplesOption, Threads
from aigcc.cli.render import as_json, line, progress, say, table
from aigcc.errors import ArtifactError, CompileError
from aigcc.figures import number, seconds, size

if TYPE_CHECKING:
    import numpy as np

    from aigcc.analysis.layers.compare import Layer, Layers
    from aigcc.ir.module import Module
    from aigcc.samples import Feeds, Samples
    from aigcc.target import Session


class Sort(StrEnum):
    """What `compare --layers` sorts by."""

    own = "own"
    arriving = "arriving"
    order = "order"


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
    from aigcc.artifact import check_free, staged
    from aigcc.samples import load_samples

    if out is not None:
        check_free(out)
    module, session = _open(program, jobs, data_root)
    feeds = load_samples(samples, module)
    if out is None:
        rows = _run_all(session, feeds, None)
    else:
        with staged(out, overwrite=False) as folder:
            rows = _run_all(session, feeds, folder)
    if json:
        as_json({**feeds.describe(), "outputs": rows})
        return
    keys = ("sample", "output", "dtype", "shape")
    table(
        _title("outputs", feeds),
        ["sample", "output", "type", "shape", ">min", ">mean", ">max"],
        [
            (*(r[key] for key in keys), *(number(r[key]) for key in ("min", "mean", "max")))
            for r in rows
        ],
    )
    say(feeds.notes)


def _run_all(session: Session, feeds: Samples, folder: Path | None) -> list[dict[str, Any]]:
    """Run every sample, one at a time; write what comes out where a folder is given."""
    rows = []
    for index, feed in enumerate(feeds):
        outputs = feeds.run(session, feed)
        if folder is not None:
            _write_npz(folder / f"{index:04d}.npz", outputs)
        for name, array in outputs.items():
            place = {"sample": index, "output": name, "dtype": str(array.dtype)}
            rows.append({**place, "shape": list(array.shape), **_range(array)})
    return rows


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """What np.savez writes; it takes names as keywords, and so not every name."""
    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            plain = array.astype(str) if array.dtype.kind == "O" else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, plain, allow_pickle=False)


def _range(array: np.ndarray) -> dict[str, float | None]:
    """Smallest, mean and largest value, where there are any."""
    if not array.size or array.dtype.kind in "OSU":
        return dict.fromkeys(("min", "mean", "max"))
    wide = array.astype("complex128" if array.dtype.kind == "c" else "float64").view("float64")
    return {"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max())}


def bench(
    programs: Annotated[
        list[str], typer.Argument(metavar="A [B ...]", help="Artifacts or models; ratios are to A.")
    ],
    samples: SamplesOption = None,
    time: Annotated[
        float, typer.Option("--seconds", min=0, metavar="S", help="About how long to measure.")
    ] = 5.0,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Time programs in turn (A B A B ...), and print ratios with their spread.

    Example: `aigcc bench model.onnx out`
    """
    from aigcc.benchmark import interleave
    from aigcc.samples import load_samples

    sessions: dict[str, Session] = {}
    modules: dict[str, Module] = {}
    for program in programs:
        name = program if program not in sessions else f"{program} #{len(sessions) + 1}"
        modules[name], sessions[name] = _open(program, jobs, data_root, optimise=True)
    feeds = load_samples(samples, min(modules.values(), key=_count_dynamic))
    first = next(iter(feeds))
    calls: dict[str, Callable[[], object]] = {}
    for name, session in sessions.items():
        calls[name] = functools.partial(feeds.run, session, first)
        calls[name]()
    memory = {
        name: _memory_of(program, modules[name], first, jobs, data_root)
        for program, name in zip(programs, modules, strict=True)
    }
    timings = interleave(calls, seconds=time)
    if json:
        as_json(
            {
                **feeds.describe(),
                "programs": {
                    name: {**dataclasses.asdict(timing), "memory_bytes": memory[name]}
                    for name, timing in timings.items()
                },
            }
        )
        return
    table(
        f"{_title('latency', feeds)}, with quartiles; ratios are to {programs[0]}",
        ["program", ">median", ">from", ">to", ">ratio", ">from", ">to", ">memory", ">runs"],
        [
            (
                short,
                *map(seconds, (t.median, t.low, t.high)),
                *(f"{ratio:.3f}" for ratio in (t.ratio, t.ratio_low, t.ratio_high)),
                size(memory[name]),
                t.rounds,
            )
            for short, (name, t) in zip(_shorten(list(timings)), timings.items(), strict=True)
        ],
    )


def _memory_of(
    program: str, module: Module, feeds: Feeds, jobs: int | None, roots: list[Path] | None
) -> int:
    """Bytes that a program takes, found in a process that holds no other."""
    from aigcc.targets import worker

    with tempfile.TemporaryDirectory(prefix="aigcc-") as folder:
        sample, place = Path(folder) / "0.npz", Path(program)
        _write_npz(sample, feeds)
        if not place.exists():  # code, whose own libraries are none of the program
            place = Path(folder) / "model.onnx"
            module.save(place)
        request = {
            "program": str(place),
            "sample": str(sample),
            "threads": jobs,
            "roots": [str(root) for root in roots or ()],
        }
        answer = worker.call(f"{__name__}:load_and_run", request, lambda text, fraction: None)
        return int(answer["bytes"])


def load_and_run(request: Mapping[str, Any], progress: object) -> dict[str, int]:
    """What loading a program and running it once adds to the memory of this process.

    Args:
        request: `program`, `sample` (an .npz), `threads`, and `roots` for data.
        progress: Not told anything.
    """
    from aigcc.driver import load
    from aigcc.runtime import OrtSession
    from aigcc.samples import load_samples

    OrtSession(load(_nothing())).run({})  # what libraries take is no part of a program
    before = _anonymous_bytes()
    roots = [Path(root) for root in request["roots"]]
    module, session = _open(request["program"], request["threads"], roots, optimise=True)
    samples = load_samples(request["sample"], module)
    samples.run(session, next(iter(samples)))
    return {"bytes": max(_anonymous_bytes() - before, 0)}


def _nothing() -> Module:
    from aigcc.ir.module import Module

    head = '<ir_version: 10, opset_import: ["" : 20]>'
    return Module.parse(f"{head} g () => (float[1] y) {{ y = Constant <value_floats = [1.0]> () }}")


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="An artifact's folder, or a model: what is right.")
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="An artifact's folder, or a model to judge by A.")
    ],
    samples: SamplesOption = None,
    psnr: Annotated[
        float | None,
        typer.Option(metavar="PEAK", help="Also print PSNR, for this peak value (1.0, 255, ...)."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="X", help="Fail if max|a-b| / max|a| of any output is larger."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Rank the nodes of B by the error that each adds, not the outputs."
        ),
    ] = False,
    sort: Annotated[
        Sort,
        typer.Option(
            metavar="KEY",
            help="With --layers: by the error that a node adds itself, by the error that has "
            "arrived at it, or as nodes run.",
        ),
    ] = Sort.own,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --layers: show so many nodes.")
    ] = 20,
    jobs: Threads = None,
    data_root: DataRoots = None,
    json: Json = False,
) -> None:
    """Compare the outputs of two programs on the same samples, or the nodes inside them.

    Example: `aigcc compare model.onnx out --psnr 1.0`
    """
    from aigcc.analysis.metrics import compare_outputs
    from aigcc.analysis.metrics import psnr as psnr_of
    from aigcc.cli.pairs import open_alike
    from aigcc.samples import load_samples, refuse_empty

    if layers:
        if psnr is not None or tolerance is not None:
            raise typer.BadParameter("--psnr and --tolerance judge outputs, and --layers nodes")
        _compare_layers(a, b, samples, sort, top, data_root, json=json)
        return
    alike = open_alike(a, b, jobs, data_root)
    (module, first), (other, second) = alike.programs or (
        _open(a, jobs, data_root, rounds=False),
        _open(b, jobs, data_root),
    )
    feeds = load_samples(samples, min(module, other, key=_count_dynamic))
    rows: list[dict[str, Any]] = []
    for index, feed in enumerate(feeds):
        left, right = feeds.run(first, feed), second.run(feed)
        for row in compare_outputs(left, right):
            fact = {"sample": index, **dataclasses.asdict(row)}
            if psnr is not None:
                fact["psnr"] = psnr_of(left[row.name], right[row.name], peak=psnr)
            rows.append(fact)
    if json:
        as_json({**feeds.describe(), "noise": alike.noise, "outputs": rows})
    else:
        columns = ["sample", "output", ">SQNR dB", ">cosine", ">max |a-b|", ">relative"]
        keys = ["sample", "name", "sqnr", "cosine", "max_abs", "relative"]
        if psnr is not None:
            columns.append(">PSNR dB")
            keys.append("psnr")
        table(
            _title(f"{b} against {a}", feeds),
            columns,
            [[_cell(r, k) for k in keys] for r in rows],
        )
        say([*([alike.noise] if alike.noise else []), *feeds.notes])
    if tolerance is not None:
        refuse_empty(sum(row["elements"] for row in rows), feeds.source)
    if tolerance is not None and not all(row["relative"] <= tolerance for row in rows):
        raise CompileError(
            f"the outputs differ by more than {tolerance:g}",
            at=b,
            hint="aigcc bisect MODEL -p PIPELINE names the rewrite that is to blame",
        )


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key in ("sample", "name"):
        return str(row[key])
    return number(row[key]) if row["elements"] else "-"


def _compare_layers(
    a: str,
    b: str,
    samples: str | None,
    sort: Sort,
    top: int,
    roots: list[Path] | None,
    *,
    json: bool,
) -> None:
    from aigcc.analysis.layers.compare import compare_layers
    from aigcc.noise import describe_noise
    from aigcc.samples import load_samples

    original, other = _load(a, roots), _load(b, roots)
    feeds = load_samples(samples, min(original, other, key=_count_dynamic))
    with progress(plain=json) as report:
        found = compare_layers(original, other, feeds, progress=report)
    noise = describe_noise(original)
    rows = sorted(found.rows, key=lambda row: getattr(row, sort))
    if json:
        as_json(
            {
                **feeds.describe(),
                "noise": noise,
                "nodes": found.nodes,
                "matched": found.matched,
                "unlike": found.unlike,
                "first_broken": found.first_broken and found.first_broken.value,
                "layers": rows[:top],
            }
        )
        return
    origins = [column for column in ("module", "source") if any(getattr(r, column) for r in rows)]
    table(
        _title(f"SQNR in {b} against {a}", feeds),
        ["node", "op", "precision", ">own dB", ">arriving dB", *origins],
        [
            (
                *(row.node, row.op, row.precision),
                *(number(decibel, ".1f") for decibel in (row.own, row.arriving)),
                *(getattr(row, column) or "" for column in origins),
            )
            for row in rows[:top]
        ],
    )
    _say_what_was_matched(found, top)
    say([*([noise] if noise else []), *feeds.notes])


def _say_what_was_matched(found: Layers, top: int) -> None:
    line()
    if top < len(found.rows):
        line(f"{top} of {len(found.rows)} values; --top {len(found.rows)} shows all")
    if found.first_broken is not None:
        line(_first_broken(found.first_broken))
    line(f"{found.matched} of {found.nodes} nodes make a value that A makes too, by its name")
    if found.matched < found.nodes:
        line("what the others add counts at the next of these")
    if found.unlike:
        shown = ", ".join(found.unlike[:3]) + (", ..." if len(found.unlike) > 3 else "")
        line(f"left out, since types or shapes differ: {len(found.unlike)} values ({shown})")


def _first_broken(row: Layer) -> str:
    how = "which makes it itself" if row.own_broken else "which is handed numbers that lead to it"
    return f"NaN or infinity that A has not comes first out of {row.node} ({row.op}), {how}"


def _load(program: str, roots: list[Path] | None) -> Module:
    """A program whose nodes can be looked at."""
    from aigcc.artifact import Artifact
    from aigcc.driver import load
    from aigcc.ir.module import Module

    folder = Path(program)
    if not folder.is_dir():
        return load(program, roots=roots or ())
    artifact = Artifact.load(folder)
    if not artifact.entry.endswith(".onnx"):
        raise ArtifactError(
            f"its program is {artifact.entry}, whose nodes cannot be looked at",
            at=program,
            hint="build it with --dump-ir, and give the last .onnxtxt in OUT-ir",
        )
    return Module.load(folder / artifact.entry)


def _open(
    program: str,
    threads: int | None,
    roots: list[Path] | None,
    *,
    optimise: bool = False,
    rounds: bool = True,
) -> tuple[Module, Session]:
    """A program's signature, and the program ready to run.

    Args:
        program: An artifact's folder or a model.
        threads: For the runtime.
        roots: Folders of data.
        optimise: Whether ONNX Runtime may rewrite a model.
        rounds: Whether a model rounds to narrow floats where ONNX Runtime cannot compute in them.
    """
    from aigcc.artifact import Artifact
    from aigcc.driver import load
    from aigcc.reference import Reference
    from aigcc.runtime import OrtSession
    from aigcc.targets import make_target

    folder = Path(program)
    if not folder.is_dir():
        module = load(program, roots=roots or ())
        if optimise:
            return module, OrtSession(module, threads=threads)
        return module, Reference(module, threads, rounds=rounds)
    artifact = Artifact.load(folder)
    target = make_target(artifact.manifest["target"])
    session = target.session(folder, artifact.entry, threads)
    if session is None:
        raise ArtifactError(
            f"an artifact for {target.name} cannot run on this machine",
            at=program,
            hint="see aigcc doctor; the artifact's example.py runs it on the device",
        )
    return artifact.signature(), session


def _count_dynamic(module: Module) -> int:
    """How many dims of inputs vary: made-up samples fit all programs if they fit the strictest."""
    return sum(not isinstance(dim, int) for value in module.inputs for dim in value.shape or ())


def _anonymous_bytes() -> int:
    """Anonymous memory of this process now; where the system does not tell, its peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _title(what: str, feeds: Samples) -> str:
    return f"{what} on {'synthetic inputs' if feeds.synthetic else feeds.source}"


def _shorten(programs: list[str]) -> list[str]:
    """The last parts of paths, where these tell all programs apart."""
    short = [Path(program).name or program for program in programs]
    return short if len(set(short)) == len(short) else programs


COMMANDS = (run, bench, compare)
