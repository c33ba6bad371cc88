"""Where measurements and calibrations are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$AIGCC_CACHE`, or `aigcc` in the user's cache folder. It need not exist yet."""
    given = os.environ.get("AIGCC_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigcc"
