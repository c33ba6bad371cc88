"""Whether a program whose dims vary is right in other sizes than those of the samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from aigcc.analysis.metrics import OutputError, compare_outputs
from aigcc.errors import CompileError, TargetError
from aigcc.ranges import Range, may_be_empty, resolve, solve, symbols
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
    inputs: Sequence[ir.Value],
    feeds: Feeds,
    original: Callable[[Feeds], Outputs],
    session: Session,
    ranges: Mapping[str, Range] | None = None,
) -> list[Elsewhere]:
    """Run a program where its dims have other sizes, and once more where they have the same.

    A program that has been made for the first sizes makes way for that for all. Other sizes are
    those that the original can run.

    Args:
        inputs: Of the program.
        feeds: A sample.
        original: Runs the original.
        session: The program; it has run the sample.
        ranges: The sizes that dims may have, by name. A cache that may be empty is compared so.

    Raises:
        CompileError: The original cannot run the sample.
    """
    sizes = _sizes(inputs, feeds)
    ranges = ranges or {}
    if not sizes:
        return []
    found = []
    if isinstance(session, General):
        session.generalise()
        found.append(_compare(_in_words(sizes), feeds, original(feeds), session))
    dims = [dim for value in inputs for dim in value.shape or ()]
    tries = [_others(sizes, ranges)]
    tries += [iter([{**sizes, name: 0}]) for name in may_be_empty(dims, ranges) if sizes.get(name)]
    for others in tries:
        found += _first_that_runs(others, inputs, feeds, original, session)
    return found


def _first_that_runs(
    tries: Iterable[Mapping[str, int]],
    inputs: Sequence[ir.Value],
    feeds: Feeds,
    original: Callable[[Feeds], Outputs],
    session: Session,
) -> list[Elsewhere]:
    """The comparison in the first of these sizes that the original is made for."""
    for sizes in tries:
        try:
            resized = {
                str(value.name): _resized(value, feeds[str(value.name)], sizes)
                for value in inputs
                if value.name in feeds
            }
            for name, size in _sizes(inputs, feeds).items():
                counts = {str(value.name) for value in inputs if not any(_dims(value))}
                resized = within(resized, counts, size, sizes.get(name, size))
            expected = original(resized)
        except CompileError:
            continue
        if any(array.size for array in expected.values()):
            return [_compare(_in_words(sizes), resized, expected, session)]
    return []


def within(feeds: Feeds, names: Collection[str], old: int, new: int) -> dict[str, np.ndarray]:
    """A sample whose dim has become shorter, with the lengths that inputs hold no longer than it.

    Args:
        feeds: The sample.
        names: Of inputs without the dim; whole numbers in them may count along it.
        old: The dim's size before.
        new: Its size now.
    """
    return {
        name: np.where((array > new) & (array <= old), new, array).astype(array.dtype)
        if name in names and array.dtype.kind in "iu"
        else array
        for name, array in feeds.items()
    }


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
            yield axis, str(dim) if symbols(dim) else f"axis {axis} of {value.name}"


def _sizes(inputs: Sequence[ir.Value], feeds: Feeds) -> dict[str, int]:
    """Of the symbols in dims, and of dims that do not follow from those, by name."""
    seen = [
        (ir.SymbolicDim(name), feeds[str(value.name)].shape[axis])
        for value in inputs
        if value.name in feeds
        for axis, name in _dims(value)
    ]
    sizes = solve((dim, size) for dim, size in seen if symbols(dim))
    return sizes | {str(dim): size for dim, size in seen if resolve(dim, sizes) != size}


def _others(sizes: Mapping[str, int], ranges: Mapping[str, Range]) -> Iterator[dict[str, int]]:
    """Half of all sizes, one less of all, and one less of each; one more where less is too few."""
    half = {n: _within(n, max(size // 2, 1), size, ranges) for n, size in sizes.items()}
    less = {n: _within(n, max(size - 1, 1), size, ranges) for n, size in sizes.items()}
    yield from (others for others in (half, less) if others != sizes)
    yield from ({**sizes, name: less[name]} for name in sizes if less[name] != sizes[name])


def _within(name: str, size: int, now: int, ranges: Mapping[str, Range]) -> int:
    allowed = ranges.get(name, Range())
    return allowed.clamp(now + 1 if allowed.clamp(size) == now else size)


def _resized(value: ir.Value, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """The first numbers of an array along each dim, or the last one repeated."""
    for axis, name in _dims(value):
        if array.shape[axis]:
            size = resolve(ir.SymbolicDim(name), sizes)
            places = np.minimum(np.arange(size or 0), array.shape[axis] - 1)
            array = np.take(array, places, axis)
    return array
