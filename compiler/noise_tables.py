"""Tables of random numbers, and the nodes that read one from a place that a draw has to itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.pipeline.rules import Builder

LENGTH = 16381
"""Of a table: a prime, so that no dim of a tensor is likely to be a period of its noise."""

Counter = tuple[ir.Value, int]
"""The number of a loop's round, and how far apart the rounds' places in the table are."""

Shape = Sequence[int] | ir.Value
_ALLOWS_ZERO = 14  # the opset from which on Reshape may be told that 0 means no elements
_BITS = 24


def _uniform() -> npt.NDArray[np.float32]:
    """Numbers from 0 to just below 1, which float32 holds exactly."""
    drawn = np.random.default_rng(11).integers(0, 1 << _BITS, LENGTH)
    return np.asarray(drawn / (1 << _BITS), np.float32)


def _normal() -> npt.NDArray[np.float32]:
    return np.asarray(np.random.default_rng(12).standard_normal(LENGTH), np.float32)


def _gumbel() -> npt.NDArray[np.float32]:
    return np.asarray(np.random.default_rng(13).gumbel(size=LENGTH), np.float32)


class Noise:
    """Makes the noise of one draw.

    Args:
        op: Makes the nodes.
        place: Where in a table the noise begins.
        counters: Of the loops around it.
    """

    def __init__(self, op: Builder, place: int, counters: Sequence[Counter]) -> None:
        self.op = op
        self._place = place
        self._counters = counters

    def like(self, value: ir.Value | None) -> Shape:
        """The shape of a value: numbers where all of them are known."""
        assert value is not None
        dims = value.shape
        if dims is not None and all(isinstance(dim, int) and dim >= 0 for dim in dims):
            return [dim for dim in dims if isinstance(dim, int)]
        shape: ir.Value = self.op.Shape(value)
        return shape

    def uniform(self, shape: Shape) -> ir.Value:
        """Float32, evenly from 0 to 1, which is not among them."""
        return self._read(_uniform(), shape)

    def normal(self, shape: Shape) -> ir.Value:
        """Float32 of mean 0 and variance 1."""
        return self._read(_normal(), shape)

    def gumbel(self, shape: Shape) -> ir.Value:
        """Float32 whose greatest sum with logarithms of weights is a sample of these weights."""
        return self._read(_gumbel(), shape)

    def _read(self, table: npt.NDArray[np.float32], shape: Shape) -> ir.Value:
        op = self.op
        if isinstance(shape, ir.Value):
            size = op.ReduceProd(shape, keepdims=0)
            count = op.Range(_number(0), size, _number(1))
            found = self._gather(table, op.Add(count, _number(self._place)))
            zero = {"allowzero": 1} if op.opset >= _ALLOWS_ZERO else {}
            made: ir.Value = op.Reshape(found, shape, **zero)
            return made
        order = (self._place + np.arange(math.prod(shape), dtype=np.int64)) % LENGTH
        if not self._counters:
            return op.constant(table[order].reshape(tuple(shape)), "noise")
        return self._gather(table, op.constant(order.reshape(tuple(shape)), "places"))

    def _gather(self, table: npt.NDArray[np.float32], order: ir.Value) -> ir.Value:
        """What stands in a table, moved on by rounds of loops; its start follows its end."""
        op = self.op
        for counter, stride in self._counters:
            order = op.Add(order, op.Mul(counter, _number(stride)))
        rest = op.Sub(order, op.Mul(op.Div(order, _number(LENGTH)), _number(LENGTH)))
        found: ir.Value = op.Gather(op.constant(table, "table"), rest)
        return found


def _number(value: int) -> npt.NDArray[np.int64]:
    return np.asarray(value, np.int64)
