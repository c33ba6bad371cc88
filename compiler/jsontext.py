"""JSON for files and for standard output: dataclasses as objects, infinities and NaN as text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(thing: Any) -> str:
    """`thing` as one JSON document with two spaces of indentation, in ASCII."""
    return json.dumps(_plain(thing), indent=2, allow_nan=False)


def _plain(thing: Any) -> Any:
    """`thing` in JSON's own types; numbers that JSON lacks become "inf", "-inf" or "nan"."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: _plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [_plain(item) for item in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)
    if isinstance(thing, Path):
        return str(thing)
    return thing
