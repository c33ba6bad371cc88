"""Recurrent layers without lengths of their sequences, and with time before the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import keeping, number
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_LENGTHS, _STATE, _CELL, _PEEPHOLES = 4, 5, 6, 7  # positions of inputs
_SHUT = 1e4  # what opens a gate wholly, or shuts it; a float16 too
_ACTIVATIONS = {"GRU": 2, "LSTM": 3, "RNN": 1}  # of one direction


def _recurrent(op: PatternBuilder, x: Any, w: Any, r: Any) -> list[Apply]:
    return [kind(x, w, r, _more=True) for kind in (op.GRU, op.LSTM, op.RNN)]


def _used(node: ir.Node, results: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """The results for those outputs that the node does not leave out."""
    return {old: new for old, new in zip(node.outputs, results, strict=True) if old.name}


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


class TimeMajor(Rule):
    """LSTM(layout = 1, x) -> Transpose(LSTM(layout = 0, Transpose(x))), and GRU, RNN"""

    name = "time-major"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, r: Any) -> list[Apply]:
        return _recurrent(op, x, w, r)

    def rewrite(self, op: Builder, match: Match) -> dict[ir.Value, ir.Value] | None:
        node = match.root
        if not node.attributes.get_int("layout", 0):
            return None
        inputs = list(node.inputs)
        for position in (0, _STATE, _CELL):
            if (value := _input(node, position)) is not None:
                inputs[position] = op.Transpose(value, perm=[1, 0, 2])
        results = op.node(
            node.op_type,
            inputs,
            {**keeping(node, "layout"), "_outputs": len(node.outputs)},
        )
        first, *others = results if isinstance(results, list) else [results]
        states = [op.Transpose(state, perm=[1, 0, 2]) for state in others]
        return _used(node, [op.Transpose(first, perm=[2, 0, 1, 3]), *states])


class MaskedLengths(Rule):
    """GRU(x, lengths) -> (GRU(x), or 0 behind the end of a sequence); and LSTM, RNN

    The last state is the output at the last number of a sequence. Backwards, the sequences are
    reversed before and the outputs behind. What an LSTM's cell keeps is no output: its gates are
    shut behind the end, by an input that says where that is.
    """

    name = "sequence-lengths"
    opset = 13  # ReduceSum and Unsqueeze along axes that are inputs

    def pattern(self, op: PatternBuilder, x: Any, w: Any, r: Any) -> list[Apply]:
        return _recurrent(op, x, w, r)

    def rewrite(self, op: Builder, match: Match) -> dict[ir.Value, ir.Value] | None:
        node = match.root
        lengths = _input(node, _LENGTHS)
        if lengths is None or node.attributes.get_int("layout", 0) == 1:
            return None
        lengths = op.Cast(lengths, to=int(ir.DataType.INT64))
        direction = node.attributes.get_string("direction", "forward")
        if direction == "bidirectional":
            parts = [_Direction(op, node, lengths, which, bool(which)) for which in (0, 1)]
        else:
            parts = [_Direction(op, node, lengths, None, direction == "reverse")]
        columns = list(zip(*(part.run() for part in parts), strict=True))
        if len(parts) == 1:
            return _used(node, [column[0] for column in columns])
        joined = [op.Concat(*column, axis=int(not index)) for index, column in enumerate(columns)]
        return _used(node, joined)


@dataclasses.dataclass
class _Direction:
    """One direction of a layer.

    Attributes:
        op: Makes nodes.
        node: The layer.
        lengths: Of the sequences, int64[batch].
        number: Which of two directions this is; None of a layer that has one.
        is_reverse: Whether sequences are read from their ends.
    """

    op: Builder
    node: ir.Node
    lengths: ir.Value
    number: int | None
    is_reverse: bool

    def run(self) -> list[ir.Value]:
        """All outputs of the layer that it has."""
        op, x = self.op, self._own(0)
        assert x is not None
        zero = number(0, x)
        if self.is_reverse:
            x = self._reversed(x)
        time = op.Range(np.array(0), op.Gather(op.Shape(x), np.array(0)), np.array(1))
        time = op.Unsqueeze(time, np.array([1, 2, 3]))  # [time, 1, 1, 1]
        ends = op.Unsqueeze(self.lengths, np.array([0, 1, 3]))  # [1, 1, batch, 1]
        y, *others = self._layer(x, time, ends)
        is_last = op.Equal(time, op.Sub(ends, np.array([1])))
        last = op.ReduceSum(op.Where(is_last, y, zero), np.array([0]), keepdims=0)
        y = op.Where(op.Less(time, ends), y, zero)
        if self.is_reverse:
            squeezed = self._reversed(op.Squeeze(y, np.array([1])))
            y = op.Unsqueeze(squeezed, np.array([1]))
        results = [y, last][: len(self.node.outputs)]
        if len(self.node.outputs) > 2:
            is_none = op.Equal(op.Squeeze(ends, np.array([0])), np.array([0]))
            results.append(op.Where(is_none, zero, others[1]) if self._wants_cell() else last)
        return results

    def _layer(self, x: ir.Value, time: ir.Value, ends: ir.Value) -> list[ir.Value]:
        op, node = self.op, self.node
        inputs = [x, *(self._own(position) for position in range(1, len(node.inputs)))]
        inputs[_LENGTHS] = None
        if self._wants_cell():
            inputs[:2] = self._with_end(x, inputs[1], time, ends)
        names = node.attributes.get_strings("activations", ())
        count = _ACTIVATIONS[node.op_type]
        chosen: dict[str, Any] = {"direction": "forward"}
        if names:
            chosen["activations"] = list(names[:count] if not self.number else names[count:])
        results = op.node(
            node.op_type,
            inputs,
            {**keeping(node, "direction", "activations"), **chosen, "_outputs": len(node.outputs)},
        )
        return results if isinstance(results, list) else [results]

    def _wants_cell(self) -> bool:
        cell = self.node.outputs[2] if len(self.node.outputs) > 2 else None
        return cell is not None and bool(cell.uses() or cell.is_graph_output())

    def _with_end(
        self, x: ir.Value, weight: ir.Value | None, time: ir.Value, ends: ir.Value
    ) -> list[ir.Value]:
        """The input and the weight of a layer whose cell stays as it is behind the end.

        Raises:
            NoMatch: its gates cannot be shut that way.
        """
        op, names = self.op, self.node.attributes
        if names.get_strings("activations", ("Sigmoid",))[0] != "Sigmoid" or "clip" in names:
            raise NoMatch("what the cell keeps at the end of a sequence needs plain gates")
        assert weight is not None
        over = op.CastLike(op.GreaterOrEqual(time, ends), x)  # [time, 1, batch, 1]
        column = np.repeat(
            np.array([-_SHUT, 0, _SHUT, 0], np.float32), names.get_int("hidden_size")
        )
        column = op.CastLike(column.reshape(1, -1, 1), weight)
        return [
            op.Concat(x, op.Squeeze(over, np.array([1])), axis=2),
            op.Concat(weight, column, axis=2),
        ]

    def _own(self, position: int) -> ir.Value | None:
        """This direction's part of an input."""
        value = _input(self.node, position)
        if value is None or self.number is None or position in (0, _LENGTHS):
            return value
        start, end = np.array([self.number]), np.array([self.number + 1])
        made: ir.Value = self.op.Slice(value, start, end, np.array([0]))
        return made

    def _reversed(self, sequences: ir.Value) -> ir.Value:
        made: ir.Value = self.op.ReverseSequence(sequences, self.lengths, time_axis=0, batch_axis=1)
        return made
