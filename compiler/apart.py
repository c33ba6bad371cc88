"""Runs models in ONNX Runtime in a process of its own, where a crash of a kernel stays.

The child is this file: it is given a folder with models and inputs, leaves outputs there, and loads
nothing of aigcc, which would take longer than the rest.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from aigcc.ir.module import Module

Outputs = Mapping[str, npt.NDArray[Any]]

STOPPED = "the process stops"
"""What went wrong where a kernel crashed, or something before it did."""

_SECONDS = 30.0


def run_apart(
    models: Sequence[Module], feeds: Sequence[Outputs], threads: int | None = None
) -> list[list[Outputs | str]]:
    """The outputs of some models for some inputs, without ONNX Runtime's optimisations.

    Args:
        models: Their inputs and outputs are of numpy's own types.
        feeds: Input name to array. No model gets those behind one that stopped the process.
        threads: Threads within an operator; all cores by default.

    Returns:
        By inputs and model, the outputs, or what went wrong.
    """
    from aigcc.passes.convert_opset import readable

    with tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for number, model in enumerate(models):
            (folder / str(number)).mkdir()
            readable(model).save(folder / str(number) / "model.onnx", external=True)
        for number, arrays in enumerate(feeds):
            np.savez(folder / f"in-{number}.npz", **_numbered(arrays))
            (folder / f"in-{number}.txt").write_text(json.dumps(list(arrays)), "utf-8")
        command = [sys.executable, __file__, name, str(len(models)), str(threads or 0)]
        with contextlib.suppress(subprocess.TimeoutExpired):  # what is not done counts as stopped
            subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        return [
            [_outcome(folder / f"out-{number}-{place}") for place in range(len(models))]
            for number in range(len(feeds))
        ]


def _numbered(arrays: Outputs) -> dict[str, Any]:
    """Arrays under names that a file can have."""
    return {f"a{place}": array for place, array in enumerate(arrays.values())}


def _outcome(stem: Path) -> Outputs | str:
    from aigcc.runtime import in_words

    names, arrays, error = (stem.with_suffix(end) for end in (".txt", ".npz", ".err"))
    if error.is_file():
        return in_words(error.read_text("utf-8"))
    if not names.is_file():
        return STOPPED
    with np.load(arrays) as found:
        return dict(zip(json.loads(names.read_text("utf-8")), found.values(), strict=True))


def _serve(folder: Path, count: int, threads: int) -> None:
    """The child's side."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type)]
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError)
    errors += tuple(kind for kind in kinds if issubclass(kind, Exception))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    sessions = [
        ort.InferenceSession(
            folder / str(place) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        for place in range(count)
    ]
    number = 0
    while (names := folder / f"in-{number}.txt").is_file():
        with np.load(folder / f"in-{number}.npz") as found:
            feeds = dict(zip(json.loads(names.read_text("utf-8")), found.values(), strict=True))
        for place, session in enumerate(sessions):
            stem = folder / f"out-{number}-{place}"
            try:
                outputs = dict(
                    zip(
                        [value.name for value in session.get_outputs()],
                        session.run(None, feeds),
                        strict=True,
                    )
                )
            except errors as error:
                stem.with_suffix(".err").write_text(str(error), "utf-8")
                break
            np.savez(stem.with_suffix(".npz"), **_numbered(outputs))
            stem.with_suffix(".txt").write_text(json.dumps(list(outputs)), "utf-8")
        number += 1


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
