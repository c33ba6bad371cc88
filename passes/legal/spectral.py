"""Fourier transforms as products with constant matrices of cosines and sines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.weights import read, scalar
from aigcc.passes.conditions import number
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_LARGEST = 64 << 20  # bytes of a matrix


class Stft(Rule):
    """STFT(x) -> MatMul(Gather(x, frames), window * cosines and sines)"""

    name = "stft"

    def pattern(
        self, op: PatternBuilder, x: Any, step: Any, window: Any = None, length: Any = None
    ) -> Apply:
        return op.STFT(x, step, window, length)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x, step = match.x, scalar(match.step)
        size = _dim(x, 1)
        window = None if match.window is None else read(match.window)
        if step is None or (match.window is not None and window is None):
            raise NoMatch("its step or window is not constant")
        width = len(window) if window is not None else scalar(match.length)
        if width is None or scalar(match.length) not in (None, width):
            raise NoMatch("its frames are of no known length, or of another than the window")
        width, step = int(width), int(step)
        parts = 1 if len(x.shape) == 2 else _dim(x, 2)
        one_sided = bool(match.root.attributes.get_int("onesided", 1))
        matrix = _matrix(width, width, parts, one_sided=one_sided, inverse=False)
        if window is not None:
            matrix = matrix * np.repeat(window.astype(np.float64), parts)[:, None]
        count = (size - width) // step + 1
        if count < 1:
            raise NoMatch("the signal is shorter than a frame")
        frames = step * np.arange(count)[:, None] + np.arange(width)
        rows = op.Gather(x, frames, axis=1)
        if len(x.shape) == 3:
            rows = op.Reshape(rows, [0, count, width * parts])
        y = op.MatMul(rows, matrix.astype(number(0.0, x).dtype))
        value: ir.Value = op.Reshape(y, [0, count, matrix.shape[1] // 2, 2])
        return value


class Dft(Rule):
    """DFT(x) -> MatMul(x, cosines and sines), along the axis"""

    name = "dft"

    def pattern(
        self, op: PatternBuilder, x: Any, length: Any = None, axis: Any = None
    ) -> list[Apply]:
        return [op.DFT(x, length, axis)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        node, x = match.root, match.x
        if x.shape is None:
            raise NoMatch("the rank of its input is not known")
        rank = len(x.shape)
        usual = 1 if op.opset < 20 else -2
        chosen = node.attributes.get_int("axis", usual) if match.axis is None else None
        found = scalar(match.axis) if chosen is None else chosen
        length = None if match.length is None else scalar(match.length)
        if found is None or (match.length is not None and length is None):
            raise NoMatch("its axis or length is not constant")
        axis, parts = int(found) % rank, _dim(x, rank - 1)
        size = _dim(x, axis)
        one_sided = bool(node.attributes.get_int("onesided", 0))
        inverse = bool(node.attributes.get_int("inverse", 0))
        if one_sided and inverse:
            raise NoMatch("the inverse of one side is not spelt")
        width = size if length is None else int(length)
        matrix = _matrix(size, width, parts, one_sided=one_sided, inverse=inverse)
        turn = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
        turned = x if turn == list(range(rank)) else op.Transpose(x, perm=turn)
        rows = op.Reshape(turned, [*[0] * (rank - 2), size * parts])
        y = op.MatMul(rows, matrix.astype(number(0.0, x).dtype))
        y = op.Reshape(y, [*[0] * (rank - 2), matrix.shape[1] // 2, 2])
        back = [turn.index(i) for i in range(rank)]
        value: ir.Value = y if turned is x else op.Transpose(y, perm=back)
        return value


def _dim(x: ir.Value, axis: int) -> int:
    dim = x.shape[axis] if x.shape is not None else None
    if not isinstance(dim, int):
        raise NoMatch("its signal is of no known length: give the dim a size")
    return dim


def _matrix(
    size: int, width: int, parts: int, *, one_sided: bool, inverse: bool
) -> npt.NDArray[np.float64]:
    """From (place, part) to (frequency, part) of a transform of `width`, for `size` numbers.

    Parts are the real one and, where there are two, the imaginary one.
    """
    bins = width // 2 + 1 if one_sided else width
    if 8 * size * parts * bins > _LARGEST:
        raise NoMatch(f"a transform of {width} needs too large a matrix")
    # whole turns are taken off in whole numbers, which keeps angles exact
    turns = np.outer(np.arange(size), np.arange(bins)) % max(width, 1)
    angle = (1 if inverse else -1) * 2 * math.pi / width * turns
    cosine, sine = np.cos(angle), np.sin(angle)
    made = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], 1)
    made[width:] = 0
    made = made[:, :parts] / (width if inverse else 1)
    return made.reshape(size * parts, bins * 2)
