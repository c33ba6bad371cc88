"""Where the bytes of a module are: by type, by part of the model, by tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir

from aigcc.analysis.cost import constants
from aigcc.ir.module import Module

_LARGEST = 12
_SPLIT = 1 / 12  # of all bytes: a part that holds more is told apart further,
_SHOWN = 1 / 200  # and one that holds less is left out
_STEP = re.compile(r"[./]")


@dataclasses.dataclass(frozen=True)
class _Weight:
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def describe_weights(original: Module, module: Module) -> dict[str, Any]:
    """Bytes and tensors by type before and after; then the parts and the largest of what is left.

    A part is a prefix of names that ends at a dot or a slash; its type is that of most of its
    bytes. No weight is read.
    """
    weights = sorted(_weights(module), key=lambda weight: (-weight.bytes, weight.name))
    return {
        "before": _by_dtype(_weights(original)),
        "after": _by_dtype(weights),
        "parts": [_describe_part(name, inside) for name, inside in _parts(weights)],
        "largest": [dataclasses.asdict(weight) for weight in weights[:_LARGEST]],
    }


def nbytes(tensor: ir.TensorProtocol) -> int:
    """Bytes as stored; none for text, whose size is known only when it is read."""
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _weights(module: Module) -> Iterator[_Weight]:
    for value, tensor in constants(module):
        shape = tuple(tensor.shape.numpy())
        yield _Weight(value.name or "", tensor.dtype.name.lower(), shape, nbytes(tensor))


def _by_dtype(weights: Iterable[_Weight]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for weight in weights:
        row = rows.setdefault(weight.dtype, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += weight.bytes
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["bytes"], item[0])))


def _parts(weights: list[_Weight]) -> list[tuple[str, list[_Weight]]]:
    """Prefixes and what they hold, most bytes first; large ones are split, small ones left out."""
    total = _sum(weights)
    found, waiting = [], [("", weights)]
    while waiting:
        prefix, inside = waiting.pop()
        share = _sum(inside) / total if total else 0.0
        children = _split(prefix, inside) if share > _SPLIT and len(inside) > 1 else []
        if len(children) > 1 or (children and children[0][0] != prefix):
            waiting.extend(children)
        elif share > _SHOWN:
            found.append((prefix, inside))
    return sorted(found, key=lambda part: (-_sum(part[1]), part[0]))


def _split(prefix: str, weights: list[_Weight]) -> list[tuple[str, list[_Weight]]]:
    """What a prefix holds by the next step of their names."""
    children: dict[str, list[_Weight]] = {}
    for weight in weights:
        step = _STEP.search(weight.name, len(prefix) + 1)
        end = step.start() if step else len(weight.name)
        children.setdefault(weight.name[:end], []).append(weight)
    return list(children.items())


def _sum(weights: Iterable[_Weight]) -> int:
    return sum(weight.bytes for weight in weights)


def _describe_part(name: str, weights: list[_Weight]) -> dict[str, Any]:
    dtype = next(iter(_by_dtype(weights)))
    return {"name": name, "dtype": dtype, "tensors": len(weights), "bytes": _sum(weights)}
