"""Reads the table of fused kernels that TensorRT-RTX logs: what an engine will really run."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

_NAME = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[", re.MULTILINE)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_CONSTANTS, _OUTPUTS, _TACTIC = "], Constants: [", "], Outputs: [", "], Tactic"

# Layers of these kinds, or with these names, multiply matrices or convolve.
_PRODUCTS = frozenset({"gemm", "correlation", "deconv"})
_PRODUCT_NAME = re.compile(r"^(__myl_(Fc|Corr|Deco)|_gemm_mha)")
_ATTENTION_NAME = "_gemm_mha"

# Layers that compute shapes on the host, or wait for it, and launch nothing.
_HOST = frozenset({"shape_call", "ShapeHostToDevice", "TrainStation"})

_ONNX_NAMES = {
    "Float": "float",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "FP8": "float8e4m3fn",
    "FP4": "float4e2m1",
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One fused kernel of an engine.

    Attributes:
        name: What TensorRT calls it.
        kind: The layer type, such as "gemm", "correlation" (convolution) or "kgen" (generated).
        inputs: Element types of what it reads, weights not included; ONNX's names.
        weights: Element types of its constants.
        outputs: Element types of what it writes.
        nodes: The ONNX nodes that were fused into it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies matrices or convolves."""
        return self.kind in _PRODUCTS or _PRODUCT_NAME.match(self.name) is not None

    @property
    def computes_in(self) -> str:
        """The element type of its first operand."""
        return (*self.inputs, *self.outputs, "unknown")[0]


def read_table(table: str) -> list[Kernel]:
    """The kernels of the `Layers:` table, without what only computes shapes."""
    kernels = []
    for line in table.splitlines():
        match = _NAME.match(line)
        if match is None or match["kind"] in _HOST:
            continue
        read, _, rest = line[match.end() :].partition(_OUTPUTS)
        inputs, _, weights = read.partition(_CONSTANTS)
        outputs, _, rest = rest.partition(_TACTIC)
        kernels.append(
            Kernel(
                match["name"],
                match["kind"],
                _dtypes(inputs),
                _dtypes(weights),
                _dtypes(outputs),
                tuple(_NODE.findall(rest)),
            )
        )
    return kernels


def summarise(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Counts for the artifact: how many kernels of which kind, and what the products run in."""
    return {
        "total": len(kernels),
        "by_kind": _counts(kernel.kind for kernel in kernels),
        "products": _counts(kernel.computes_in for kernel in kernels if kernel.multiplies),
        "fused_attention": sum(kernel.name.startswith(_ATTENTION_NAME) for kernel in kernels),
    }


def computed_in(kernels: Sequence[Kernel]) -> dict[str, str]:
    """The element types that products are computed in, by node; with what is fused to them."""
    found: dict[str, str] = {}
    for kernel in kernels:
        if kernel.multiplies:
            for node in kernel.nodes:
                found.setdefault(node, kernel.computes_in)
    return found


def _dtypes(section: str) -> tuple[str, ...]:
    return tuple(_ONNX_NAMES.get(name, name.lower()) for name in _DATATYPE.findall(section))


def _counts(items: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(items).items()))
