"""What calibration found: statistics by tensor and by bucket, in memory and in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.calibration.histogram import Histogram
from aigcc.analysis.calibration.statistics import Channels, Moment, Statistics
from aigcc.errors import ArtifactError, CompileError, did_you_mean
from aigcc.ir.storage.atomic import replacing

_VERSION = 1
_BAD = (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile)


@dataclasses.dataclass
class Calibration:
    """Statistics of values over samples.

    Attributes:
        buckets: By value, its statistics in each bucket; one where there are no edges.
        edges: The bounds between buckets, ascending; a bound belongs to the bucket above it.
        moments: By value, second moments over its last axis.
        samples: How many were seen.
        digest: Of the samples' contents, in their order.
    """

    buckets: dict[str, list[Statistics]]
    edges: tuple[float, ...] = ()
    moments: dict[str, Moment] = dataclasses.field(default_factory=dict)
    samples: int = 0
    digest: str = ""

    @functools.cached_property
    def tensors(self) -> Mapping[str, Statistics]:
        """By value, its statistics over all samples."""
        merged = {}
        for name, parts in self.buckets.items():
            merged[name] = Statistics()
            for part in parts:
                merged[name].merge(part)
        return merged

    def range(
        self, name: str, method: str, levels: int, symmetric: bool, bucket: int | None = None
    ) -> tuple[float, float]:
        """The range to quantise a value in; zero lies in it.

        Args:
            name: The value.
            method: `minmax`, `percentile`, `percentile(99.9)`, `entropy` or `mse`; see
                `aigcc.analysis.calibration.ranges.choose_range`.
            levels: How many values the quantised type has: 256 for all of int8.
            symmetric: Whether the range must be as far below zero as above.
            bucket: Of which bucket; None for all samples.

        Raises:
            CompileError: value, method or bucket are unknown, or there is no finite number.
        """
        if name not in self.buckets:
            raise CompileError(
                f"{name!r} was not calibrated", hint=did_you_mean(name, self.buckets)
            )
        parts = self.buckets[name]
        if bucket is not None and not 0 <= bucket < len(parts):
            raise CompileError(f"there is no bucket {bucket}: there are {len(parts)}")
        statistics = self.tensors[name] if bucket is None else parts[bucket]
        try:
            return statistics.range(method, levels, symmetric)
        except CompileError as error:
            where = f"value {name!r}" + ("" if bucket is None else f", bucket {bucket}")
            raise CompileError(error.what, at=where, hint=error.hint) from error

    def save(self, path: str | Path) -> None:
        """Write an .npz file, whole or not at all; equal contents give equal bytes.

        Raises:
            ArtifactError: the file cannot be written.
        """
        path = Path(path)
        try:
            with replacing(path) as (file,), zipfile.ZipFile(file, "w") as archive:
                for name, array in self._arrays().items():
                    # A ZipInfo made by hand has a fixed date.
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as to:
                        np.lib.format.write_array(to, array, allow_pickle=False)
        except OSError as error:
            raise ArtifactError(
                f"the calibration cannot be saved: {error}", at=str(path)
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, or of another version.
        """
        with _opened(path) as (header, archive):
            return _read(header, archive)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        rows = [part for parts in self.buckets.values() for part in parts]
        header = {
            "version": _VERSION,
            "names": list(self.buckets),
            "edges": self.edges,
            "moments": {name: moment.rows for name, moment in self.moments.items()},
            "samples": self.samples,
            "digest": self.digest,
        }
        channels = [Channels.empty(0) if row.channels is None else row.channels for row in rows]
        return {
            "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
            "integers": np.array([_integers(row) for row in rows], np.int64),
            "floats": np.array([(r.low, r.high, r.total, r.squares) for r in rows], np.float64),
            "bins": _joined([row.histogram.counts for row in rows], np.int64),
            "channel_counts": _joined([part.count for part in channels], np.int64),
            **{
                f"channel_{name}": _joined([getattr(part, name) for part in channels], np.float64)
                for name in _CHANNEL_FLOATS
            },
            **{f"moment_{i}": moment.matrix for i, moment in enumerate(self.moments.values())},
        }


def seen_by(path: str | Path) -> tuple[int, str]:
    """How many samples a file has seen, and their digest; reads nothing else of it.

    Raises:
        ArtifactError: the file is missing, damaged, or of another version.
    """
    with _opened(path) as (header, _):
        return header["samples"], header["digest"]


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[dict[str, Any], Mapping[str, npt.NDArray[Any]]]]:
    """The header and the arrays of a file; what goes wrong with them is an ArtifactError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(bytes(archive["header"]))
            if header["version"] != _VERSION:
                raise ValueError(f"it has version {header['version']}, not {_VERSION}")
            yield header, archive
    except _BAD as error:
        raise ArtifactError(
            f"this is no calibration that can be read: {error}",
            at=str(path),
            hint="remove the file and calibrate again",
        ) from error


_CHANNEL_FLOATS = ("low", "high", "total", "squares")


def _integers(row: Statistics) -> tuple[int, ...]:
    histogram = row.histogram
    channels = -1 if row.channels is None else len(row.channels.low)
    bins = (histogram.exponent, histogram.first, len(histogram.counts))
    return (row.count, row.non_finite, row.zeros, *bins, channels)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _read(header: Mapping[str, Any], archive: Mapping[str, npt.NDArray[Any]]) -> Calibration:
    integers, floats = archive["integers"].tolist(), archive["floats"].tolist()
    ends = [np.cumsum([max(row[at], 0) for row in integers])[:-1] for at in (5, 6)]
    bins = np.split(archive["bins"], ends[0])
    parts = [np.split(archive[f"channel_{name}"], ends[1]) for name in ("counts", *_CHANNEL_FLOATS)]
    rows = []
    for index, (whole, numbers) in enumerate(zip(integers, floats, strict=True)):
        count, non_finite, zeros, exponent, first, _, size = whole
        histogram = Histogram(exponent, first, bins[index].copy())
        channels = None if size < 0 else Channels(*(part[index].copy() for part in parts))
        low, high, total, squares = numbers
        rows.append(
            Statistics(count, non_finite, zeros, low, high, total, squares, histogram, channels)
        )
    size = len(header["edges"]) + 1
    names = header["names"]
    if len(rows) != size * len(names):
        raise ValueError("its tables do not fit its header")
    moments = {
        name: Moment(archive[f"moment_{i}"], count)
        for i, (name, count) in enumerate(header["moments"].items())
    }
    return Calibration(
        {name: rows[i * size : (i + 1) * size] for i, name in enumerate(names)},
        tuple(header["edges"]),
        moments,
        header["samples"],
        header["digest"],
    )
