"""What is done to each case: text form, surgeon, passes, targets, the FX view."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.surgeon import surgery
from aigcc.passes import PASSES
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.target import Target
from aigcc.targets import TARGETS

from .cases import Case
from .judge import (
    BROKEN,
    DECLINED,
    ENGINES,
    FOREIGN,
    RIGHT,
    UNKNOWN,
    WRONG,
    Outcome,
    Reference,
    is_foreign,
    judge,
    reference,
    run,
)

Check = Callable[[Case, Module, Reference], Outcome]


def check_case(case: Case, checks: Mapping[str, Check]) -> dict[str, Outcome]:
    """What becomes of one case, by check."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(case.model, path)
        try:
            module = Module.load(path)
        except CompileError as error:
            return dict.fromkeys(checks, _declined(error))
        original = reference(case, path)
        return {name: _guarded(check, case, module, original) for name, check in checks.items()}


def judge_file(case: Case, made: Path) -> Outcome:
    """What another tool made of a case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(case.model, path)
        return _judged(case, reference(case, path), made)


def _guarded(check: Check, case: Case, module: Module, original: Reference) -> Outcome:
    try:
        return check(case, module, original)
    except CompileError as error:
        return _declined(error)
    except Exception as error:  # noqa: BLE001 - which is what is looked for
        return Outcome(FOREIGN, f"{type(error).__name__}: {error}")


def _declined(error: CompileError) -> Outcome:
    return Outcome(FOREIGN if is_foreign(error) else DECLINED, error.what)


def _judged(case: Case, original: Reference, made: Module | Path) -> Outcome:
    """A module by its outputs: in ONNX Runtime, unless that does not run the original either."""
    if original.outputs is None:
        return Outcome(UNKNOWN, "nothing here runs the original")
    refused = ""
    for engine in ENGINES[: ENGINES.index(original.engine) + 1]:
        try:
            return judge(case, original, run(engine, made, case.feeds))
        except CompileError as error:
            refused = error.what
    return Outcome(BROKEN, refused)


def text(case: Case, module: Module, original: Reference) -> Outcome:
    """Load, print, parse, save: the same model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnxtxt"
        module.save(path)
        again = Module.load(path, roots=[module.path.parent])
        return _same(case, module, again, original)


def _same(case: Case, module: Module, again: Module, original: Reference) -> Outcome:
    """A module that has to be the same, node by node; or at least to compute the same."""
    if ir.to_proto(again.model) == ir.to_proto(module.model):
        return Outcome(RIGHT)
    return _judged(case, original, again)


def surgeon(case: Case, module: Module, original: Reference) -> Outcome:
    """To onnx-graphsurgeon and back, with its own clean-up."""
    again = module.clone()
    with surgery(again) as graph:
        graph.cleanup().toposort()
    return _same(case, module, again, original)


def passes(case: Case, module: Module, original: Reference) -> Outcome:
    """`canonicalize,fuse`, without a target."""
    again = module.clone()
    PassManager(parse("canonicalize,fuse", PASSES)).run(again)
    return _judged(case, original, again)


_RUN = ("mobile", "cpu")
"""The targets whose programs are quick to make and run on any machine."""


def _target(name: str) -> Check:
    def check(case: Case, module: Module, original: Reference) -> Outcome:
        target = TARGETS[name]() if name != "gpu" else TARGETS[name](precision="fp32")
        ctx = Context(target=target)
        again = target.prepare(module.clone(), ctx)
        PassManager(parse(target.pipeline(), PASSES)).run(again, ctx)
        outcome = _judged(case, original, again)
        problems = target.check(again)
        if outcome.verdict != WRONG and problems:
            return Outcome(DECLINED, "; ".join(sorted({p.message for p in problems})))
        runs_here = name in _RUN and outcome.verdict == RIGHT
        return _deployed(case, original, target, again) if runs_here else outcome

    return check


def _deployed(case: Case, original: Reference, target: Target, made: Module) -> Outcome:
    """What the target takes has to run as it is deployed, where this machine can show that."""
    try:
        session = target.open(made, threads=1)
        outputs = None if session is None else session.run(case.feeds)
    except CompileError as error:
        return Outcome(BROKEN, f"as deployed: {error.what}")
    if outputs is None:
        return Outcome(RIGHT)
    outcome = judge(case, original, outputs)
    return outcome if outcome.verdict == RIGHT else Outcome(WRONG, f"as deployed: {outcome.why}")


def fx(case: Case, module: Module, original: Reference) -> Outcome:
    """As torch code: built, run, compared."""
    import torch

    from aigcc.ir.fxview import to_fx

    graph = to_fx(module)
    feeds = [_to_torch(case.feeds[value.name or ""]) for value in module.inputs]
    with torch.no_grad():
        made = graph(*feeds)
    results = list(made) if isinstance(made, tuple) else [made]
    names = [value.name or "" for value in module.outputs]
    outputs = {n: _to_numpy(x) for n, x in zip(names, results, strict=True)}
    return judge(case, original, outputs)


def _to_torch(feed: Any) -> Any:
    import torch

    from aigcc.ir.fxview.dtypes import TORCH

    if feed is None:
        return None
    if isinstance(feed, list):
        return [_to_torch(item) for item in feed]
    dtype = ir.DataType.from_numpy(feed.dtype)
    if dtype.bitwidth < 8:
        return torch.from_numpy(feed.astype(np.float32)).to(TORCH[dtype])
    if not feed.size:
        return torch.empty(feed.shape, dtype=TORCH[dtype])
    return torch.frombuffer(bytearray(feed.tobytes()), dtype=TORCH[dtype]).view(feed.shape)


def _to_numpy(made: Any) -> Any:
    import torch

    if isinstance(made, list | tuple):
        return [_to_numpy(item) for item in made]
    if made is None:
        return None
    made = made.detach()
    if made.dtype.is_floating_point and made.dtype not in (torch.float32, torch.float64):
        return made.to(torch.float32).numpy()
    return made.numpy()


CHECKS: dict[str, Check] = {
    "text": text,
    "surgeon": surgeon,
    "canonicalize,fuse": passes,
    **{name: _target(name) for name in ("mobile", "cpu", "gpu", "jetson")},
    "to_fx": fx,
}
