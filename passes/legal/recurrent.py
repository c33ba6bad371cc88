"""Recurrent layers as the products and activations of their steps, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import read
from aigcc.passes.conditions import number
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

Activation = Callable[[Builder, ir.Value], ir.Value]

_MOST_STEPS = 256
_USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

# What activations are called, and the usual alpha and beta of those that take them. Where there is
# none, runtimes differ.
_ALPHA = {"affine": None, "elu": 1.0, "hardsigmoid": 0.2, "leakyrelu": 0.01, "scaledtanh": None,
          "thresholdedrelu": None}  # fmt: skip
_BETA = {"affine": None, "hardsigmoid": 0.5, "scaledtanh": None}
_PLAIN = {"relu": "Relu", "sigmoid": "Sigmoid", "softplus": "Softplus", "softsign": "Softsign",
          "tanh": "Tanh"}  # fmt: skip


class Unrolled(Rule):
    """LSTM(x, w, r), GRU or RNN -> MatMul(x, w), and MatMul(h, r) with activations for each step

    The sequence must be of known length. Where lengths of samples are given, a step beyond them
    keeps the state and gives zeros.
    """

    name = "unroll"

    def pattern(
        self,
        op: PatternBuilder,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        h: Any = None,
        c: Any = None,
        p: Any = None,
    ) -> list[Apply]:
        inputs = (x, w, r, b, lengths, h, c, p)
        return [op.LSTM(*inputs), op.GRU(*inputs), op.RNN(*inputs)]

    def rewrite(self, op: Builder, match: Match) -> list[ir.Value]:
        layer = _layer(op, match)
        x = match.x if not layer.batch_first else op.Transpose(match.x, perm=[1, 0, 2])
        rows, last, cells = [], [], []
        for direction in range(layer.directions):
            steps, h, c = _run(op, match, layer, x, direction)
            rows.append(op.Reshape(op.Concat(*steps, axis=0), [layer.steps, 1, -1, layer.hidden]))
            last.append(op.Unsqueeze(h, [0]))
            cells.append(op.Unsqueeze(c, [0]) if c is not None else None)
        made = [_joined(op, rows, 1), _joined(op, last, 0)]
        if layer.kind == "LSTM":
            made.append(_joined(op, cells, 0))
        if layer.batch_first:
            turns = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
            made = [op.Transpose(y, perm=turn) for y, turn in zip(made, turns, strict=False)]
        return made[: len(match.root.outputs)]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What a node says of all its steps."""

    kind: str
    hidden: int
    steps: int
    directions: int
    is_reversed: bool
    batch_first: bool
    clip: float
    is_coupled: bool
    resets_late: bool
    activations: tuple[Activation, ...]

    def order(self, direction: int) -> Iterator[int]:
        """The steps in the order that they are taken in."""
        steps = range(self.steps)
        backward = self.is_reversed or direction == 1
        return iter(reversed(steps) if backward else steps)


def _layer(op: Builder, match: Match) -> _Layer:
    node, kind = match.root, match.root.op_type
    if op.opset < 13:
        raise NoMatch("is spelt from opset 13 on")
    batch_first = bool(node.attributes.get_int("layout", 0))
    steps = match.x.shape[1 if batch_first else 0] if match.x.shape is not None else None
    hidden = match.r.shape[2] if match.r.shape is not None else None
    if not isinstance(steps, int) or not isinstance(hidden, int) or not steps:
        raise NoMatch("its sequence is of no known length: give the dim a size")
    if steps > _MOST_STEPS:
        raise NoMatch(f"{steps} steps are too many to be spelt out, more than {_MOST_STEPS}")
    direction = node.attributes.get_string("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    return _Layer(
        kind,
        hidden,
        steps,
        directions,
        direction == "reverse",
        batch_first,
        node.attributes.get_float("clip", 0.0),
        bool(node.attributes.get_int("input_forget", 0)),
        bool(node.attributes.get_int("linear_before_reset", 0)),
        tuple(_activations(node, directions)),
    )


def _activations(node: ir.Node, directions: int) -> Iterator[Activation]:
    names = list(node.attributes.get_strings("activations", ())) or (
        _USUAL[node.op_type] * directions
    )
    alphas = iter(node.attributes.get_floats("activation_alpha", ()))
    betas = iter(node.attributes.get_floats("activation_beta", ()))
    for name in (name.lower() for name in names):
        alpha = next(alphas, _ALPHA[name]) if name in _ALPHA else 0.0
        beta = next(betas, _BETA[name]) if name in _BETA else 0.0
        if alpha is None or beta is None:
            raise NoMatch(f"its activation {name!r} is given no alpha or beta")
        yield _activation(name, alpha, beta)


def _activation(name: str, alpha: float, beta: float) -> Activation:
    def affine(op: Builder, x: ir.Value, a: float, b: float) -> Any:
        return op.Add(op.Mul(x, number(a, x)), number(b, x))

    match name:
        case "affine":
            return lambda op, x: affine(op, x, alpha, beta)
        case "scaledtanh":
            return lambda op, x: op.Mul(op.Tanh(op.Mul(x, number(beta, x))), number(alpha, x))
        case "hardsigmoid":
            return lambda op, x: op.HardSigmoid(x, alpha=alpha, beta=beta)
        case "elu":
            return lambda op, x: op.Elu(x, alpha=alpha)
        case "leakyrelu":
            return lambda op, x: op.LeakyRelu(x, alpha=alpha)
        case "thresholdedrelu":
            return lambda op, x: op.ThresholdedRelu(x, alpha=alpha)
    if name not in _PLAIN:
        raise NoMatch(f"its activation {name!r} is not known")
    return lambda op, x: op.node(_PLAIN[name], [x], {})


def _run(
    op: Builder, match: Match, layer: _Layer, x: ir.Value, direction: int
) -> tuple[list[ir.Value], ir.Value, ir.Value | None]:
    """The output of every step, the last one, and the last cell state."""

    def part(value: ir.Value | None, axis: int = 0) -> Any:
        at = np.array(direction, np.int64)
        return None if value is None else op.Gather(value, at, axis=axis)

    def state(value: ir.Value | None) -> Any:
        zeros = np.repeat(number(0.0, x)[None, None], layer.hidden, 1)
        return zeros if value is None else part(value, 1 if layer.batch_first else 0)

    factor = op.Transpose(part(match.r), perm=[1, 0])
    wide = op.MatMul(x, op.Transpose(part(match.w), perm=[1, 0]))
    step = _Step(op, layer, factor, part(match.b), part(match.p), direction)
    wide = step.with_bias(wide)
    bounds, keep = _lengths(op, match, layer)
    h, c = state(match.h), state(match.c)
    outputs: list[Any] = [None] * layer.steps
    for index in layer.order(direction):
        row = op.Gather(wide, np.array(index, np.int64), axis=0)
        new, cell = step.take(row, h, c)
        outputs[index] = new
        if keep:
            inside = op.Less(np.array(index, np.int32), bounds)
            outputs[index] = op.Where(inside, new, number(0.0, x))
            new = op.Where(inside, new, h)
            cell = op.Where(inside, cell, c) if cell is not None else None
        h, c = new, cell
    return outputs, h, c


def _lengths(op: Builder, match: Match, layer: _Layer) -> tuple[Any, bool]:
    """The lengths of samples as a column, and whether they matter."""
    if match.lengths is None:
        return None, False
    known = read(match.lengths)
    if known is not None and (known == layer.steps).all():
        return None, False
    return op.Unsqueeze(match.lengths, [1]), True


@dataclasses.dataclass
class _Step:
    """One step of one direction; gates lie side by side in rows, as ONNX orders them."""

    op: Builder
    layer: _Layer
    factor: ir.Value
    bias: ir.Value | None
    peepholes: ir.Value | None
    direction: int
    late: Any = None  # the bias of a GRU's last gate, where it is reset together with its product

    def with_bias(self, wide: ir.Value) -> ir.Value:
        """Rows with the biases that are added before anything else."""
        if self.bias is None:
            return wide
        op, width = self.op, _GATES[self.layer.kind] * self.layer.hidden
        first, second = op.Split(self.bias, [width, width], axis=0, _outputs=2)
        if self.layer.kind == "GRU" and self.layer.resets_late:
            hidden = self.layer.hidden
            gates, self.late = op.Split(second, [2 * hidden, hidden], axis=0, _outputs=2)
            second = op.Concat(gates, np.repeat(number(0.0, wide)[None], hidden), axis=0)
        value: ir.Value = op.Add(wide, op.Add(first, second))
        return value

    def take(self, row: Any, h: Any, c: Any) -> tuple[Any, Any]:
        """The output and the cell state after one step."""
        count = len(_USUAL[self.layer.kind])
        chosen = self.layer.activations[self.direction * count :][:count]
        kind = getattr(self, self.layer.kind.lower())
        result: tuple[Any, Any] = kind(row, h, c, *chosen)
        return result

    def rnn(self, row: Any, h: Any, c: Any, f: Activation) -> tuple[Any, Any]:
        """h = f(x w + h r + b)"""
        return f(self.op, self.clipped(self.op.Add(row, self.op.MatMul(h, self.factor)))), None

    def gru(self, row: Any, h: Any, c: Any, f: Activation, g: Activation) -> tuple[Any, Any]:
        """h = (1 - z) g(x w + (r * h) r) + z h, or with g(x w + r * (h r))"""
        op, size = self.op, self.layer.hidden
        early, last = op.Split(row, [2 * size, size], axis=-1, _outputs=2)
        gates, inner = op.Split(self.factor, [2 * size, size], axis=-1, _outputs=2)
        both = f(op, self.clipped(op.Add(early, op.MatMul(h, gates))))
        z, r = op.Split(both, [size, size], axis=-1, _outputs=2)
        if self.layer.resets_late:
            product = op.MatMul(h, inner)
            product = op.Mul(r, product if self.late is None else op.Add(product, self.late))
        else:
            product = op.MatMul(op.Mul(r, h), inner)
        new = g(op, self.clipped(op.Add(last, product)))
        return op.Add(op.Mul(op.Sub(number(1.0, z), z), new), op.Mul(z, h)), None

    def lstm(
        self, row: Any, h: Any, c: Any, f: Activation, g: Activation, last: Activation
    ) -> tuple[Any, Any]:
        """c = forget c + in g(...); h = out last(c)"""
        op, size = self.op, self.layer.hidden
        gates = op.Add(row, op.MatMul(h, self.factor))
        into, out, forget, new = op.Split(gates, [size] * 4, axis=-1, _outputs=4)
        peeps = (
            [None] * 3
            if self.peepholes is None
            else op.Split(self.peepholes, [size] * 3, axis=0, _outputs=3)
        )
        into = f(op, self.clipped(self.seen(into, peeps[0], c)))
        if self.layer.is_coupled:
            forget = op.Sub(number(1.0, into), into)
        else:
            forget = f(op, self.clipped(self.seen(forget, peeps[2], c)))
        new = g(op, self.clipped(new))
        c = op.Add(op.Mul(forget, c), op.Mul(into, new))
        out = f(op, self.clipped(self.seen(out, peeps[1], c)))
        return op.Mul(out, last(op, c)), c

    def seen(self, gate: Any, peephole: Any, cell: Any) -> Any:
        """A gate that sees the cell state."""
        return gate if peephole is None else self.op.Add(gate, self.op.Mul(peephole, cell))

    def clipped(self, x: Any) -> Any:
        """x within the layer's bounds."""
        bound = self.layer.clip
        return self.op.Clip(x, number(-bound, x), number(bound, x)) if bound else x


def _joined(op: Builder, parts: list[Any], axis: int) -> ir.Value:
    value: ir.Value = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)
    return value
