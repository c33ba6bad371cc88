"""Two programs that are compared: opened so that both draw the same random numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aigcc.artifact import Artifact
from aigcc.driver import load
from aigcc.ir.draws import count_draws
from aigcc.ir.module import Module
from aigcc.noise import describe_noise, equal_noises
from aigcc.reference import Reference
from aigcc.runtime import OrtSession
from aigcc.target import Session
from aigcc.targets import make_target


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two programs that draw random numbers.

    Attributes:
        programs: Their signatures and sessions; None where they have to run as they are.
        noise: What is to be said of their noise.
    """

    programs: tuple[tuple[Module, Session], tuple[Module, Session]] | None
    noise: str


def open_alike(a: str, b: str, threads: int | None, roots: list[Path] | None) -> Pair:
    """Two programs with equal noise, where both are models or artifacts whose nodes can be read.

    Args:
        a: The original.
        b: What is judged by it.
        threads: How many threads each may use.
        roots: Folders in which texts may name data.
    """
    if not any(_drawn(program, roots) for program in (a, b)):
        return Pair(None, "")
    first, second = _nodes(a, roots), _nodes(b, roots)
    if first is None or second is None:
        closed = a if first is None else b
        return Pair(
            None,
            f"{closed} cannot be given the random numbers of another program, so the figures show "
            "these, too; aigcc build compares with equal noise",
        )
    noise = describe_noise(first) or describe_noise(second)
    first, second = equal_noises(first, second)
    programs = _open(a, first, threads, rounds=False), _open(b, second, threads, rounds=True)
    return Pair(programs, noise)


def _drawn(program: str, roots: list[Path] | None) -> int:
    """How many random operators a program has."""
    if Path(program).is_dir():
        return int(Artifact.load(Path(program)).manifest.get("draws", 0))
    return count_draws(load(program, roots=roots or ()))


def _nodes(program: str, roots: list[Path] | None) -> Module | None:
    """The nodes of a program; None of one that a vendor's compiler made."""
    folder = Path(program)
    if not folder.is_dir():
        return load(program, roots=roots or ())
    entry = Artifact.load(folder).entry
    return Module.load(folder / entry) if entry.endswith(".onnx") else None


def _open(
    program: str, module: Module, threads: int | None, *, rounds: bool
) -> tuple[Module, Session]:
    folder = Path(program)
    if not folder.is_dir():
        return module, Reference(module, threads, rounds=rounds)
    artifact = Artifact.load(folder)
    session = make_target(artifact.manifest["target"]).open(module, threads)
    return artifact.signature(), session or OrtSession(module, threads=threads)
