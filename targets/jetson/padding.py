"""What inputs are filled with up to a bucket's size, and the proof that it changes no output."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt

from aigcc.analysis.metrics import compare_outputs
from aigcc.errors import CompileError, TargetError
from aigcc.reference import Reference
from aigcc.samples import Samples
from aigcc.sizes import within
from aigcc.target import Feeds
from aigcc.targets.jetson.buckets import Buckets, Tables

Array = npt.NDArray[np.generic]

_ALLOWED = 1e-4  # of max|a-b| / max|a|, where both are computed exactly
_HIDES = -1e3  # a score that is lower by so much has no part in a softmax
_WAYS = 16  # of filling all inputs, at most
_STEPS = (2, 4, 8, 16, 32, 64)  # models that divide a dim take multiples of these
_KNOWN = 8  # samples that are looked at to tell masks


def padded(feeds: Feeds, inputs: Tables, size: int, pads: Mapping[str, float]) -> dict[str, Array]:
    """Inputs as long as a bucket, filled at their ends."""
    made = dict(feeds)
    for name, axes in inputs.items():
        array = feeds[name]
        ends = [(0, 0)] * array.ndim
        for axis, table in axes.items():
            ends[axis] = (0, table[size] - array.shape[axis])
        fill = np.asarray(pads.get(name, 0)).astype(array.dtype)
        made[name] = np.pad(array, ends, constant_values=fill)
    return made


def cropped(outputs: Mapping[str, Array], tables: Tables, size: int) -> dict[str, Array]:
    """Outputs as they are for inputs of a size, of those for longer ones."""
    made = dict(outputs)
    for name, axes in tables.items():
        places = [slice(None)] * made[name].ndim
        for axis, table in axes.items():
            places[axis] = slice(table[size])
        made[name] = made[name][tuple(places)]
    return made


def size_of(feeds: Feeds, inputs: Tables) -> int | None:
    """The size of the dim that gives inputs their shapes; None where there is none."""
    columns = [
        (table, feeds[name].shape[axis] if axis < feeds[name].ndim else -1)
        for name, axes in inputs.items()
        for axis, table in axes.items()
    ]
    every = range(len(columns[0][0]))
    return next((n for n in every if all(table[n] == size for table, size in columns)), None)


def choose_pads(reference: Reference, buckets: Buckets, samples: Samples) -> dict[str, float]:
    """The first way to fill inputs that changes no output of the model, by input.

    The model itself runs on each sample as it is and filled up to its bucket; on the first numbers
    of a sample that fills one.

    Raises:
        TargetError: each way changes an output; names it.
    """
    ways = [dict(way) for way in _ways(buckets, samples)]
    faults: list[_Fault] = []
    for index, feeds in enumerate(samples):
        size = size_of(feeds, buckets.inputs)
        bucket = None if size is None else buckets.smallest(size)
        assert size is not None and bucket is not None
        if size == bucket:
            shorter = shortened(reference, buckets, feeds, (bucket - 1, bucket // 2 + 1))
            if shorter is None:
                continue
            size, feeds, expected = shorter
        else:
            expected = samples.run(reference, feeds)
        kept = []
        for way in ways:
            fault = _fault(reference, buckets, feeds, expected, (size, bucket), way)
            if fault is None:
                kept.append(way)
            else:
                faults.append(dataclasses.replace(fault, sample=index))
        ways = kept
        if not ways:
            _refuse(min(faults, key=lambda fault: fault.error), buckets)
    return ways[0]


def shortened(
    reference: Reference, buckets: Buckets, feeds: Feeds, bounds: tuple[int, int]
) -> tuple[int, dict[str, Array], dict[str, Array]] | None:
    """The first numbers of a sample, with its size and its outputs, at a size that the model takes.

    Args:
        reference: The model.
        buckets: Say how inputs follow from the dim.
        feeds: The sample.
        bounds: The size that is wanted, and the size down to which others are tried.
    """
    wanted, least = bounds
    full = size_of(feeds, buckets.inputs) or 0
    steps = (wanted, *(wanted // step * step for step in _STEPS))
    for size in dict.fromkeys(size for size in steps if size >= max(least, 1)):
        first = cropped(feeds, buckets.inputs, size)
        shorter = within(first, feeds.keys() - buckets.inputs.keys(), full, size)
        try:
            return size, shorter, reference.run(shorter)
        except CompileError:
            continue
    return None


@dataclasses.dataclass(frozen=True)
class _Fault:
    """What padding changes: how far an output is off, and that in words."""

    error: float
    words: str
    sample: int = 0


def _fault(
    reference: Reference,
    buckets: Buckets,
    feeds: Feeds,
    expected: Mapping[str, Array],
    sizes: tuple[int, int],
    way: Mapping[str, float],
) -> _Fault | None:
    size, bucket = sizes
    place = f"from {size} to {bucket}"
    try:
        made = reference.run(padded(feeds, buckets.inputs, bucket, way))
        rows = compare_outputs(expected, cropped(made, buckets.outputs, size))
    except CompileError as error:
        return _Fault(np.inf, f"padding it {place} fails: {error.what}")
    for row in rows:
        if not row.relative <= _ALLOWED:
            off = f"by a relative error of {row.relative:.2g}"
            if row.broken:
                off = f"by {row.broken} of {row.elements} values that become NaN or infinite"
            far = np.inf if row.broken else row.relative
            return _Fault(far, f"padding it {place} changes the output {row.name!r} {off}")
    return None


def _refuse(fault: _Fault, buckets: Buckets) -> None:
    raise TargetError(
        f"buckets change what the model computes: in sample {fault.sample} {fault.words}, where "
        f"{_ALLOWED:g} is allowed",
        at=f"dims=[{buckets.dim}:{'|'.join(map(str, buckets.sizes))}]",
        hint=f"build with one size that all samples have (dims=[{buckets.dim}:SIZE]), or export "
        f"the model with a mask as an input that hides the end of {buckets.dim!r} in every layer",
    )


def _ways(buckets: Buckets, samples: Samples) -> Iterator[tuple[tuple[str, float], ...]]:
    """Ways to fill inputs, those first that are usual."""
    seen: dict[str, list[Array]] = {name: [] for name in buckets.inputs}
    for feeds in itertools.islice(samples, _KNOWN):
        for name, arrays in seen.items():
            arrays.append(feeds[name])
    choices = [[(name, fill) for fill in _fills(arrays)] for name, arrays in seen.items()]
    return itertools.islice(itertools.product(*choices), _WAYS)


def _fills(arrays: Sequence[Array]) -> list[float]:
    """Numbers that may hide the end of an input: what hides in it already goes first."""
    kind, dtype = arrays[0].dtype.kind, arrays[0].dtype
    if kind == "b":
        return [0, 1]
    lowest = min((float(array.min()) for array in arrays if array.size), default=0.0)
    is_mask = all(bool(np.isin(array, (0, 1)).all()) for array in arrays)
    if kind in "iu":
        return [0, 1] if is_mask else [0]
    if lowest <= _HIDES:
        return [lowest, 0]
    return [0, 1, float(ml_dtypes.finfo(dtype).min)] if is_mask else [0]
