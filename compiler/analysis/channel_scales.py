"""What all scales of channels have in common: they lie around 1, and dead channels keep theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FARTHEST = 2.0**13  # from the middle: scales must not take weights out of the range of float16


def tamed(scale: Array, live: Array) -> Array:
    """Scales around 1, float32: those of dead channels are 1, and none is far off."""
    if not live.any():
        return np.ones(len(scale), np.float32)
    logs = np.log2(np.where(live, scale, 1.0))
    middle = float(np.median(logs[live]))
    made = np.exp2(np.clip(logs - middle, -np.log2(_FARTHEST), np.log2(_FARTHEST)))
    return np.where(live, made, 1.0).astype(np.float32)
