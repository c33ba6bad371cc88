"""What float16 cannot hold: constants, and what values come to on samples."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.streaming.stream import Stream
from aigcc.ir.module import Module
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant
from aigcc.passes.fp16_plan import LARGEST, is_float
from aigcc.passes.hiding import hides, narrow, visible
from aigcc.pipeline.context import Context

Array = npt.NDArray[Any]

_ROOM = 0.5  # of the largest float16: other inputs than the samples go further
_LOST = 2e-3  # of the root mean square; rounding alone takes a tenth of that
_LOST_EPSILON = 0.1
_LOST_DEVIATION = 1e-2
_CHUNK = 1 << 22

# What is added to guard against 0 may be off by more than what is multiplied with.
_GUARDED = frozenset({"Add", "Clip", "Max", "Min", "Sub"})

# By operator: from which axis on its first input is normalised, and whether the mean goes.
_NORMS: dict[str, tuple[int, bool]] = {
    "GroupNormalization": (2, True),
    "InstanceNormalization": (2, True),
    "LayerNormalization": (-1, True),
    "LpNormalization": (-1, False),
    "RMSNormalization": (-1, False),
}


@dataclasses.dataclass
class Fit:
    """What float16 cannot hold, with reasons that are ends of sentences.

    Attributes:
        values: Constants, inputs and computed values.
        nodes: Nodes whose inputs and outputs fit, and what they compute inside does not.
        hidden: Values that hold numbers which hide scores, and that float16 has not.
    """

    values: dict[ir.Value, str] = dataclasses.field(default_factory=dict)
    nodes: dict[ir.Node, str] = dataclasses.field(default_factory=dict)
    hidden: set[ir.Value] = dataclasses.field(default_factory=set)


def find_misfits(module: Module, ctx: Context, count: int) -> Fit:
    """Look at constants, each read once, and at all values on some samples.

    Args:
        module: Every value has a type.
        ctx: Its samples are run; without any, what a tiny constant makes counts as tiny too.
        count: How many samples.
    """
    fit = Fit(hidden={v for v in module.graph.inputs if is_float(v) and hides(v)})
    tiny = _look_at_constants(module, ctx, fit)
    if ctx.samples is not None and count:
        _look_at_values(module, ctx, fit, count)
    else:
        for node in tiny:
            fit.values.update((v, f"comes from {node.op_type} with it") for v in node.outputs)
    return fit


def _look_at_constants(module: Module, ctx: Context, fit: Fit) -> list[ir.Node]:
    """Fill in constants; returns the nodes that multiply by one that float16 makes 0 or so."""
    tiny: list[ir.Node] = []
    seen: set[ir.Value] = set()
    for node in module.graph:
        for value in node.inputs:
            if value is None or value in seen or not is_float(value):
                continue
            seen.add(value)
            tensor = constant(value)
            if tensor is None:
                continue
            ctx.progress(f"reading {value.name}", 0.0)
            users = {user.op_type for user in value.consumers()}
            reason, is_tiny = _misfit(tensor, hides(value), users)
            if reason:
                fit.values[value] = reason
                if is_tiny:
                    tiny += [user for user in value.consumers() if user.op_type not in _GUARDED]
    return tiny


def _misfit(tensor: ir.TensorProtocol, is_mask: bool, users: set[str]) -> tuple[str, bool]:
    """Why float16 cannot hold a constant, and whether that is since it is too small."""
    seen = _Seen()
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        seen.add(flat[start : start + _CHUNK], is_mask)
    if isinstance(tensor, MappedTensor):
        tensor.release()
    if seen.reach > LARGEST:
        return f"reaches {seen.reach:.3g}, more than float16 holds", False
    allowed = _LOST_EPSILON if users <= _GUARDED else _LOST
    if seen.lost <= allowed:
        return "", False
    verb = "is" if flat.size == 1 else "reaches"
    return f"{verb} {seen.reach:.3g}, less than float16 resolves", True


@dataclasses.dataclass
class _Seen:
    """What numbers come to, and what float16 makes of them.

    Attributes:
        reach: The largest size of a number that stands for itself.
        squares: The sum of all squares.
        errors: The sum of the squares of what rounding takes.
        overflows: Whether some are beyond float16, of whatever meaning.
    """

    reach: float = 0.0
    squares: float = 0.0
    errors: float = 0.0
    overflows: bool = False

    def add(self, array: Array, is_mask: bool) -> None:
        self.overflows |= bool((np.abs(array[np.isfinite(array)]) > LARGEST).any())
        array = visible(array, is_mask)
        if not array.size:
            return
        self.reach = max(self.reach, float(np.abs(array).max()))
        exact = array.astype(np.float64)
        self.squares += float(exact @ exact)
        self.errors += float(((narrow(array) - exact) ** 2).sum())

    @property
    def lost(self) -> float:
        """What rounding takes, relative to the root mean square."""
        return math.sqrt(self.errors / self.squares) if self.squares else 0.0


def _look_at_values(module: Module, ctx: Context, fit: Fit, count: int) -> None:
    """Fill in inputs and computed values that leave the range or the precision of float16."""
    values = {
        str(value.name): value
        for value in (*module.graph.inputs, *(v for n in module.graph for v in n.outputs))
        if value.name and is_float(value) and constant(value) is None
    }
    if not values:
        return
    seen = {name: _Seen() for name in values}
    masks = {name: hides(value) for name, value in values.items()}
    norms: dict[ir.Node, str] = {}

    def look(name: str, array: Array) -> None:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            seen[name].add(flat[start : start + _CHUNK], masks[name])
        for node, place in values[name].uses():
            if not place and node.op_type in _NORMS and node not in norms:
                norms[node] = _norm_misfit(node, array[:1])

    with Stream(module, values) as stream:
        for feeds in itertools.islice(ctx.samples or (), count):
            ctx.progress("looking for what float16 cannot hold", 0.0)
            stream.run(feeds, look)
    for name, value in values.items():
        found = seen[name]
        if found.reach > LARGEST * _ROOM:
            fit.values[value] = f"reaches {found.reach:.3g} on the samples"
        elif found.lost > _LOST:
            fit.values[value] = (
                f"reaches {found.reach:.3g} on the samples, less than float16 resolves"
            )
        elif masks[name] and found.overflows:
            fit.hidden.add(value)
    fit.nodes.update((node, reason) for node, reason in norms.items() if reason)


def _norm_misfit(node: ir.Node, array: Array) -> str:
    """Why a norm needs its input, or the squares of it, in more than float16."""
    start, centred = _NORMS[node.op_type]
    start = node.attributes.get_int("axis", start)
    if node.op_type == "GroupNormalization":
        array = array.reshape(array.shape[0], node.attributes["num_groups"].as_int(), -1)
    axes = tuple(range(start % array.ndim, array.ndim)) if array.ndim else ()
    if not array.size or not axes or not np.isfinite(array).all():
        return ""
    exact = array.astype(np.float64)
    mean = exact.mean(axes, keepdims=True) if centred else np.zeros(1)
    deviation = math.sqrt(float(np.square(exact - mean).mean()))
    error = math.sqrt(float(np.square(narrow(array) - exact).mean()))
    if error > _LOST_DEVIATION * deviation:
        return f"the mean of its input is {abs(mean).max() / (deviation or 1):.3g} deviations"
    reach = float(np.abs(exact - mean).max())
    if reach**2 > LARGEST * _ROOM:
        return f"squares of its input reach {reach**2:.3g} on the samples"
    return ""
