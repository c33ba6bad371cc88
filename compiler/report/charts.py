"""Charts without scripts: bars as inline SVG, and a treemap of boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aigcc.figures import size
from aigcc.report.html import Html, tag

_HEIGHT = 40.0  # of a treemap that is 100 wide
_VISIBLE = 1 / 2000  # of the whole; smaller boxes would be thinner than their borders


def bar(fraction: float, label: str, kind: str = "") -> Html:
    """A horizontal bar that fills `fraction` (0 to 1) of its track."""
    width = f"{100 * min(max(fraction, 0.0), 1.0):.2f}"
    parts = [
        tag("rect", class_="track", width=100, height=8),
        tag("rect", class_=f"fill {kind}".strip(), width=width, height=8),
    ]
    return _svg("bar", label, parts)


def stack(parts: Sequence[tuple[float, str]], label: str) -> Html:
    """One bar made of several.

    Args:
        parts: The fraction of each, which together make 1, and its class.
        label: What it shows, for those who cannot see it.
    """
    boxes, start = [], 0.0
    for fraction, kind in parts:
        box = {"x": f"{100 * start:.2f}", "width": f"{100 * fraction:.2f}", "height": 8}
        boxes.append(tag("rect", class_=kind, **box))
        start += fraction
    return _svg("stack", label, boxes)


def _svg(kind: str, label: str, children: Sequence[Html]) -> Html:
    return tag(
        "svg",
        list(children),
        class_=kind,
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


@dataclasses.dataclass(frozen=True)
class Box:
    """A box of a treemap: a name, more to say of it, its bytes, and its class."""

    name: str
    title: str
    bytes: int
    kind: str


@dataclasses.dataclass(frozen=True)
class _Area:
    x: float
    y: float
    width: float
    height: float


def treemap(boxes: Sequence[Box], label: str) -> Html:
    """Boxes whose areas are their bytes, in the order given: largest first is best.

    They are laid out in rows as square as can be: Bruls, Huizing and van Wijk, Squarified
    Treemaps, 2000.
    """
    least = _VISIBLE * sum(box.bytes for box in boxes)
    boxes = [box for box in boxes if box.bytes > least]
    areas = _squarify([box.bytes for box in boxes], _Area(0, 0, 100, _HEIGHT))
    cells = [_cell(box, area) for box, area in zip(boxes, areas, strict=True)]
    return tag("div", cells, class_="treemap", role="img", aria_label=label)


def _cell(box: Box, area: _Area) -> Html:
    places = {
        "left": area.x / 100,
        "top": area.y / _HEIGHT,
        "width": area.width / 100,
        "height": area.height / _HEIGHT,
    }
    style = ";".join(f"{side}:{100 * fraction:.2f}%" for side, fraction in places.items())
    words = [tag("b", box.name), tag("span", size(box.bytes))]
    title = f"{box.title}, {size(box.bytes)}"
    return tag("div", tag("div", words, class_=box.kind, title=title), style=style)


def _squarify(amounts: Sequence[float], free: _Area) -> list[_Area]:
    """The areas of `amounts`, which fill `free` in the order given."""
    areas: list[_Area] = []
    while len(areas) < len(amounts):
        rest = amounts[len(areas) :]
        scale = free.width * free.height / sum(rest)
        side = min(free.width, free.height)
        count = 1
        while count < len(rest) and _longest(rest[: count + 1], scale, side) <= _longest(
            rest[:count], scale, side
        ):
            count += 1
        row, free = _lay_row(rest[:count], scale, free)
        areas.extend(row)
    return areas


def _longest(row: Sequence[float], scale: float, side: float) -> float:
    """The worst ratio of sides in a row of boxes along `side`."""
    total = sum(row) * scale
    largest, smallest = max(row) * scale, min(row) * scale
    return max(side**2 * largest / total**2, total**2 / (side**2 * smallest))


def _lay_row(row: Sequence[float], scale: float, free: _Area) -> tuple[list[_Area], _Area]:
    """The boxes of a row along the shorter side of `free`, and what remains of it."""
    total = sum(row) * scale
    is_column = free.width >= free.height
    depth = total / (free.height if is_column else free.width)
    made, at = [], 0.0
    for amount in row:
        length = amount * scale / depth
        if is_column:
            made.append(_Area(free.x, free.y + at, depth, length))
        else:
            made.append(_Area(free.x + at, free.y, length, depth))
        at += length
    if is_column:
        return made, _Area(free.x + depth, free.y, free.width - depth, free.height)
    return made, _Area(free.x, free.y + depth, free.width, free.height - depth)
