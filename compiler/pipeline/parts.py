"""The parts of a pipeline that keep outputs as they are, each with the module before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aigcc.ir.module import Module
from aigcc.pipeline.manager import Pass, PassRun


@dataclasses.dataclass(frozen=True)
class Part:
    """Passes in a row that change no values on purpose, and have rewritten something.

    Attributes:
        before: The module as the first of them got it.
        after: The module as the last of them left it.
        passes: Those that ran.
        runs: What each of them did.
        is_first: Whether nothing that changes values came before.
    """

    before: Module
    after: Module
    passes: Sequence[Pass]
    runs: Sequence[PassRun]
    is_first: bool

    @property
    def rewrites(self) -> int:
        """How many rewrites were made."""
        return sum(run.rewrites for run in self.runs)


class Parts:
    """An observer that keeps the exact parts of a pipeline apart from passes that change values."""

    def __init__(self) -> None:
        self._found: list[Part] = []
        self._passes: Sequence[Pass] = ()
        self._runs: list[PassRun] = []
        self._is_first = True
        self._before: Module | None = None
        self._saved: Module | None = None

    def start(self, module: Module, passes: Sequence[Pass]) -> None:
        """Begin with the module as it is."""
        self._found, self._passes, self._runs, self._is_first = [], passes, [], True
        self._before = module.clone()
        self._save_for(0, module)

    def after(self, run: PassRun, module: Module) -> None:
        """Take in what a pass did, and close a part where it changed values."""
        if run.exact or not run.rewrites:
            self._runs.append(run)
        else:
            if self._saved is not None:
                self._close(self._saved)
            self._runs, self._is_first, self._before = [], False, module.clone()
        self._save_for(run.index, module)

    def found(self, module: Module) -> list[Part]:
        """All parts in their order; `module` is what the last pass left."""
        self._close(module)
        self._runs = []
        return self._found

    def _save_for(self, index: int, module: Module) -> None:
        """Keep the module where the pass at `index` may change values."""
        if index < len(self._passes) and not self._passes[index].exact:
            self._saved = module.clone()

    def _close(self, module: Module) -> None:
        if self._before is None or not any(run.rewrites for run in self._runs):
            return
        passes = [self._passes[run.index - 1] for run in self._runs]
        self._found.append(Part(self._before, module, passes, self._runs, self._is_first))
