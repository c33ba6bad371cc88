"""This machine's processor, in words: figures mean little without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What makes products fast, as Linux calls it, and how its makers do.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}


def processor() -> str:
    """What the processor calls itself."""
    return _facts().get("model name") or platform.processor() or platform.machine()


def describe_processor() -> str:
    """The processor, how many cores of it there are here, and what it multiplies with."""
    facts = _facts()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    cores = os.cpu_count() or 1
    known = [name for flag, name in _FEATURES.items() if flag in flags]
    return ", ".join([processor(), "1 core" if cores == 1 else f"{cores} cores", *known])


def _facts() -> dict[str, str]:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
