"""The stand-alone page of `aigcc sensitivity`: the curve as inline SVG, and the nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aigcc.figures import amount, number
from aigcc.report.html import Html, code, document, long_table, scrolled, section, table, tag

if TYPE_CHECKING:
    from aigcc.sensitivity import Curve, Point

_WIDTH, _HEIGHT, _MARGIN = 720, 320, 56
_TICKS = 5
_PLOT_STYLE = Html(
    ".curve { width: 100%; min-width: 600px; height: auto; overflow: visible; }"
    ".curve text { fill: var(--soft); font-size: 12px; }"
    ".curve line { stroke: var(--line); }"
    ".curve polyline { fill: none; stroke: var(--accent); stroke-width: 2; }"
    ".curve circle { fill: var(--accent); }"
)


def render(curve: Curve, model: str, target: str | None, samples: str, *, synthetic: bool) -> str:
    """The page.

    Args:
        curve: What was measured.
        model: What it was measured of.
        target: Whose schemes were tried; None: the portable ones.
        samples: Where the inputs came from, in words.
        synthetic: Whether they were made up, which the page then says at its head.
    """
    return document(
        f"Sensitivity of {model}",
        _header(curve, model, target, samples, synthetic=synthetic),
        tag("main", _curve_section(curve), _nodes_section(curve)),
        style=_PLOT_STYLE,
    )


def _header(curve: Curve, model: str, target: str | None, samples: str, *, synthetic: bool) -> Html:
    if synthetic:
        kind, title, text = "warn", "Synthetic inputs", "Give real ones with --samples."
    else:
        kind, title, text = "good", "Measured", f"On {curve.samples} samples of {samples}."
    whose = ["schemes of ", code(target)] if target is not None else ["portable schemes"]
    return tag(
        "header",
        tag("p", "aigcc sensitivity", class_="brand"),
        tag("h1", model, class_="model"),
        tag("p", f"{len(curve.nodes)} nodes, ", whose, class_="target"),
        tag("p", tag("strong", title), tag("span", text), class_=f"verdict {kind}"),
    )


def _curve_section(curve: Curve) -> Html:
    rows = [
        [
            f"{point.bits:.2f}",
            number(point.sqnr, ".1f"),
            ", ".join(f"{count} {name}" for name, count in point.schemes.items()),
        ]
        for point in curve.points
    ]
    return section(
        "curve",
        "Quality against bits",
        _plot([point for point in curve.points if math.isfinite(point.sqnr)]),
        table([">bits per weight", ">SQNR dB", "nodes"], rows),
        lead="Each point is a whole model, built and run; nodes move to lower schemes in the order "
        "of least error per bit saved.",
    )


def _nodes_section(curve: Curve) -> Html:
    columns = ["node", ">weights", *(f">{name}" for name in curve.schemes), "from"]
    rows = [
        [
            [code(node.name), " ", tag("small", node.op)],
            amount(node.elements),
            *(number(node.sqnr.get(name), ".1f") for name in curve.schemes),
            [[code(text), " "] for text in (node.module, node.source) if text is not None],
        ]
        for node in curve.nodes
    ]
    notes = [f"{name} was not tried: {reason}" for name, reason in curve.skipped.items()]
    if curve.inside:
        notes.append(f"{curve.inside} nodes in sub-graphs and functions stay as they are.")
    return section(
        "nodes",
        "Nodes",
        long_table(columns, rows, "nodes"),
        [tag("p", note, class_="note") for note in notes],
        lead="SQNR in dB of the model's worst output with one node quantised.",
    )


def _plot(points: Sequence[Point]) -> Html | None:
    """Quality over bits; nothing where there is no range of them."""
    bits, decibels = [point.bits for point in points], [point.sqnr for point in points]
    if len(set(bits)) < 2:
        return None
    across = _Axis(min(bits), max(bits), _MARGIN, _WIDTH - _MARGIN)
    up = _Axis(min(decibels), max(max(decibels), min(decibels) + 1), _HEIGHT - _MARGIN, 16)
    places = [(across.at(point.bits), up.at(point.sqnr)) for point in points]
    marks = [
        tag("circle", tag("title", f"{p.bits:.2f} bits, {p.sqnr:.1f} dB"), cx=x, cy=y, r=5)
        for p, (x, y) in zip(points, places, strict=True)
    ]
    left, right, bottom = _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN
    grid = [tag("line", x1=left, x2=right, y1=up.at(tick), y2=up.at(tick)) for tick in up.ticks]
    labels = [
        tag("text", f"{tick:.0f} dB", x=left - 12, y=up.at(tick) + 4, text_anchor="end")
        for tick in up.ticks
    ]
    labels += [
        tag("text", f"{tick:.1f}", x=across.at(tick), y=bottom + 20, text_anchor="middle")
        for tick in across.ticks
    ]
    labels.append(tag("text", "bits per weight", x=right, y=_HEIGHT - 6, text_anchor="end"))
    line = tag("polyline", points=" ".join(f"{x},{y}" for x, y in places))
    label = "SQNR in dB over mean bits per weight"
    drawn = tag(
        "svg",
        [*grid, *labels, line, *marks],
        class_="curve",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=label,
    )
    return scrolled(drawn, label)


class _Axis:
    """Where numbers between two bounds are drawn between two places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end
        self.ticks = [low + (high - low) * step / (_TICKS - 1) for step in range(_TICKS)]

    def at(self, number: float) -> float:
        """The place of a number."""
        share = (number - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * share, 1)
