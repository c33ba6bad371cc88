"""HTML that is safe by construction: what is not markup is escaped when it enters an element."""

from __future__ import annotations

import functools
import html
import importlib.resources
from collections.abc import Iterable, Sequence

from aigcc.figures import printable

_ROWS = 12  # of a long table that are shown at once
_VOID = frozenset({"link", "meta"})

# No script runs and nothing is fetched, whatever a page might hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Markup. Any other text that is put into an element is escaped there."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: Such as "td".
        children: Markup, text, numbers, or lists of these; None is left out.
        attributes: `class_` and `data_x` become `class` and `data-x`; None is left out, and True
            gives the name alone.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{_escape(value)}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened if name in _VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """The markup of several things, one after the other."""
    return Html("".join(map(_markup, children)))


def _markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    return join(child) if isinstance(child, list | tuple) else _escape(child)


def _escape(thing: object) -> str:
    return html.escape(printable(str(thing)))


def document(title: str, *children: object, style: Html | None = None) -> str:
    """A whole page that needs nothing else, in the style that all pages have.

    Args:
        title: Of the page.
        children: Of its body.
        style: Rules besides those of all pages.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - aigcc"),
        tag("style", _style(), style),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *children), lang='en')}\n"


@functools.cache
def _style() -> Html:
    return Html(importlib.resources.files(__package__).joinpath("style.css").read_text("utf-8"))


def code(text: object) -> Html:
    """A name or a value of the model's, which may be long and in any script."""
    return tag("code", text)


def chip(text: object, kind: str = "") -> Html:
    """A word in a coloured pill: good, warn, or neutral."""
    return tag("span", text, class_=f"chip {kind}".strip())


def change(before: int, after: int) -> str:
    """A difference with its sign; nothing where there is none."""
    return f"{after - before:+d}".replace("-", "\N{MINUS SIGN}") if after != before else ""


def section(key: str, title: str, *children: object, lead: object = None) -> Html:
    """A part of the page, which the navigation names, with a sentence below its title."""
    head = [tag("h2", title), None if lead is None else tag("p", lead, class_="lead")]
    return tag("section", head, children, id=key)


def fold(summary: object, *children: object, is_open: bool = False) -> Html:
    """Something that opens with a click."""
    return tag("details", tag("summary", summary), children, open=is_open)


def long_table(columns: Sequence[str], rows: Sequence[Sequence[object]], what: str) -> list[Html]:
    """A table whose later rows are folded where there are many; `what` names them."""
    shown, rest = rows[:_ROWS], rows[_ROWS:]
    folded = [fold(f"{len(rest)} more {what}", table(columns, rest))] if rest else []
    return [table(columns, shown), *folded]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table.

    Args:
        columns: Headings; a leading '>' aligns to the right, '=' makes room for bars, and '!' keeps
            the column as narrow as its words.
        rows: As many cells as there are columns.
    """
    kinds = [{">": "num", "=": "bars", "!": "tight"}.get(column[:1]) for column in columns]
    names = [column.lstrip("=>!") for column in columns]
    heads = [
        tag("th", name, class_=kind, scope="col") for name, kind in zip(names, kinds, strict=True)
    ]
    body = [
        tag("tr", [tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)])
        for row in rows
    ]
    head = tag("thead", tag("tr", heads)) if any(names) else None
    made = tag("table", head, tag("tbody", body))
    return scrolled(made, ", ".join(filter(None, names)) or "values")


def scrolled(content: Html, label: str) -> Html:
    """What may be wider than the page: it scrolls by itself, with a keyboard, too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)
