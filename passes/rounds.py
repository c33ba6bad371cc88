"""How often a Loop or a Scan runs, what its rounds get, and what is made of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import scalar
from aigcc.passes.conditions import size
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder


class Rounds(ABC):
    """The rounds of a loop.

    Attributes:
        node: The Loop or Scan.
        op: Makes what stands around the rounds.
        body: What runs in each round.
        count: How many rounds there are.
        state: What the first one starts from.
        skipped: How many outputs of the body come before the state.
        made: Nodes that were made for the loop.

    Raises:
        NoMatch: How many rounds there are is not known.
    """

    skipped: ClassVar[int]
    count: int
    state: list[ir.Value]

    def __init__(self, node: ir.Node, op: Builder) -> None:
        self.node = node
        self.op = op
        self.body = node.attributes["body"].as_graph()
        self.made: set[ir.Node | None] = set()

    @abstractmethod
    def inputs(self, number: int, state: list[ir.Value]) -> list[ir.Value]:
        """What the body gets in a round."""

    @abstractmethod
    def stacked(self, place: int, values: list[ir.Value]) -> ir.Value:
        """What all rounds gave for the body's output `place` behind the state, as one value."""

    def insert(self) -> None:
        """Put what was made into the graph, in front of the loop's node."""
        self.op.graph.insert_before(self.node, self.op.made)
        self.made.update(self.op.made)
        self.op.made.clear()

    def _joined(self, values: list[ir.Value], axis: int) -> ir.Value:
        """Values side by side on a new axis."""
        columns = [self.op.Unsqueeze(value, [axis]) for value in values]
        joined: ir.Value = columns[0] if len(columns) == 1 else self.op.Concat(*columns, axis=axis)
        return joined


class LoopRounds(Rounds):
    """The rounds of a Loop: as many as it counts, while its condition holds."""

    skipped = 1

    def __init__(self, node: ir.Node, op: Builder) -> None:
        super().__init__(node, op)
        self.state = [value for value in node.inputs[2:] if value is not None]
        self.count = self._count()
        if not self.count:
            for result in self.body.outputs[1 + len(self.state) :]:
                if result.dtype is None or result.shape is None or result.shape.is_dynamic():
                    raise NoMatch("it never runs, and the shape of a result is not known")

    def _count(self) -> int:
        limit, condition = self.node.inputs[:2]
        first = 1 if condition is None else scalar(condition)
        if first is None:
            raise NoMatch("its condition is not known")
        most = None if limit is None else scalar(limit)
        if not first or (most is not None and most <= 0):
            return 0
        if limit is not None and most is None:
            raise NoMatch("how often it runs is not known")
        if most == 1:
            return 1
        goes_on = self._goes_on()
        if goes_on is False:
            return 1
        if goes_on is None or most is None:
            raise NoMatch("when it ends is not known")
        return int(most)

    def _goes_on(self) -> bool | None:
        """Whether there is another round after each, as far as the count goes."""
        value: ir.Value | None = self.body.outputs[0]
        while value is not None and (node := value.producer()) and node.op_type == "Identity":
            value = node.inputs[0]
        if value is self.body.inputs[1]:
            return True
        known = scalar(value)
        return None if known is None else bool(known)

    def inputs(self, number: int, state: list[ir.Value]) -> list[ir.Value]:
        """The number of the round, that it goes on, and the state."""
        counter, condition = (
            self.op.constant(np.full([1] * len(value.shape or ()), held), "round")
            for value, held in zip(
                self.body.inputs[:2], (np.int64(number), np.bool_(True)), strict=True
            )
        )
        return [counter, condition, *state]

    def stacked(self, place: int, values: list[ir.Value]) -> ir.Value:
        """Results along a new first axis; none of them where the loop never runs."""
        if values:
            return self._joined(values, 0)
        result = self.body.outputs[1 + len(self.state) + place]
        assert result.dtype is not None and result.shape is not None
        return self.op.constant(np.empty([0, *result.shape.numpy()], result.dtype.numpy()), "none")


class ScanRounds(Rounds):
    """The rounds of a Scan: one for each element of its sequences."""

    skipped = 0

    def __init__(self, node: ir.Node, op: Builder) -> None:
        super().__init__(node, op)
        if op.opset < 9:
            raise NoMatch("before opset 9 it had batches")
        given = [value for value in node.inputs if value is not None]
        scanned = node.attributes["num_scan_inputs"].as_int()
        self.state, self._sequences = given[:-scanned], given[-scanned:]
        self._axes = list(node.attributes.get_ints("scan_input_axes", [0] * scanned))
        lengths = {size(x, axis) for x, axis in zip(self._sequences, self._axes, strict=True)}
        known = [length for length in lengths if length is not None]
        if not known:
            raise NoMatch("the length of its sequences is not known")
        if len(set(known)) > 1 or not known[0]:
            raise NoMatch("its sequences are empty, or of different lengths")
        self.count = known[0]
        self._results = self._result_axes()
        self._parts: list[list[ir.Value]] = []

    def inputs(self, number: int, state: list[ir.Value]) -> list[ir.Value]:
        """The state, and an element of each sequence."""
        if not self._parts:
            self._parts = [self._elements(place) for place in range(len(self._sequences))]
        return [*state, *(parts[number] for parts in self._parts)]

    def _elements(self, place: int) -> list[ir.Value]:
        """The elements of a sequence in the order of the rounds."""
        x, axis = self._sequences[place], self._axes[place]
        parts = [x]
        if self.count > 1:
            parts = self.op.Split(x, [1] * self.count, axis=axis, _outputs=self.count)
        elements = [self.op.Squeeze(part, [axis]) for part in parts]
        return elements[::-1] if self._is_backward("scan_input_directions", place) else elements

    def _is_backward(self, name: str, place: int) -> bool:
        directions = self.node.attributes.get_ints(name)
        return bool(directions and directions[place])

    def _result_axes(self) -> list[int]:
        results = self.body.outputs[len(self.state) :]
        axes = list(self.node.attributes.get_ints("scan_output_axes", [0] * len(results)))
        for place, (axis, result) in enumerate(zip(axes, results, strict=True)):
            if axis < 0:
                if result.shape is None:
                    raise NoMatch("the rank of a result is not known")
                axes[place] = axis + len(result.shape) + 1
        return axes

    def stacked(self, place: int, values: list[ir.Value]) -> ir.Value:
        """Results along the axis that is asked for, the last first where it runs backward."""
        backward = self._is_backward("scan_output_directions", place)
        return self._joined(values[::-1] if backward else values, self._results[place])


LOOPS: Mapping[str, type[Rounds]] = {"Loop": LoopRounds, "Scan": ScanRounds}
"""By operator."""
