"""How much noise a scheme adds to a node's own output, from scales and statistics alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aigcc.analysis.calibration.calibrate import Calibration
from aigcc.analysis.grids import Affine
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.passes.quant.placement import Scheme, Weight
from aigcc.passes.quant.region import RangeOf
from aigcc.passes.quant.terms import grid_of

_UNIFORM = 1 / 12  # variance of a rounding error, in steps squared
_FLOATS = {ir.DataType.BFLOAT16: 2.0**-8, ir.DataType.FLOAT16: 2.0**-11}
_FP8 = 2.0**-4
_HALF = 2  # a float's rounding error is at most half a unit of its last place


def relative_noise(
    node: ir.Node,
    weight: Weight,
    scheme: Scheme,
    calibration: Calibration | None,
    range_of: RangeOf,
) -> float:
    """Power of the noise relative to the signal, for weights, activation and output together.

    Rounding errors are taken as uniform and independent (Widrow and Kollar, 2008), so a scale of
    `s` adds `s * s / 12` to the mean square.
    """
    total = _weight_noise(weight, scheme)
    data = node.inputs[0]
    if scheme.activation is None or data is None:
        return total
    if scheme.activation in _FLOATS:
        return total + _float_noise(scheme.activation)
    total += _activation_noise(data, scheme, calibration, range_of, scheme.activation_terms)
    if scheme.kernels[node.op_type].output:
        total += _activation_noise(node.outputs[0], scheme, calibration, range_of, 1)
    return total


def _weight_noise(weight: Weight, scheme: Scheme) -> float:
    if scheme.weight in (*_FLOATS, ir.DataType.FLOAT8E4M3FN):
        return _float_noise(scheme.weight)
    grid, tensor = grid_of(weight, scheme), weight.tensor
    array = np.asarray(tensor.numpy(), np.float32)
    power = float(np.square(array).mean(dtype=np.float64))
    noise = float(np.square(grid.scale(array), dtype=np.float64).mean()) * _UNIFORM
    if isinstance(tensor, MappedTensor):
        tensor.release()
    bits = scheme.weight_bits or scheme.weight.bitwidth
    levels = 2.0 ** (bits * (scheme.weight_terms - 1))
    return noise / max(power, 1e-30) / levels**2


def _activation_noise(
    value: ir.Value,
    scheme: Scheme,
    calibration: Calibration | None,
    range_of: RangeOf,
    terms: int,
) -> float:
    assert scheme.activation is not None and value.name is not None
    if scheme.activation == ir.DataType.FLOAT8E4M3FN:
        return _float_noise(scheme.activation)
    if calibration is None or value.name not in calibration.tensors:
        return 4.0**-scheme.activation.bitwidth
    statistics = calibration.tensors[value.name]
    low, high = statistics.low, statistics.high
    if scheme.is_calibrated:
        low, high = range_of(value, scheme)
    step = Affine.over(low, high, scheme.activation, scheme.symmetric).scale
    levels = 2.0 ** (scheme.activation.bitwidth * (terms - 1))
    return step**2 * _UNIFORM / max(statistics.mean_square, 1e-30) / levels**2


def _float_noise(dtype: ir.DataType) -> float:
    return (_FLOATS.get(dtype, _FP8) / _HALF) ** 2 / 3
