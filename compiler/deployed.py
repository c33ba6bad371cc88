"""Programs as they run deployed, opened here to be compared with what they were made of."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from aigcc.errors import CompileError, TargetError
from aigcc.ir.draws import count_draws
from aigcc.ir.module import Module
from aigcc.noise import equal_noise
from aigcc.options import show
from aigcc.pipeline.context import Context
from aigcc.provenance import stripped
from aigcc.reference import Reference
from aigcc.target import Feeds, Lowered, Session, Target


@dataclasses.dataclass(frozen=True)
class Refused:
    """A program that its runtime refuses to load: it fails in each run.

    Attributes:
        error: What the runtime says.
    """

    error: CompileError

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Raise what the runtime says."""
        raise self.error


def open_program(
    target: Target, module: Module, folder: Path, lowered: Lowered, ctx: Context
) -> Session | None:
    """The program that was lowered; None where it cannot run here.

    One that draws random numbers runs once as it is, and what is returned is lowered anew from a
    module with equal noise.

    Raises:
        TargetError: it draws random numbers, and does not run as it is.
    """
    try:
        session = target.session(folder, lowered.entry, ctx.threads)
    except CompileError as error:
        return Refused(error)
    if session is None or not count_draws(module):
        return session
    assert ctx.samples is not None
    try:
        session.run(next(iter(ctx.samples)))
    except CompileError as error:
        where = show(target, target.name)
        raise TargetError(f"the built program fails: {error}", at=where) from error
    return _twin(target, module, ctx)


def _twin(target: Target, module: Module, ctx: Context) -> Session | None:
    from aigcc.passes.quant.trial import silent

    ctx.progress("lowering a copy with equal noise", 0.0)
    with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as name:
        try:
            lowered = target.lower(equal_noise(stripped(module)), Path(name), silent(ctx))
            return target.session(Path(name), lowered.entry, ctx.threads)
        except CompileError as error:
            ctx.note(None, f"the program cannot be compared with equal noise: {error.what}")
            return None


def open_module(target: Target, module: Module, threads: int | None = None) -> Session | None:
    """A module as a target runs it; None where that cannot be, or it is not legal there yet."""
    try:
        return target.open(equal_noise(module), threads)
    except CompileError as error:
        return None if target.check(module) else Refused(error)


def open_here(target: Target, module: Module, ctx: Context) -> Session | None:
    """The module as the target computes it, made for this machine; None where that cannot be."""
    session = target.open(equal_noise(module), ctx.threads)
    if session is not None:
        ctx.note(None, "compared by the same program, made for this machine")
    return session


def open_before_lowering(module: Module, ctx: Context) -> Session | None:
    """The module that was lowered, in ONNX Runtime: the best that can be run here of a program."""
    try:
        return Reference(module, ctx.threads, rounds=True)
    except CompileError as error:
        ctx.note(None, f"the outputs cannot be compared on this machine: {error.what}")
        return None
