"""What a module means, computed exactly also where ONNX Runtime has no kernel for it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.cost import constants
from aigcc.errors import CompileError, describe
from aigcc.exact import exact, open_exact
from aigcc.ir.module import Module
from aigcc.narrow import computes_in_bfloat16, has_narrow, in_float32
from aigcc.noise import equal_noise
from aigcc.runtime import NoKernelError, OrtSession

ROUNDINGS = 4.0
"""How much further off than rounding makes it an output may be."""

_CHAOTIC = 0.1  # rounding that grows to this in the original grows to anything in other programs
_LARGEST = 1 << 26  # bytes of weights that ONNX's evaluator, which holds them all, is given
_OPERATOR = re.compile(r"implementation for (\w+)")
_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Reference:
    """The right outputs of a module: what programs that are made of it are compared with.

    ONNX Runtime computes them, without its optimisations, from the module that `aigcc.exact`
    makes. Where it has no kernel, a copy of the module in float32 stands in, or ONNX's own
    evaluator.

    Attributes:
        note: What stands in for the module, and why; empty where nothing has to.

    Args:
        module: The module; it is left as it is.
        threads: As for `OrtSession`.
        rounds: Whether a copy in float32 rounds what nodes make as the module does: so for a
            module that is judged, not for the one that it is judged by.

    Raises:
        CompileError: nothing here runs the module; says what ONNX Runtime says.
    """

    def __init__(self, module: Module, threads: int | None = None, *, rounds: bool = False) -> None:
        self.note = ""
        if computes_in_bfloat16(module):
            self.note = "a copy in float32: ONNX Runtime has no kernels for bfloat16"
        try:
            self._session: OrtSession | _Evaluator = _open(module, threads, rounds)
        except NoKernelError as error:
            self._session = self._stand_in(module, threads, rounds, error)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """All outputs for one set of inputs; raises CompileError as `OrtSession.run` does."""
        return self._session.run(feeds)

    def _stand_in(
        self, module: Module, threads: int | None, rounds: bool, error: NoKernelError
    ) -> OrtSession | _Evaluator:
        found = _OPERATOR.search(error.what)
        why = f"ONNX Runtime has no kernel for {found[1] if found else 'an operator of it'}"
        if has_narrow(module):
            try:
                session = _open(in_float32(module, rounds=rounds), threads, rounds)
            except NoKernelError:
                pass
            else:
                self.note = f"a copy in float32: {why}"
                return session
        if sum(tensor.nbytes for _, tensor in constants(module)) > _LARGEST:
            raise error
        try:
            evaluator = _Evaluator(equal_noise(module))
        except CompileError:
            raise error from None
        self.note = f"ONNX's own evaluator: {why}"
        return evaluator


class _Evaluator:
    """A module in ONNX's own evaluator."""

    def __init__(self, module: Module) -> None:
        from onnx.reference import ReferenceEvaluator

        self._where = str(module.path or "module")
        try:
            self._evaluator = ReferenceEvaluator(ir.to_proto(module.model))
        except _ERRORS as error:
            raise self._refused(error) from error

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                made = self._evaluator.run(None, dict(feeds))
        except _ERRORS as error:
            raise self._refused(error) from error
        return {
            name: np.asarray(array)
            for name, array in zip(self._evaluator.output_names, made, strict=True)
        }

    def _refused(self, error: Exception) -> CompileError:
        return CompileError(f"ONNX's evaluator: {describe(error)}", at=self._where)


def rounded_otherwise(module: Module) -> OrtSession:
    """The module in ONNX Runtime with other roundings than its reference has.

    They are those of ONNX Runtime's own rewrites; for bfloat16, those of rounding what each node
    makes.

    Raises:
        CompileError: ONNX Runtime refuses the module.
    """
    return open_exact(module, integers=True, rounds=True)


def explains(rounding: float, error: float, tolerance: float) -> bool:
    """Whether other roundings, which put an output off by so much, are why it is off.

    Args:
        rounding: The relative error of a program with other roundings than the reference's.
        error: The relative error of the program that is judged.
        tolerance: The largest relative error that needs no explanation.
    """
    return tolerance < rounding and rounding >= min(error / ROUNDINGS, _CHAOTIC)


def _open(module: Module, threads: int | None, rounds: bool) -> OrtSession:
    return OrtSession(exact(module, rounds=rounds), optimise=False, threads=threads)
