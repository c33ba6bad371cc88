"""Sums with two constants of which the first takes digits away, as rounding by adding does."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_CANCELS = 2.0**-8  # where the sum of both is smaller than they are by this, digits are lost


class SumInOrder(Rule):
    """(x + a) + b -> Where(IsNaN(s), s, s + b), with s = x + a

    OpenVINO adds a and b first where nothing else reads s. That is the same but for the digits that
    s rounds away: x + 12582912 - 12582912 is x rounded to a whole number, and x + 0 is not. Read
    by others, too, s stays what it is.
    """

    name: ClassVar[str] = "sum-in-order"

    def pattern(self, op: PatternBuilder, x: Any, a: Any, b: Any) -> list[Apply]:
        """Two sums or differences, of which the first has no other reader."""
        sums = [op.Add(x, a, _as="sum"), op.Sub(x, a, _as="sum")]
        return [outer(sum_, b) for sum_ in sums for outer in (op.Add, op.Sub)]

    def rewrite(self, op: Builder, match: Match) -> Any:
        """The same, with readers of the first besides, where digits are lost in it."""
        s = match.sum.outputs[0]
        if not np.issubdtype(match.array("a").dtype, np.floating):
            raise NoMatch("sums of whole numbers lose no digits")
        signs = [-1.0 if node.op_type == "Sub" else 1.0 for node in (match.sum, match.root)]
        a, b = (
            sign * match.array(name).astype(float) for sign, name in zip(signs, "ab", strict=True)
        )
        if a.size != 1 and b.size != 1 and a.shape != b.shape:
            raise NoMatch("its constants are of several shapes")
        if not (np.abs(a + b) < _CANCELS * np.abs(a)).any():
            raise NoMatch("no digits are lost")
        then = getattr(op, match.root.op_type)(s, match.b)
        return op.Where(op.IsNaN(s), s, then)
