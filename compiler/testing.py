"""Checks for those who write passes: a pipeline leaves a module legal, printable and right."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.reference import Reference
from aigcc.synthetic import synthetic_feeds


def check_passes(
    module: Module, passes: Iterable[Pass], *, tolerance: float = 1e-5, ctx: Context | None = None
) -> Module:
    """Run passes on a copy, and check everything that is promised of any exact pass.

    Args:
        module: Is left as it is.
        passes: For example `aigcc.parse("fuse")`.
        tolerance: See `assert_same_outputs`.
        ctx: Where remarks are collected.

    Returns:
        The copy, transformed.

    Raises:
        PassError: a pass failed, or left a module that does not verify.
        AssertionError: the outputs changed, or the text form does not come back the same.
    """
    after = module.clone()
    PassManager(passes).run(after, ctx)
    assert Module.parse(after.text()).text() == after.text()
    assert_same_outputs(module, after, tolerance=tolerance)
    return after


def assert_same_outputs(
    before: Module, after: Module, *, tolerance: float = 1e-5, count: int = 2
) -> None:
    """Run both modules in ONNX Runtime, without its optimisations, on inputs that are made up.

    Args:
        before: The module that is right.
        after: The module that is judged; the same inputs and outputs.
        tolerance: How far an element may be off, relative to itself and to the largest of its
            output.
        count: Sets of inputs.

    Raises:
        AssertionError: an output differs, or is missing.
    """
    sessions = [Reference(module) for module in (before, after)]
    for feeds in synthetic_feeds(before, count=count):
        old, new = (session.run(feeds) for session in sessions)
        assert list(old) == list(new)
        for name, array in old.items():
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            np.testing.assert_allclose(
                new[name], array, tolerance, tolerance * largest, err_msg=name
            )
