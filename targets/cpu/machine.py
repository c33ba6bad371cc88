"""What this machine's CPU has, as OpenVINO tells it."""

from __future__ import annotations

import functools


@functools.cache
def processor() -> str:
    """The CPU, and what OpenVINO has kernels for on it: kernels, and so measurements, differ."""
    import openvino

    name = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    return f"{name}: {' '.join(sorted(_capabilities()))}"


def has_bfloat16() -> bool:
    """Whether products of bfloat16 are instructions; elsewhere they are emulated, or float32."""
    return "BF16" in _capabilities()


@functools.cache
def _capabilities() -> frozenset[str]:
    import openvino

    return frozenset(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
