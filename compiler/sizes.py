"""Whether a program whose dims vary is right in other sizes than those of the samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from aigcc.analysis.metrics import OutputError, compare_outputs
from aigcc.errors import CompileError, TargetError
from aigcc.target import Feeds, General, Session

Outputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """How far a program is off where its dims have other sizes.

    Attributes:
        sizes: In words, such as "S = 3, T = 8".
        rows: A row for each output.
        failure: Why the program gave no outputs that compare.
    """

    sizes: str
    rows: Sequence[OutputError] = ()
    failure: CompileError | None = None

    def refuse(self, allowed: float, where: str) -> None:
        """Do nothing if all outputs are right.

        Raises:
            TargetError: one is not.
        """
        fault = f"the built program fails: {self.failure}" if self.failure is not None else ""
        for row in self.rows:
            if not row.relative <= allowed and not fault:
                broken = f"{row.broken} of {row.elements} values are NaN or infinite in one only"
                error = f"its relative error is {row.relative:.2g}, more than {allowed:.2g}"
                fault = f"output {row.name!r} is wrong: {broken if row.broken else error}"
        if fault:
            raise TargetError(
                f"with {self.sizes} {fault}",
                at=where,
                hint="the samples' own sizes are right; fix the dims to them, or give samples of "
                "the sizes that matter with --samples to see more",
            )


def compare_elsewhere(
    inputs: Sequence[ir.Value], feeds: Feeds, original: Callable[[Feeds], Outputs], session: Session
) -> list[Elsewhere]:
    """Run a program where its dims have other sizes, and once more where they have the same.

    A program that has been made for the first sizes makes way for that for all. Other sizes are
    those that the original can run.

    Args:
        inputs: Of the program.
        feeds: A sample.
        original: Runs the original.
        session: The program; it has run the sample.

    Raises:
        CompileError: The original cannot run the sample.
    """
    sizes = _sizes(inputs, feeds)
    if not sizes:
        return []
    found = []
    if isinstance(session, General):
        session.generalise()
        found.append(_compare(_in_words(sizes), feeds, original(feeds), session))
    for others in _others(sizes):
        try:
            resized = {
                str(value.name): _resized(value, feeds[str(value.name)], others)
                for value in inputs
                if value.name in feeds
            }
            expected = original(resized)
        except CompileError:
            continue  # the model is not made for these
        return [*found, _compare(_in_words(others), resized, expected, session)]
    return found


def _compare(sizes: str, feeds: Feeds, expected: Outputs, session: Session) -> Elsewhere:
    try:
        return Elsewhere(sizes, compare_outputs(expected, session.run(feeds)))
    except CompileError as error:
        return Elsewhere(sizes, failure=error)


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _dims(value: ir.Value) -> Iterator[tuple[int, str]]:
    """The axes of an input that vary, and what they are called."""
    for axis, dim in enumerate(value.shape or ()):
        if not isinstance(dim, int):
            yield axis, dim.value or f"axis {axis} of {value.name}"


def _sizes(inputs: Sequence[ir.Value], feeds: Feeds) -> dict[str, int]:
    return {
        name: feeds[str(value.name)].shape[axis]
        for value in inputs
        if value.name in feeds
        for axis, name in _dims(value)
    }


def _others(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Half of all sizes, one less of all, and one less of each."""
    half = {name: max(size // 2, 1) if size != 1 else 2 for name, size in sizes.items()}
    less = {name: size - 1 if size > 1 else size + 1 for name, size in sizes.items()}
    yield half
    yield less
    for name in sizes:
        yield {**sizes, name: less[name]}


def _resized(value: ir.Value, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """The first numbers of an array along each dim, or the last one repeated."""
    for axis, name in _dims(value):
        if array.shape[axis]:
            places = np.minimum(np.arange(sizes[name]), array.shape[axis] - 1)
            array = np.take(array, places, axis)
    return array
