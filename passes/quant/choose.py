"""Which node takes which scheme: an integer programme over measured errors, times and sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Option:
    """A scheme for a node, and what it costs.

    Attributes:
        scheme: Its name.
        errors: For each bound on quality, how much of what the bound allows this choice uses up:
            powers of independent errors add up.
        seconds: Time of the node.
        size: Bytes of its weight.
    """

    scheme: str
    errors: tuple[float, ...]
    seconds: float
    size: float


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What the sums over all nodes may reach; None is no bound.

    Attributes:
        errors: For each bound on quality.
        seconds: Time of all nodes together.
        size: Bytes of all weights together.
    """

    errors: tuple[float, ...] = ()
    seconds: float | None = None
    size: float | None = None


def choose(nodes: Sequence[Sequence[Option]], bounds: Bounds) -> list[int] | None:
    """An option for each node: the fastest within the bounds, or None where nothing is.

    Without a bound on quality the choice with the least error is taken. Equal ones are decided by
    size. Solved as a mixed integer programme (HiGHS, through `scipy.optimize.milp`).
    """
    from scipy import optimize, sparse  # half a second, which no other command has to wait

    options = [option for node in nodes for option in node]
    if not options:
        return []
    seconds = np.array([option.seconds for option in options])
    size = np.array([option.size for option in options])
    errors = np.array([option.errors for option in options]).reshape(len(options), -1)
    goal = seconds if bounds.errors else errors.sum(axis=1)
    goal = goal / max(goal.max(), 1e-30)
    goal = goal + 1e-6 * size / max(size.max(), 1.0)
    owner = np.repeat(np.arange(len(nodes)), [len(node) for node in nodes])
    one_each = sparse.csr_array(
        (np.ones(len(options)), (owner, np.arange(len(options)))), (len(nodes), len(options))
    )
    constraints = [optimize.LinearConstraint(one_each, 1, 1)]
    limits = list(zip(errors.T, bounds.errors, strict=False))
    limits += [] if bounds.seconds is None else [(seconds, bounds.seconds)]
    limits += [] if bounds.size is None else [(size, bounds.size)]
    for row, limit in limits:
        scale = max(abs(limit), 1e-30)
        constraints.append(optimize.LinearConstraint(row[None, :] / scale, -np.inf, limit / scale))
    found = optimize.milp(
        goal,
        constraints=constraints,
        integrality=np.ones(len(options)),
        bounds=optimize.Bounds(0, 1),
        options={"time_limit": 20.0, "mip_rel_gap": 1e-3},
    )
    if found.x is None:
        return None
    chosen = np.flatnonzero(np.round(found.x))
    starts = np.cumsum([0, *(len(node) for node in nodes)])[:-1]
    return [int(index - start) for index, start in zip(chosen, starts, strict=True)]
