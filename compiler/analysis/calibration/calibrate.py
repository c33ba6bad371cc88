"""Calibration: statistics of a module's values over any number of samples, in bounded memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.calibration.cache import cache_files, resume
from aigcc.analysis.calibration.result import Calibration as Calibration
from aigcc.analysis.calibration.run import Run
from aigcc.analysis.calibration.statistics import Statistics
from aigcc.analysis.streaming.stream import Stream
from aigcc.errors import ArtifactError, CompileError, SampleError, did_you_mean
from aigcc.ir.module import Module
from aigcc.samples import Samples

Array = npt.NDArray[Any]

SAVE_SECONDS = 20.0
"""How much work an interruption costs at most, besides the samples that are running."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Samples sorted by the value of one of their inputs: a diffusion model's time-step.

    Attributes:
        input: The name of an input that holds one number, or several in the same bucket.
        edges: The bounds between buckets, ascending; a bound belongs to the bucket above it.
        count: Instead of edges: so many buckets with about equally many samples in each.
    """

    input: str
    edges: tuple[float, ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        if bool(self.edges) == bool(self.count) or self.count < 0:
            raise CompileError(
                "buckets need either edges or a count", hint="Buckets('timestep', count=4)"
            )
        if list(self.edges) != sorted(set(self.edges)):
            raise CompileError(f"the edges {list(self.edges)} of the buckets do not ascend")

    def find_edges(self, samples: Samples) -> tuple[float, ...]:
        """The edges; reads all samples once if they follow from a count.

        Raises:
            SampleError: a sample has no such input, or several numbers in it.
        """
        if self.edges:
            return self.edges
        numbers = np.sort([self._numbers(feeds).mean() for feeds in samples])
        places = [len(numbers) * index // self.count for index in range(1, self.count)]
        return tuple(float(n) for n in np.unique(numbers[places]) if n > numbers[0])

    def index(self, feeds: Mapping[str, Array], edges: tuple[float, ...]) -> int:
        """The bucket of a sample.

        Raises:
            SampleError: it has no such input, or numbers in it that belong to several buckets.
        """
        found = np.unique(np.searchsorted(edges, self._numbers(feeds), side="right"))
        if len(found) > 1:
            raise SampleError(
                f"the input {self.input!r} holds numbers of {len(found)} buckets in one sample",
                hint="put them into samples of their own",
            )
        return int(found[0])

    def _numbers(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.float64]:
        if self.input not in feeds:
            raise SampleError(
                f"no input is called {self.input!r}, which decides the bucket",
                hint=did_you_mean(self.input, feeds),
            )
        numbers = feeds[self.input].astype(np.float64).reshape(-1)
        if not numbers.size:
            raise SampleError(f"the input {self.input!r} is empty, and decides the bucket")
        return numbers


def calibrate(
    module: Module,
    samples: Samples,
    values: Mapping[str, int | None],
    *,
    moments: Iterable[str] = (),
    buckets: Buckets | None = None,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> Calibration:
    """Statistics of values over all samples.

    The result is the same, byte by byte, for any number of jobs, and whether the work was
    interrupted or not. Memory does not grow with the number of samples.

    Args:
        module: Run as it is, in ONNX Runtime without optimisations, and exactly.
        samples: Read one at a time, once if nothing is cached and buckets have edges.
        values: Names of graph inputs and of outputs of the main graph's nodes, each with the axis
            of its channels or None.
        moments: Names of values whose second moments along the last axis are wanted too: 8 bytes
            for each pair of channels.
        buckets: Keep statistics by the value of an input as well.
        jobs: Samples that run at once; each needs memory for its own activations.
        cache: A folder in which finished and unfinished work is kept.
        progress: Called with a short text, and 0 since nobody knows how many samples there are.

    Raises:
        SampleError: there are no samples, or one does not fit.
        CompileError: a name is unknown, an axis does not exist, a node fails, or a value is NaN, or
            infinite for another reason than a constant that is.
        ArtifactError: the cache cannot be written.
    """
    chosen = sorted(set(moments))
    axes = {**dict.fromkeys(chosen), **values}
    edges = () if buckets is None else buckets.find_edges(samples)
    names = sorted(axes)
    fresh = Calibration({name: [Statistics() for _ in (0, *edges)] for name in names}, edges)
    files: list[Path] = []
    if cache is not None:
        _make_folder(cache)
        options = (sorted(axes.items()), chosen, buckets and buckets.input, edges)
        files = cache_files(cache, module, options)
    with Stream(module, axes) as stream:
        start = resume(files, samples, fresh)
        state, digest, file = start.state, start.digest, start.file
        with Run(module, stream, samples.source, axes, chosen, state, jobs) as run:
            saved = time.monotonic()
            for feeds in start.unseen:
                bucket = 0 if buckets is None else buckets.index(feeds, edges)
                run.start(feeds, bucket)
                digest.add(feeds)
                done = run.finish(jobs - 1)
                progress(f"calibrating: {done} samples", 0.0)
                if file is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    run.finish(0)
                    state.digest = digest.text()
                    state.save(file)
                    saved = time.monotonic()
            run.finish(0)
    state.digest = digest.text()
    if file is not None:
        state.save(file)
    return state


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the calibration cache cannot be made: {error}",
            at=str(path),
            hint="name a folder that you may write to",
        ) from error
