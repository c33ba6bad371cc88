"""Converters of control flow and of sequences: bodies become modules, branches stay in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import Expr, call, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site


class Branch(nn.Module):
    """An If: runs one of two graphs."""

    def __init__(self, then: nn.Module, otherwise: nn.Module) -> None:
        super().__init__()
        self.then = then
        self.otherwise = otherwise

    def forward(self, condition: Any, then_values: Any, other_values: Any) -> Any:
        """The outputs of the branch that the condition selects; it reads its own values only."""
        return self.then(*then_values) if bool(condition) else self.otherwise(*other_values)


class Repeat(nn.Module):
    """A Loop: runs a graph until its count or its condition ends it.

    Args:
        body: The graph.
        states: How many values go from one step to the next.
        shapes: Dims and type of what each step adds, for a loop of no steps.
    """

    def __init__(
        self, body: nn.Module, states: int, shapes: list[tuple[list[int], torch.dtype]]
    ) -> None:
        super().__init__()
        self.body = body
        self.states = states
        self.shapes = shapes

    def forward(self, count: Any, condition: Any, state: Sequence[Any], values: Any) -> Any:
        """The last states, then what each step added, stacked along a new first axis."""
        device = _device(state, values)
        keep = torch.tensor(True, device=device) if condition is None else condition
        found: list[list[torch.Tensor]] = []
        current, step = list(state), 0
        while bool(keep) and (count is None or step < int(count)):
            number = torch.tensor(step, dtype=torch.int64, device=device)
            keep, *made = self.body(number, keep, *current, *values)
            current = made[: self.states]
            found.append(made[self.states :])
            step += 1
        if found:
            return [*current, *(torch.stack(parts) for parts in zip(*found, strict=True))]
        nothing = (torch.empty(0, *dims, dtype=dtype, device=device) for dims, dtype in self.shapes)
        return [*current, *nothing]


class Walk(nn.Module):
    """A Scan: runs a graph for each slice of its inputs."""

    def __init__(self, body: nn.Module, states: int, axes: Any, directions: Any) -> None:
        super().__init__()
        self.body = body
        self.states = states
        self.axes = axes
        self.directions = directions

    def forward(self, state: Sequence[Any], scanned: Sequence[Any], values: Any) -> Any:
        """The last states, then what each step added, stacked."""
        current = list(state)
        found: list[list[torch.Tensor]] = []
        parts = [
            list(x.unbind(axis))[:: -1 if is_reversed else 1]
            for x, axis, is_reversed in zip(scanned, self.axes[0], self.directions[0], strict=True)
        ]
        for slices in zip(*parts, strict=True):
            made = self.body(*current, *slices, *values)
            current, found = list(made[: self.states]), [*found, list(made[self.states :])]
        stacks = [
            torch.stack(column[:: -1 if is_reversed else 1], axis)
            for column, axis, is_reversed in zip(
                zip(*found, strict=True), self.axes[1], self.directions[1], strict=True
            )
        ]
        return [*current, *stacks]


def _device(*places: Sequence[Any]) -> torch.device:
    tensors = [x for place in places for x in place if isinstance(x, torch.Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def _results(made: Expr, count: int) -> tuple[Any, ...]:
    return tuple(made[index] for index in range(count))


@converts("If", folds=False, attributes=("else_branch", "then_branch"))
def branch(node: Site, condition: Expr) -> Any:
    """One of two graphs."""
    sides: list[fx.GraphModule] = []
    captured: list[list[fx.Proxy]] = []
    for name in ("then_branch", "else_branch"):
        graph: ir.Graph = node.attribute(name)
        frame, _ = node.frame.body(graph)
        sides.append(frame.finish(graph, name))
        captured.append(frame.recorder.captured)
    made = node.recorder.module("branch", Branch(*sides), condition, *map(tuple, captured))
    return _results(made, len(node.node.outputs))


@converts("Loop", folds=False, attributes=("body",))
def loop(node: Site, count: Expr, condition: Expr = None, *state: Expr) -> Any:
    """A graph, over and over."""
    graph: ir.Graph = node.attribute("body")
    frame, _ = node.frame.body(graph)
    made_of = frame.finish(graph, "body")
    shapes = [_open_shape(value) for value in graph.outputs[1 + len(state) :]]
    module = Repeat(made_of, len(state), shapes)
    values = tuple(frame.recorder.captured)
    made = node.recorder.module("loop", module, count, condition, state, values)
    return _results(made, len(node.node.outputs))


def _open_shape(value: ir.Value) -> tuple[list[int], torch.dtype]:
    """The dims and the type of a value, with 0 for what is not known."""
    dtype = TORCH.get(value.dtype) if value.dtype is not None else None
    dims = [dim if isinstance(dim, int) else 0 for dim in value.shape or ()]
    return dims, dtype or torch.float32


_SCAN = tuple(f"scan_{s}_{what}" for s in ("input", "output") for what in ("axes", "directions"))


@converts("Scan", attributes=("body", "num_scan_inputs", *_SCAN), folds=False)
def scan(node: Site, *inputs: Expr) -> Any:
    """A graph for each slice of the inputs."""
    if node.opset < 9:
        node.refuse("before opset 9 it had batches")
    graph: ir.Graph = node.attribute("body")
    count = node.attribute("num_scan_inputs")
    states = len(inputs) - count
    added = len(node.node.outputs) - states
    frame, _ = node.frame.body(graph)
    axes, directions = (
        tuple(
            tuple(node.attribute(f"scan_{side}_{what}") or (0,) * number)
            for side, number in (("input", count), ("output", added))
        )
        for what in ("axes", "directions")
    )
    module = Walk(frame.finish(graph, "body"), states, axes, directions)
    values = tuple(frame.recorder.captured)
    made = node.recorder.module("scan", module, inputs[:states], inputs[states:], values)
    return _results(made, len(node.node.outputs))


@converts("SplitToSequence", folds=False, sizes=(1,), attributes=("axis", "keepdims"))
def split_to_sequence(node: Site, x: Expr, sizes: Any = None) -> Expr:
    """A list of parts along an axis."""
    axis = node.attribute("axis", 0)
    if sizes is None:
        parts = torch.split(x, 1, axis) if node.flag("keepdims", 1) else torch.unbind(x, axis)
        return call(list, parts)
    is_scalar = node.rank(1) == 0
    return call(list, torch.split(x, sizes[0] if is_scalar else sizes, axis))


@converts("SequenceConstruct", folds=False)
def sequence(node: Site, *items: Expr) -> Expr:
    """A list."""
    return call(listed, *items)


def listed(*items: Any) -> list[Any]:
    """A list of the arguments."""
    return list(items)


@converts("SequenceEmpty", attributes=("dtype",))
def empty_sequence(node: Site) -> Expr:
    """A list of nothing."""
    return []


@converts("SequenceAt", folds=False, sizes=(1,))
def sequence_at(node: Site, items: Expr, index: Any) -> Expr:
    """One item of a list."""
    return items[index[0]]


@converts("SequenceLength", folds=False)
def sequence_length(node: Site, items: Expr) -> Expr:
    """How long a list is."""
    return length(items, node.device)


@recorded
def length(items: Sequence[Any], device: Any) -> torch.Tensor:
    """How long a list is."""
    return torch.tensor(len(items), device=device)


@converts("SequenceInsert", folds=False, sizes=(2,))
def sequence_insert(node: Site, items: Expr, item: Expr, index: Any = None) -> Expr:
    """A list with one more item, before a place or at the end."""
    return inserted(items, item, None if index is None else index[0])


@recorded
def inserted(items: Sequence[Any], item: Any, index: int | None) -> list[Any]:
    """A list with one more item, before a place or at the end."""
    at = len(items) if index is None else index + len(items) if index < 0 else index
    return [*items[:at], item, *items[at:]]


@converts("SequenceErase", folds=False, sizes=(1,))
def sequence_erase(node: Site, items: Expr, index: Any = None) -> Expr:
    """A list without one item, the last by default."""
    return erased(items, -1 if index is None else index[0])


@recorded
def erased(items: Sequence[Any], index: int) -> list[Any]:
    """A list without one item."""
    index %= len(items)
    return [*items[:index], *items[index + 1 :]]


@converts("ConcatFromSequence", folds=False, attributes=("axis", "new_axis"))
def concat_from_sequence(node: Site, items: Expr) -> Expr:
    """The items of a list, joined along an axis, or along a new one."""
    axis = node.attribute("axis")
    return call(torch.stack if node.flag("new_axis") else torch.cat, items, axis)
