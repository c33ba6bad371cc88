"""Honest timings: programs run in turn, and what is compared are ratios within one round."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one program over all rounds, and its ratio to the first program's.

    Attributes:
        median: Median of the seconds per run.
        low: Lower quartile.
        high: Upper quartile.
        ratio: Median over the rounds of (these seconds / the first program's in the same round).
        ratio_low: Lower quartile of that ratio.
        ratio_high: Upper quartile of that ratio.
        rounds: How many runs were counted.
    """

    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def interleave(
    programs: Mapping[str, Callable[[], object]], *, seconds: float = 2.0, rounds: int | None = None
) -> dict[str, Timing]:
    """Time programs in rounds, A B C B A C A C B: a drifting machine hits all of them alike.

    Each round has an order of its own: threads of a runtime that wait for more work, and what it
    left in the cache, would always hit the same program otherwise. None follows itself.

    Args:
        programs: What to call, by name; the first is what the others are compared with.
        seconds: About how long the whole measurement may take, when `rounds` is None.
        rounds: How often each program runs, after one warm-up.
    """
    for call in programs.values():
        call()
    started = time.perf_counter()
    measured: dict[str, list[float]] = {name: [] for name in programs}
    order, chance = list(programs), random.Random(0)
    while True:
        for name in order:
            before = time.perf_counter()
            programs[name]()
            measured[name].append(time.perf_counter() - before)
        last = order[-1]
        chance.shuffle(order)
        if order[0] == last:
            order.append(order.pop(0))
        done = len(next(iter(measured.values())))
        if done >= rounds if rounds is not None else _enough(done, started, seconds):
            break
    first = next(iter(measured.values()))
    return {name: _timing(times, first) for name, times in measured.items()}


def _enough(done: int, started: float, seconds: float) -> bool:
    return done >= 5 and time.perf_counter() - started > seconds


def _timing(times: list[float], first: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(times, first, strict=True)]
    return Timing(*_quartiles(times), *_quartiles(ratios), rounds=len(times))


def _quartiles(numbers: list[float]) -> tuple[float, float, float]:
    if len(numbers) < 2:
        return numbers[0], numbers[0], numbers[0]
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return median, low, high
