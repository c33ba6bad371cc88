"""Where measurements and calibrations are kept between runs."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from pathlib import Path

from aigcc.errors import describe


def cache_folder() -> Path:
    """`$AIGCC_CACHE`, or `aigcc` in the user's cache folder; made where it is missing.

    Where it cannot be written, a folder that is gone when the process ends, and a warning.
    """
    try:
        folder = _wanted().expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError where nobody knows a home
        return _forgotten(describe(error))
    return folder if os.access(folder, os.W_OK) else _forgotten(f"{folder} is read-only")


def _wanted() -> Path:
    given = os.environ.get("AIGCC_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "aigcc"


@functools.cache
def _forgotten(reason: str) -> Path:
    warnings.warn(f"measurements are not kept for the next run: {reason}", stacklevel=3)
    return Path(_scratch().name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="aigcc-cache-")
