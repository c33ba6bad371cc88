"""The numbers of the integer programme: what options cost, and what their sums may reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.passes.quant.candidates import Candidates
from aigcc.passes.quant.choose import Bounds, Option
from aigcc.passes.quant.found import Found
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.switch import Choice

_SLACK = 1 + 1e-6  # what sums lose in the integer programme


def options(
    choice: Choice, seconds: Mapping[str, float], sensitivity: Sensitivity, known: Candidates
) -> list[Option]:
    """A node as it is, and in each scheme that it may take."""
    elements, size = choice.weight.tensor.size, choice.weight.tensor.nbytes
    plain = Option(FULL, sensitivity.none(), seconds[FULL], size)
    return [
        plain,
        *(
            Option(
                scheme.name,
                sensitivity.of(choice.position, scheme.name),
                seconds[scheme.name],
                scheme.bytes_of(elements)
                + (size if known.keeps_table(choice.position, scheme.name) else 0),
            )
            for scheme in choice.schemes
        ),
    ]


def bounds(
    allowed: float,
    pace: float,
    budget: Budget,
    nothing: Found,
    options: Sequence[Sequence[Option]],
    extra: float = 0.0,
) -> Bounds:
    """What the sums of all nodes may reach.

    Args:
        allowed: How much of the room for errors, by experience with mixtures before.
        pace: The time that nodes save in the whole, as a factor of what they save alone.
        budget: What has to hold.
        nothing: The model as it is.
        options: For each node, the one as it is first.
        extra: Bytes that mixtures have besides what their weights add up to, by experience.
    """
    measured, original = nothing.figures.measured, nothing.figures.original
    room: dict[str, float] = {}
    for limit in budget.of(["latency", "size"]):
        too_much = measured[limit.metric] - limit.value(original[limit.metric])
        rows = [[_cost(option, limit.metric) for option in row] for row in options]
        saved = too_much / pace if limit.metric == "latency" else too_much + extra
        # where no mixture is said to be small enough, the smallest one shall be measured
        most = max(sum(row[0] for row in rows) - saved, sum(map(min, rows)) * _SLACK)
        room[limit.metric] = min(room.get(limit.metric, math.inf), most)
    if not budget.of([*QUALITY, "latency"]):
        room["latency"] = sum(row[0].seconds for row in options)  # no slower, if that can be
    shares = tuple(allowed * max(1 - used, 0.0) for used in nothing.figures.shares.values())
    return Bounds(shares, room.get("latency"), room.get("size"))


def _cost(option: Option, metric: str) -> float:
    return option.seconds if metric == "latency" else option.size


def share(precision: Mapping[int, str], sensitivity: Sensitivity) -> float:
    """How often a mixture uses up the bounds, by the sum of what is known of its nodes."""
    rows = [sensitivity.shares.get(choice, {}).values() for choice in precision.items()]
    return max(map(sum, zip(*(row for row in rows if row), strict=True)), default=0.0)


def expected(chosen: Sequence[Option], nothing: Found) -> float:
    """What a mixture's errors add up to, as a share of the room that there is for them."""
    sums = [sum(errors) for errors in zip(*(option.errors for option in chosen), strict=True)]
    used = nothing.figures.shares.values()
    parts = [own / max(1 - other, 1e-9) for own, other in zip(sums, used, strict=True)]
    return max(parts, default=0.0)


def pace(
    found: Found, nothing: Found, chosen: Sequence[Option], options: Sequence[Sequence[Option]]
) -> float:
    """The time that nodes were measured to save in the whole, over what they save alone."""
    if found.figures.ratio is None:
        return 1.0
    alone = sum(row[0].seconds for row in options) - sum(option.seconds for option in chosen)
    saved = nothing.figures.measured["latency"] - found.figures.measured["latency"]
    return min(max(saved / alone, 0.25), 4.0) if alone > 0 else 1.0


def extra(
    found: Found, nothing: Found, chosen: Sequence[Option], options: Sequence[Sequence[Option]]
) -> float:
    """Bytes that a mixture was measured to have besides what its weights add up to: scales."""
    saved = sum(row[0].size for row in options) - sum(option.size for option in chosen)
    return found.figures.measured["size"] - (nothing.figures.measured["size"] - saved)
