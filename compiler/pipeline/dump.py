"""Dumps: the module as text after every pass that changed it, each a valid input again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from aigcc.errors import CompileError, PipelineError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ir.text.dataref import WeightFile
from aigcc.ir.text.printer import INLINE_LIMIT, print_model, write_text
from aigcc.pipeline.manager import Pass, PassRun

_INPUT = "00-input.onnxtxt"
_WEIGHTS = "00-weights.data"
_OWN_FILE = re.compile(r"\d\d-[a-z0-9-]+\.(onnxtxt|data)|\..*\.tmp")


class Dump:
    """Writes `00-input.onnxtxt`, then `NN-pass-name.onnxtxt` for every pass that changed something.

    Weights that are in a file are referred to; the others are written once, to `00-weights.data`.

    Args:
        folder: Where to; made if missing. The dumps of an earlier run are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._weights: WeightFile | None = None

    def start(self, module: Module, passes: Sequence[Pass]) -> None:
        """Write the input.

        Raises:
            CompileError: the folder holds something other than dumps, or cannot be written.
        """
        try:
            self._clear(module)
        except OSError as error:
            raise CompileError(
                f"the dumps cannot be written: {error.strerror}",
                at=str(error.filename),
                hint="name another folder: --dump-ir=FOLDER",
            ) from error
        self._write(module, _INPUT)

    def after(self, run: PassRun, module: Module) -> None:
        """Write the module if the pass changed it."""
        if run.rewrites:
            self._write(module, f"{run.index:02d}-{run.name}.onnxtxt")

    def _clear(self, module: Module) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = list(self.folder.iterdir())
        is_input = module.path is not None and module.path.parent.resolve() == self.folder.resolve()
        is_own = all(_OWN_FILE.fullmatch(path.name) for path in files)
        if files and (is_input or not is_own or self.folder / _INPUT not in files):
            raise CompileError(
                f"the folder for the dumps {self.folder} "
                + ("is the model's own" if is_input else "holds other files"),
                hint="name a new one: --dump-ir=FOLDER",
            )
        for path in files:
            path.unlink()

    def _write(self, module: Module, name: str) -> None:
        path = self.folder / _WEIGHTS
        with path.open("ab") as file:
            if self._weights is None:
                self._weights = WeightFile(path, file)
            self._weights.file = file
            write_text(module.model, self.folder / name, data=self._weights, brief=True)
        if not path.stat().st_size:
            path.unlink()


class PrintAfter:
    """Prints the module after one pass, with `...` for large weights that are in no file yet.

    Args:
        name: The pass.
        stream: Where to print; standard output by default.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
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
            text = print_model(module.model, inline_limit=INLINE_LIMIT, brief=True)
            print(text, file=self.stream, flush=True)
