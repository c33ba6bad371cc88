"""Programs of one model for several sizes of a dim: their description, and a session over them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.artifact import digest
from aigcc.errors import TargetError
from aigcc.target import Feeds, Session
from aigcc.targets.jetson.buckets import Buckets
from aigcc.targets.jetson.padding import cropped, padded, size_of
from aigcc.targets.jetson.program import PARAMETERS, SIGNATURE, Signature

BUCKETS = "buckets.json"
"""The file of an artifact that says which programs there are; each lies in a folder of its size."""


def save(buckets: Buckets, folder: Path) -> None:
    """Write `buckets.json`, a line for each of its entries."""
    rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in _described(buckets).items()]
    (folder / BUCKETS).write_text("{\n  " + ",\n  ".join(rows) + "\n}\n", "utf-8")


def _described(buckets: Buckets) -> dict[str, Any]:
    return {
        field.name: getattr(buckets, field.name)
        for field in dataclasses.fields(buckets)
        if field.name != "others"
    }


def load(folder: Path) -> Buckets:
    """What `save` has written."""
    found = json.loads((folder / BUCKETS).read_text("utf-8"))
    return Buckets.from_json({**found, "others": {}})


def share_parameters(buckets: Buckets, folder: Path) -> bool:
    """Keep parameters once, beside the programs' folders, where those of all programs are equal."""
    files = [folder / str(size) / PARAMETERS for size in buckets.sizes]
    if len({digest(path) for path in files}) > 1:
        return False
    files[0].rename(folder / PARAMETERS)
    for path in files[1:]:
        path.unlink()
    return True


class BucketedSession:
    """Runs the program of the smallest bucket that holds the inputs, each opened when it is needed.

    Args:
        folder: The artifact.
        open_one: Opens the program in a folder.
    """

    def __init__(self, folder: Path, open_one: Callable[[Path], Session]) -> None:
        self._folder, self._open_one = folder, open_one
        self._buckets = load(folder)
        self._signature = Signature.load(folder / str(self._buckets.sizes[0]) / SIGNATURE)
        self._sessions: dict[int, Session] = {}

    def run(self, feeds: Feeds) -> dict[str, npt.NDArray[np.generic]]:
        """All outputs for one set of inputs.

        Raises:
            TargetError: they do not fit, or are larger than the largest bucket.
        """
        buckets = self._buckets
        self._signature.refuse_names(feeds)
        size = size_of(feeds, buckets.inputs)
        if size is None:
            raise TargetError(
                f"the inputs agree on no size of {buckets.dim!r} up to {buckets.sizes[-1]}, the "
                "largest that was built",
                hint=f"build with dims=[{buckets.dim}:SIZE|SIZE] and a larger size",
            )
        bucket = buckets.smallest(size)
        assert bucket is not None
        made = self._open(bucket).run(padded(feeds, buckets.inputs, bucket, buckets.pads))
        return cropped(made, buckets.outputs, size)

    def open_all(self) -> None:
        """Open all programs now; the folder may go then."""
        for bucket in self._buckets.sizes:
            self._open(bucket)

    def _open(self, bucket: int) -> Session:
        if bucket not in self._sessions:
            self._sessions[bucket] = self._open_one(self._folder / str(bucket))
        return self._sessions[bucket]
