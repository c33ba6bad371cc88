"""Converters of activations and of softmax, with ONNX Runtime's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.recording import Expr
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_PLAIN: dict[str, Any] = {
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
}
_MICROSOFT = ("com.microsoft",)


@converts(*_PLAIN)
def plain(node: Site, x: Expr) -> Expr:
    """An activation without attributes."""
    return _PLAIN[node.node.op_type](x)


@converts("LeakyRelu", attributes=("alpha",))
def leaky_relu(node: Site, x: Expr) -> Expr:
    """`x`, or `alpha * x` where it is negative."""
    return F.leaky_relu(x, node.attribute("alpha", 0.01))


@converts("PRelu")
def prelu(node: Site, x: Expr, slope: Expr) -> Expr:
    """`x`, or `slope * x` where it is negative; the slope broadcasts as in numpy.

    Before opset 7 the slope had one element for each channel.
    """
    if not node.is_float() and not node.dtype().is_signed():
        return x
    if node.opset < 7 and node.need_rank(1) == 1:
        slope = slope.reshape((-1, *[1] * (node.need_rank(0) - 2)))
    return torch.where(x < 0, x * slope, x)


@converts("Elu", attributes=("alpha",))
def elu(node: Site, x: Expr) -> Expr:
    """`x`, or `alpha * (exp(x) - 1)` where it is negative."""
    return F.elu(x, node.attribute("alpha", 1.0))


@converts("Celu", attributes=("alpha",))
def celu(node: Site, x: Expr) -> Expr:
    """`x`, or `alpha * (exp(x / alpha) - 1)` where it is negative."""
    return F.celu(x, node.attribute("alpha", 1.0))


@converts("Selu", attributes=("alpha", "gamma"))
def selu(node: Site, x: Expr) -> Expr:
    """`gamma * Elu(x)`."""
    alpha = node.attribute("alpha", 1.67326319217681884765625)
    return node.attribute("gamma", 1.05070102214813232421875) * F.elu(x, alpha)


@converts("HardSigmoid", attributes=("alpha", "beta"))
def hard_sigmoid(node: Site, x: Expr) -> Expr:
    """`alpha * x + beta`, within [0, 1]."""
    return (node.attribute("alpha", 0.2) * x + node.attribute("beta", 0.5)).clamp(0, 1)


@converts("ThresholdedRelu", attributes=("alpha",))
def thresholded_relu(node: Site, x: Expr) -> Expr:
    """`x` where it is above `alpha`, else 0."""
    return torch.where(x > node.attribute("alpha", 1.0), x, 0)


@converts("Shrink", attributes=("bias", "lambd"))
def shrink(node: Site, x: Expr) -> Expr:
    """`x` moved by `bias` towards 0, and 0 between -`lambd` and `lambd`."""
    limit, bias = node.attribute("lambd", 0.5), node.attribute("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0))


@converts("Swish", attributes=("alpha",))
def swish(node: Site, x: Expr) -> Expr:
    """`x * sigmoid(alpha * x)`."""
    alpha = node.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@converts("QuickGelu", domains=_MICROSOFT, attributes=("alpha",))
def quick_gelu(node: Site, x: Expr) -> Expr:
    """`x * sigmoid(alpha * x)`, near to Gelu for the default `alpha`."""
    return x * torch.sigmoid(node.attribute("alpha", 1.702) * x)


@converts("Gelu", domains=("", "com.microsoft"), attributes=("approximate",))
def gelu(node: Site, x: Expr) -> Expr:
    """`x` times the normal distribution's integral up to `x`, by erf or by tanh."""
    return F.gelu(x, approximate=node.text("approximate", "none"))


@converts("FastGelu", domains=_MICROSOFT)
def fast_gelu(node: Site, x: Expr, bias: Expr = None) -> Expr:
    """Gelu by tanh, of `x + bias`."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@converts("BiasGelu", domains=_MICROSOFT)
def bias_gelu(node: Site, x: Expr, bias: Expr) -> Expr:
    """Gelu of `x + bias`."""
    return F.gelu(x + bias)


@converts("Softmax", "LogSoftmax", "Hardmax", attributes=("axis",))
def softmax(node: Site, x: Expr) -> Expr:
    """Softmax along an axis; before opset 13, over all axes from `axis` on together."""
    function = _SOFTMAX[node.node.op_type]
    if node.opset >= 13:
        return function(x, node.attribute("axis", -1))
    axis = node.attribute("axis", 1)
    rank = node.rank()
    if rank is not None and axis % rank == rank - 1:
        return function(x, -1)
    return function(x.flatten(axis), -1).reshape(x.shape)


def _hardmax(x: Expr, axis: int) -> Expr:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


_SOFTMAX: dict[str, Any] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": _hardmax,
}
