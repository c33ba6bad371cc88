"""GPTQ: weights rounded one input channel after the other, each making up for those before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.grids import Grid

Array = npt.NDArray[Any]

_COLUMNS = 128  # input channels whose updates are gathered before the rest sees them
_WORST_DAMPING = 1.0


class Gptq:
    """Rounds weights that meet the same activation so that their products have the least error.

    Frantar et al., 2022: the error that rounding one input channel makes is spread over those that
    are still to be rounded, as the inverse of the Hessian `x^T x` says, through its Cholesky
    factor. Input channels that are always 0 are rounded to the nearest number.

    Args:
        moment: Sum or mean of `x^T x` over calibration, float64, [inputs, inputs].
        act_order: Round the inputs with the largest moments first, while many are left.
        damping: What is added to the diagonal, as a share of its mean.
    """

    def __init__(self, moment: Array, *, act_order: bool = True, damping: float = 0.01) -> None:
        energy = np.diagonal(moment)
        self._order = np.flatnonzero(energy > 0)
        if act_order:
            self._order = self._order[np.argsort(-energy[self._order], kind="stable")]
        self._factor = _factor(moment[np.ix_(self._order, self._order)], damping)

    def round(self, weight: Array, scale: Array, rows: Array, grid: Grid) -> Array:
        """Whole numbers (or those of float8) as float32, [inputs, outputs].

        Args:
            weight: Float32, [inputs, outputs].
            scale: Float32, [groups, outputs].
            rows: The group of each input, [inputs].
            grid: What the numbers are of.
        """
        made = grid.nearest(weight / scale[rows])
        order, factor = self._order, self._factor
        if factor is None:
            return made
        left, rows = weight[order].astype(np.float32), rows[order]
        for start in range(0, len(order), _COLUMNS):
            end = min(start + _COLUMNS, len(order))
            errors = np.empty((end - start, weight.shape[1]), np.float32)
            for at in range(start, end):
                step = scale[rows[at]]
                numbers = grid.nearest(left[at] / step)
                made[order[at]] = numbers
                error = (left[at] - numbers * step) / factor[at, at]
                errors[at - start] = error
                left[at + 1 : end] -= np.outer(factor[at, at + 1 : end], error)
            left[end:] -= factor[start:end, end:].T @ errors
        return made


def output_error(difference: Array, moment: Array) -> Array:
    """The summed squared error of each output, float64, [outputs].

    Args:
        difference: Of two weights, [inputs, outputs].
        moment: As of `Gptq`.
    """
    wide = difference.astype(np.float32, copy=False)
    product = moment.astype(np.float32) @ wide
    return np.asarray(np.maximum(np.einsum("kn,kn->n", wide, product, dtype=np.float64), 0.0))


def _factor(moment: Array, damping: float) -> Array | None:
    """The upper Cholesky factor of the damped inverse, float32; None if nothing makes it exist.

    With `H` turned by 180 degrees, `H = R R^T` for an upper `R`, so that the inverse is
    `(R^-1)^T (R^-1)`: one factorisation and one triangular inverse.
    """
    from scipy.linalg import lapack  # a third of a second, which no other command has to wait

    if not len(moment):
        return np.empty((0, 0), np.float32)
    mean = float(np.diagonal(moment).mean())
    while damping <= _WORST_DAMPING:
        turned = np.array(moment[::-1, ::-1], np.float64, order="F")
        turned[np.diag_indices_from(turned)] += damping * mean
        lower, info = lapack.dpotrf(turned, lower=1, clean=1, overwrite_a=1)
        if not info:
            inverse, info = lapack.dtrtri(lower, lower=1, overwrite_c=1)
        if not info:
            return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)
        damping *= 10
    return None
