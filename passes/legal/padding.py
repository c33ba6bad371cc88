"""Paddings that an attribute asks to be worked out, worked out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import keeping, size
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_SHAPE_FROM = 15  # the opset from which Shape leaves out leading dims


class PaddedTranspose(Rule):
    """ConvTranspose(auto_pad, output_shape) -> ConvTranspose(pads, output_padding)

    Of an axis that is enlarged with steps of `s` by a window that spans `k` numbers comes
    s (in - 1) + k + output_padding; what is more than the output is to have is cut off. With
    auto_pad = SAME it is to have s in, so that the rest is known where the size is not. With
    output_shape it is not; what is too much goes behind the operator then.
    """

    name = "resolve-pads"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any = None) -> Apply:
        return op.ConvTranspose(x, w, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        node, rank = match.root, len(match.w.shape or ()) - 2
        wanted = node.attributes.get_ints("output_shape", ())[-rank:]
        padding = node.attributes.get_string("auto_pad", "NOTSET")
        if not wanted and padding == "NOTSET":
            return None
        if rank < 1:
            raise NoMatch("the rank of its weight is not known, and so its pads are not")
        steps = node.attributes.get_ints("strides", (1,) * rank)
        added = node.attributes.get_ints("output_padding", (0,) * rank)
        # what comes beyond `steps` times the input
        beyond = [
            span + more - step
            for span, more, step in zip(_spans(node, match.w, rank), added, steps, strict=True)
        ]
        if not wanted:
            excess = [max(many, 0) if padding != "VALID" else 0 for many in beyond]
            return _transposed(op, match, added, *_shared_out(excess, padding))
        counts = [size(match.x, axis + 2) for axis in range(rank)]
        if None in counts:
            return _cut_behind(op, match, added, wanted, padding)
        excess = [
            many + step * (count or 0) - length
            for many, step, count, length in zip(beyond, steps, counts, wanted, strict=True)
        ]
        missing = [more + max(-many, 0) for more, many in zip(added, excess, strict=True)]
        cut = [max(many, 0) for many in excess]
        return _transposed(op, match, missing, *_shared_out(cut, padding))


class PaddedAverage(Rule):
    """AveragePool(x, ceil_mode, count_include_pad) -> AveragePool(Pad(x), ceil_mode)

    What the last window reads beyond the padding counts no more than it did.
    """

    name = "pad-average"
    opset = 11  # pads are an input

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.AveragePool(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        node = match.root
        flags = [node.attributes.get_int(name, 0) for name in ("ceil_mode", "count_include_pad")]
        if not all(flags):
            return None
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            raise NoMatch("its padding is not known")
        spans = _spans(node, match.x, len(node.attributes.get_ints("kernel_shape")))
        steps = node.attributes.get_ints("strides", (1,) * len(spans))
        pads = np.reshape(node.attributes.get_ints("pads", (0,) * 2 * len(spans)), (2, -1))
        padded = op.Pad(match.x, np.pad(pads, ((0, 0), (2, 0))).ravel())
        value: ir.Value = op.AveragePool(padded, **keeping(node, "pads", "count_include_pad"))
        if all(more + step <= span for more, step, span in zip(pads[1], steps, spans, strict=True)):
            return value
        # a window that begins in the padding behind is none, but begins with numbers now
        counts = [size(node.outputs[0], axis + 2) for axis in range(len(spans))]
        if None in counts:
            raise NoMatch("how many windows begin in its padding is not known")
        none, axes = np.zeros(len(spans), np.int64), np.arange(2, len(spans) + 2)
        cut: ir.Value = op.Slice(value, none, np.array(counts), axes)
        return cut


def _spans(node: ir.Node, weight: ir.Value, rank: int) -> list[int]:
    """How many numbers the window spans, by axis.

    Raises:
        NoMatch: that is not known.
    """
    sizes = [size(weight, axis + 2) for axis in range(rank)]
    windows = node.attributes.get_ints("kernel_shape", [n for n in sizes if n is not None])
    if len(windows) != rank:
        raise NoMatch("the sizes of its window are not known, and so its pads are not")
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    return [(n - 1) * dilation + 1 for n, dilation in zip(windows, dilations, strict=True)]


def _shared_out(excess: Sequence[int], padding: str) -> tuple[list[int], list[int]]:
    """What is cut off before and behind; of an odd number the larger half goes where it is said."""
    small, large = [many // 2 for many in excess], [many - many // 2 for many in excess]
    return (small, large) if padding == "SAME_UPPER" else (large, small)


def _transposed(
    op: Builder, match: Match, added: Sequence[int], before: Sequence[int], behind: Sequence[int]
) -> ir.Value:
    value: ir.Value = op.ConvTranspose(
        *[value for value in match.root.inputs if value is not None],
        pads=[*before, *behind],
        output_padding=list(added) if any(added) else None,
        **keeping(match.root, "auto_pad", "output_shape", "output_padding", "pads"),
    )
    return value


def _cut_behind(
    op: Builder, match: Match, added: Sequence[int], wanted: Sequence[int], padding: str
) -> ir.Value:
    """All that comes, cut to a size; where less comes than is wanted, only the bias follows."""
    if op.opset < _SHAPE_FROM:
        raise NoMatch(f"output_shape of an unknown size needs opset {_SHAPE_FROM}")
    rank, inputs = len(wanted), [match.x, match.w]
    whole = op.ConvTranspose(
        *inputs,
        output_padding=list(added) if any(added) else None,
        **keeping(match.root, "auto_pad", "output_shape", "output_padding", "pads"),
    )
    lengths, none = np.array(wanted), np.zeros(rank, np.int64)
    excess = op.Sub(op.Shape(whole, start=2), lengths)
    cut = op.Max(excess, none)
    start = op.Div(cut, np.full(rank, 2))
    if padding != "SAME_UPPER":
        start = op.Sub(cut, start)
    kept = op.Slice(whole, start, op.Add(start, lengths), np.arange(2, rank + 2))
    lacking = op.Max(op.Neg(excess), none)
    value: ir.Value = op.Pad(kept, op.Concat(np.zeros(rank + 4, np.int64), lacking, axis=0))
    if match.b is not None:
        value = op.Add(value, op.Reshape(match.b, np.array([-1, *[1] * rank])))
    return value
