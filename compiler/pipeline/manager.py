"""Passes and the manager that runs them: requires, run, invalidate, verify, observe."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from aigcc.errors import CompileError, PassError, describe, raised_at
from aigcc.ir.draws import name_draws
from aigcc.ir.module import Module
from aigcc.ir.verify import verify
from aigcc.options import show
from aigcc.pipeline.context import Context


@dataclasses.dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a module. Its fields are its options, in Python and in text.

    Attributes:
        name: What pipelines call it.
        requires: Checks that raise a CompileError where the module is not ready for the pass.
        preserves: Analyses that stay true when the pass changes the module.
        after: Names of passes that must run earlier if they are in the same pipeline.
        exact: Whether the outputs stay the same up to rounding; False for passes that change
            values on purpose, which numeric checks then leave to the final measurement.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Callable[[Module], None], ...]] = ()
    preserves: ClassVar[tuple[Callable[[Module], Any], ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[bool] = True

    @abstractmethod
    def run(self, module: Module, ctx: Context) -> None:
        """Change the module in place, asking `ctx.rewrite` before every change."""

    def __str__(self) -> str:
        return show(self, self.name)


@dataclasses.dataclass(frozen=True)
class PassRun:
    """What one pass did: its text, place in the pipeline, time and node counts."""

    index: int
    text: str
    name: str
    seconds: float
    rewrites: int
    nodes_before: int
    nodes_after: int
    exact: bool


class Observer(Protocol):
    """Something that looks at the module around each pass: dumps, checks, statistics."""

    def start(self, module: Module, passes: Sequence[Pass]) -> None:
        """Called once before the first pass."""
        ...

    def after(self, run: PassRun, module: Module) -> None:
        """Called after each pass, once the module has been verified."""
        ...


class PassManager:
    """Runs passes over modules.

    Args:
        passes: In the order in which they run.
        observers: Told about every pass.
        check: Whether the module's structure is verified before the first and after each pass.

    Raises:
        PassError: the order breaks a pass's `after`.
    """

    def __init__(
        self, passes: Iterable[Pass], *, observers: Iterable[Observer] = (), check: bool = True
    ) -> None:
        self.passes = list(passes)
        self.observers = list(observers)
        self.check = check
        _check_order(self.passes)

    def run(self, module: Module, ctx: Context | None = None) -> list[PassRun]:
        """Run all passes on `module`, in place.

        Raises:
            VerifyError: the module was broken before the first pass.
            PassError: a pass failed or broke the module; names the pass and its number.
        """
        ctx = ctx if ctx is not None else Context()
        if self.check:
            verify(module.model)
        name_draws(module)  # by which they are known however passes rename what they make
        for observer in self.observers:
            observer.start(module, self.passes)
        runs = []
        for index, current in enumerate(self.passes, start=1):
            ctx.progress(current.name, (index - 1) / len(self.passes))
            runs.append(self._run_one(index, current, module, ctx))
            for observer in self.observers:
                observer.after(runs[-1], module)
            if ctx.limit is not None and ctx.total >= ctx.limit:
                break
        ctx.progress("done", 1.0)
        return runs

    def _run_one(self, index: int, current: Pass, module: Module, ctx: Context) -> PassRun:
        where = f"pass {index} of {len(self.passes)}, {current}"
        nodes_before, rewrites_before = _count(module), ctx.total
        ctx.maker = current.name
        started = time.perf_counter()
        with _named(current, where):
            for requirement in current.requires:
                try:
                    requirement(module)
                except CompileError as error:
                    what = f"{current.name} cannot run here: {error.what}"
                    raise PassError(what, at=error.at, hint=error.hint) from error
            current.run(module, ctx)
        seconds = time.perf_counter() - started
        rewrites = ctx.total - rewrites_before
        if rewrites:
            module.invalidate(keep=current.preserves)
        if self.check:
            self._verify(module, where)
        return PassRun(
            index,
            str(current),
            current.name,
            seconds,
            rewrites,
            nodes_before,
            _count(module),
            current.exact,
        )

    @staticmethod
    def _verify(module: Module, where: str) -> None:
        try:
            verify(module.model)
        except CompileError as error:
            raise PassError(
                f"the pass left a broken module: {error.what}",
                at=f"{where}; {error.at}" if error.at else where,
                hint="this is a fault of the pass; --dump-ir shows the module before it",
            ) from error


@contextlib.contextmanager
def _named(current: Pass, where: str) -> Iterator[None]:
    """Let whatever the pass raises say which pass it was."""
    try:
        yield
    except CompileError as error:
        at = f"{where}; {error.at}" if error.at else where
        raise PassError(error.what, at=at, hint=error.hint) from error
    except Exception as error:
        raise PassError(
            f"{current.name} raised {describe(error)}",
            at=f"{where}; {raised_at(error)}",
            hint="this is a fault of the pass; --dump-ir shows the module before it",
        ) from error


def _count(module: Module) -> int:
    return sum(1 for _ in module.nodes())


def _check_order(passes: Sequence[Pass]) -> None:
    last = {current.name: index for index, current in enumerate(passes)}
    for index, current in enumerate(passes):
        for earlier in current.after:
            first_seen = any(p.name == earlier for p in passes[:index])
            if last.get(earlier, -1) > index and not first_seen:
                raise PassError(
                    f"{current.name} must run after {earlier}",
                    at=",".join(p.name for p in passes),
                    hint=f"move {earlier} before {current.name}",
                )
