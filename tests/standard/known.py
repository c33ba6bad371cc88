"""Faults that are known: the list may only shrink."""

from __future__ import annotations

from pathlib import Path

from .survey import Finding

FILE = Path(__file__).with_name("known.txt")
"""A line each: case, variant, check."""


def known() -> set[tuple[str, str, str]]:
    """The case, the variant and the check of each fault that is known."""
    rows = (line.split("\t") for line in FILE.read_text("utf-8").splitlines())
    return {(case, variant, check) for case, variant, check in rows}


def place(finding: Finding) -> tuple[str, str, str]:
    """What `known` calls a finding."""
    return finding.case, finding.variant, finding.check
