"""Whether a model gives what its case asks for: by ONNX Runtime, else by ONNX's own evaluator."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.runtime import OrtSession

from .cases import Case

RIGHT, DECLINED, WRONG, BROKEN, FOREIGN, UNKNOWN = (
    "right",
    "declined",
    "wrong",
    "does not run",
    "exception",
    "not judged",
)
VERDICTS = (RIGHT, DECLINED, WRONG, BROKEN, FOREIGN, "crash", "hang", UNKNOWN)
FAULTS = (WRONG, BROKEN, FOREIGN, "crash", "hang")

ENGINES = ("onnxruntime", "onnx")
"""What runs models, the first choice first."""

Outputs = Mapping[str, Any]

_DISGUISED = re.compile(r"(?:raised|cannot become torch:) \w*(?:Error|Exception|Exit|Interrupt)\b")
# Relative errors that rounding of such outputs explains.
_COARSE = {"float16": 2e-3, "bfloat16": 1.6e-2}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        verdict: One of `VERDICTS`.
        why: The reason, for all but right.
    """

    verdict: str
    why: str = ""


def is_foreign(error: CompileError) -> bool:
    """Whether a CompileError only dresses up an exception that nobody foresaw."""
    return _DISGUISED.search(error.what) is not None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the original gives.

    Attributes:
        outputs: Of the original as it runs, None where nothing here runs it.
        engine: What runs it, and has to run what is made of it.
    """

    outputs: Outputs | None
    engine: str


def run(engine: str, model: Module | Path, feeds: Mapping[str, Any]) -> Outputs:
    """The outputs of a model, or of a file, by an engine.

    Raises:
        CompileError: the engine refuses the model, or fails.
    """
    if engine == "onnxruntime":
        return OrtSession(model, optimise=False, threads=1).run(feeds)
    if isinstance(model, Path):
        return evaluate(onnx.load(model), feeds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        return evaluate(onnx.load(path), feeds)


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> Outputs:
    """The outputs by ONNX's own evaluator."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            made = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception as error:
        raise CompileError(f"ONNX's evaluator: {type(error).__name__}: {error}") from error
    names = [value.name for value in model.graph.output]
    return dict(flat(dict(zip(names, made, strict=True))))


def reference(case: Case, path: Path) -> Reference:
    """What the original gives, by the first engine that runs it."""
    for engine in ENGINES:
        try:
            return Reference(run(engine, path, case.feeds), engine)
        except CompileError:
            continue
    return Reference(None, "")


def flat(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Outputs, with the items of a sequence one by one."""
    for name, value in outputs.items():
        if isinstance(value, list | tuple):
            yield from flat({f"{name}[{index}]": item for index, item in enumerate(value)})
        elif value is not None:
            yield name, np.asarray(value)


def judge(case: Case, original: Reference, made: Outputs) -> Outcome:
    """Compare with what the case asks for, and with what the original gives."""
    found = dict(flat(made))
    answers = [dict(flat(case.wanted))]
    if original.outputs is not None:
        answers.append(dict(original.outputs))
    reasons = [_difference(found, answer, case) for answer in answers]
    if "" in reasons:
        return Outcome(RIGHT)
    return Outcome(WRONG, reasons[-1])


def _difference(found: Outputs, answer: Outputs, case: Case) -> str:
    """Where outputs differ, in words; empty where they agree."""
    if list(found) != list(answer):
        return f"outputs {list(found)} instead of {list(answer)}"
    for name, right in answer.items():
        mine = found[name]
        if mine.shape != right.shape:
            return f"{name} has shape {mine.shape} instead of {right.shape}"
        if case.is_random:
            continue
        if right.dtype.kind in "OUST":
            if not np.array_equal(mine.astype(str), right.astype(str)):
                return f"{name} has other strings"
            continue
        rtol = max(case.rtol, _COARSE.get(right.dtype.name, 0), _COARSE.get(mine.dtype.name, 0))
        kind = complex if right.dtype.kind == "c" else np.float64
        a, b = mine.astype(kind), right.astype(kind)
        atol = max(case.atol, 1e-6 * float(np.abs(b[np.isfinite(b)]).max(initial=0)))
        if not np.allclose(a, b, rtol, atol, equal_nan=True):
            off = ~np.isclose(a, b, rtol, atol, equal_nan=True)
            return f"{name} has {a[off][0]} instead of {b[off][0]}, in {off.sum()} of {off.size}"
    return ""
