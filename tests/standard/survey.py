"""All cases, or a slice of them, through all checks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .cases import all_cases
from .checks import CHECKS
from .judge import Outcome
from .pool import Lost, Server, in_parallel
from .variants import VARIANTS

WORKER = (sys.executable, str(Path(__file__).with_name("worker.py")))
"""The command of the process that runs checks."""

WATCHED = Path(__file__).with_name("watched.txt")
"""Cases that failed once, and the variants in which they did: they are in every slice."""

EVERY = 16
"""One case in so many is in a slice."""

_FEW = ("text", "canonicalize,fuse", "mobile", "to_fx")
PLAN: dict[str, tuple[str, ...]] = {
    variant: tuple(CHECKS) if variant == "plain" else _FEW for variant in VARIANTS
}
"""The checks of each variant: targets share their passes, so that one of them speaks for all."""

Question = tuple[str, str]
"""A case and a variant of it."""


class Finding(NamedTuple):
    """What became of a case in a variant under a check."""

    case: str
    variant: str
    check: str
    outcome: Outcome


def sliced(variant: str) -> list[str]:
    """The cases of a quick run; another part of them for each variant."""
    names, offset = list(all_cases()), list(VARIANTS).index(variant)
    rows = (line.split("\t") for line in WATCHED.read_text("utf-8").splitlines())
    watched = {name for name, *variants in rows if variant in variants}
    return sorted({*names[offset::EVERY], *watched}, key=names.index)


def survey(
    names: Sequence[str] | None = None, variants: Sequence[str] = tuple(VARIANTS)
) -> Iterator[Finding]:
    """Run cases in processes of their own, so that a crash or a hang is a finding.

    Args:
        names: The cases; a slice by default.
        variants: What is made of each.
    """
    questions = [
        (name, variant)
        for variant in variants
        for name in (sliced(variant) if names is None else names)
    ]
    servers = [Server(WORKER) for _ in range(os.cpu_count() or 1)]
    for (name, variant), answer in in_parallel(servers, questions, _ask):
        for check, outcome in answer.items():
            yield Finding(name, variant, check, outcome)


def _ask(server: Server, question: Question) -> dict[str, Outcome]:
    checks = PLAN[question[1]]
    try:
        return _answer(server, question, checks)
    except Lost:
        pass  # one of the checks did it; which one is found by asking for them one by one
    found: dict[str, Outcome] = {}
    for check in checks:
        try:
            found |= _answer(server, question, (check,))
        except Lost as lost:
            found[check] = Outcome(str(lost))
    return found


def _answer(server: Server, question: Question, checks: Sequence[str]) -> dict[str, Outcome]:
    made = server.ask({"case": question, "checks": checks})
    return {check: Outcome(*outcome) for check, outcome in made.items()}
