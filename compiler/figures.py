"""Figures and names for people: bytes, counts, durations, and text that shows what it holds."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with its control characters, but for line ends, spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def amount(count: float) -> str:
    """A plain count for people: 124.4M."""
    for unit in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f}T"


def seconds(duration: float) -> str:
    """A duration for people."""
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1e3:.2f} ms"


def number(value: float | str | None, form: str = ".4g") -> str:
    """A number for people; "inf" and its like come out of JSON as text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:{form}}"
