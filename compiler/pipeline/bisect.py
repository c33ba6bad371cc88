"""Bisection: which rewrite of a pipeline is the first that changes the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aigcc.ir.module import Module
from aigcc.pipeline.attempts import FirstWrong, Progress, Search, meant
from aigcc.pipeline.manager import Pass
from aigcc.samples import Samples
from aigcc.target import Target


def find_first_wrong(
    module: Module,
    passes: Sequence[Pass],
    samples: Samples,
    *,
    tolerance: float,
    target: Target | None = None,
    progress: Progress = lambda text, fraction: None,
) -> FirstWrong:
    """Bisect over the number of rewrites, running the first sample each time.

    Modules run as they mean, without ONNX Runtime's optimisations. Where all are right then, they
    run as the target deploys them, or without one in ONNX Runtime with its optimisations, whose
    own rewrites may be what is wrong. They are compared with the model as it is meant, or where it
    is deployed otherwise itself, with the model as it is deployed.

    Args:
        module: The input of the pipeline; it is left as it is.
        passes: The pipeline.
        samples: The first of them is used.
        tolerance: The largest max|a-b| / max|a| that counts as right.
        target: What the passes may ask.
        progress: Told how far the search is.

    Raises:
        CompileError: the module does not run before the first pass, or its outputs are empty.
    """
    search = Search(module, samples, tolerance, target, progress)
    found = search.find(passes, meant)
    if not found.is_right:
        return found
    name = "ONNX Runtime with its optimisations" if target is None else target.name
    whole = search.attempt(passes, search.deployed)
    if whole.is_unknown:
        return found
    if whole.error <= tolerance:
        return dataclasses.replace(found, deployed=name)
    original = search.attempt(passes, search.deployed, 0)
    is_off = not original.is_unknown and original.error > tolerance
    otherwise = search.blame(module) if is_off else None
    if is_off and not original.failure:  # so what is deployed is judged by that
        search.judge_by(search.deployed)
        whole = search.attempt(passes, search.deployed)
    if is_off and (original.failure or whole.error <= tolerance):
        return FirstWrong(
            found.rewrites,
            failure=original.failure,
            deployed=name,
            only_deployed=True,
            original=original.error,
            blame=otherwise,
        )
    found = dataclasses.replace(search.find(passes, search.deployed, whole), deployed=name)
    if found.remark is None:
        return found
    made, _ = search.run(passes, found.number or None)
    off = original.error if is_off else 0.0
    return dataclasses.replace(found, only_deployed=True, original=off, blame=search.blame(made))
