"""Samples that run at the same time, and are merged in their order."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.calibration.faults import masked_values
from aigcc.analysis.calibration.result import Calibration
from aigcc.analysis.calibration.statistics import Moment, Statistics
from aigcc.analysis.streaming.stream import Stream
from aigcc.errors import CompileError
from aigcc.ir.module import Module

Array = npt.NDArray[Any]


class Run:
    """A calibration at work.

    What one sample adds to a value is computed at once and merged when all samples before it have
    been, so that sums are the same for any number of jobs, and nothing waits in memory.

    Args:
        module: What runs, for looking into faults.
        stream: Of the same module; it wants the names of `axes`.
        source: Where the samples come from, in words.
        axes: By value, the axis of its channels or None.
        moments: The values whose second moments are wanted.
        state: What is known already, and is added to.
        jobs: Threads.
    """

    def __init__(
        self,
        module: Module,
        stream: Stream,
        source: str,
        axes: Mapping[str, int | None],
        moments: Collection[str],
        state: Calibration,
        jobs: int,
    ) -> None:
        self._module = module
        self._stream = stream
        self._source = source
        self._axes = axes
        self._moments = frozenset(moments)
        self._state = state
        self._pool = ThreadPoolExecutor(jobs, "calibrate")
        self._running: deque[Future[None]] = deque()
        self._merged = dict.fromkeys(axes, state.samples)  # samples, by value
        self._turn = threading.Condition()
        self._is_stopped = False
        self._masked: frozenset[str] = frozenset()
        self._search = threading.Lock()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._turn:
            self._is_stopped = True
            self._turn.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def start(self, feeds: Mapping[str, Array], bucket: int) -> None:
        """Run the next sample beside those that are running."""
        index = self._state.samples + len(self._running)
        self._running.append(self._pool.submit(self._sample, index, feeds, bucket))

    def finish(self, running: int) -> int:
        """Wait until no more than `running` samples run; returns how many are done, of all.

        Raises:
            CompileError: one of them failed.
        """
        while len(self._running) > running:
            self._running.popleft().result()
            self._state.samples += 1
        return self._state.samples

    def _sample(self, index: int, feeds: Mapping[str, Array], bucket: int) -> None:
        where = f"sample {index} of {self._source}"

        def consume(name: str, array: Array) -> None:
            try:
                statistics = Statistics.of(array, self._axes[name])
                if statistics.non_finite:
                    self._refuse_unless_masked(name, array, feeds, where)
                moment = Moment.of(array) if name in self._moments else None
                with self._in_turn(index, name):
                    self._merge(name, bucket, statistics, moment)
            except CompileError as error:
                at = error.at or f"value {name!r}, {where}"
                raise type(error)(error.what, at=at, hint=error.hint) from error

        self._stream.run(feeds, consume)

    def _merge(self, name: str, bucket: int, statistics: Statistics, moment: Moment | None) -> None:
        self._state.buckets[name][bucket].merge(statistics)
        if moment is not None and name in self._state.moments:
            self._state.moments[name].merge(moment)
        elif moment is not None:
            self._state.moments[name] = moment

    @contextlib.contextmanager
    def _in_turn(self, index: int, name: str) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: self._is_stopped or self._merged[name] == index)
            if self._is_stopped:
                raise _Stopped
            yield
            self._merged[name] += 1
            self._turn.notify_all()

    def _refuse_unless_masked(
        self, name: str, array: Array, feeds: Mapping[str, Array], where: str
    ) -> None:
        """Let a value pass that is infinite only where a constant before it is, as in a mask."""
        if name in self._moments:
            raise CompileError(
                "the value is not finite everywhere, and its second moments are wanted",
                hint="leave it out of the moments",
            )
        with self._search:
            if name not in self._masked or np.isnan(array).any():
                self._masked |= masked_values(self._module, feeds, name, where)


class _Stopped(Exception):
    """The sample before this one has failed."""
