"""Dumps: the module as text after every pass that changed it, each a valid input again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from aigcc.errors import PipelineError, did_you_mean
from aigcc.ir.module import Module
from aigcc.pipeline.manager import Pass, PassRun


class Dump:
    """Writes `00-input.onnxtxt`, then `NN-pass-name.onnxtxt` for every pass that changed something.

    Args:
        folder: Where to; made if missing. Weights are referred to, or written once beside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, module: Module, passes: Sequence[Pass]) -> None:
        """Write the input."""
        self.folder.mkdir(parents=True, exist_ok=True)
        module.save(self.folder / "00-input.onnxtxt")

    def after(self, run: PassRun, module: Module) -> None:
        """Write the module if the pass changed it."""
        if run.rewrites:
            module.save(self.folder / f"{run.index:02d}-{run.name}.onnxtxt")


class PrintAfter:
    """Prints the module after one pass.

    Args:
        name: The pass.
        stream: Where to print.
    """

    def __init__(self, name: str, stream: TextIO = sys.stdout) -> None:
        self.name = name
        self.stream = stream

    def start(self, module: Module, passes: Sequence[Pass]) -> None:
        """Check that the pipeline has such a pass.

        Raises:
            PipelineError: it has not.
        """
        names = [current.name for current in passes]
        if self.name not in names:
            raise PipelineError(
                f"the pipeline has no pass {self.name!r} to print after",
                at=",".join(names),
                hint=did_you_mean(self.name, names),
            )

    def after(self, run: PassRun, module: Module) -> None:
        """Print the module if this was the pass."""
        if run.name == self.name:
            print(f"# after {run.index}-{run.text}", file=self.stream)
            print(module.text(), file=self.stream)
