"""Converters of normalisations: ONNX's, and ONNX Runtime's that add a residual first."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.recording import Expr
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_MICROSOFT = ("com.microsoft",)
_IN_FLOATS = {"stash_type": 1}


@converts("BatchNormalization", attributes=("epsilon", "is_test", "momentum", "training_mode"))
def batch_norm(node: Site, x: Expr, scale: Expr, bias: Expr, mean: Expr, var: Expr) -> Expr:
    """Normalisation by the statistics of the training data."""
    is_old = node.opset < 7  # when it trained unless it was told to test
    others = node.node.outputs[1:]
    trains = any(value.uses() or value.is_graph_output() for value in others)
    if trains or node.flag("training_mode") or (is_old and not node.flag("is_test")):
        node.refuse("it is in training mode", "export the model in evaluation mode")
    epsilon = node.attribute("epsilon", 1e-5)
    if not node.is_trained(3) and not node.is_trained(4):
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    # A constant that is also a weight elsewhere: torch's own has no gradient for statistics.
    after = (-1, *[1] * (node.need_rank() - 2))
    factor = scale * (var + epsilon).rsqrt()
    return x * factor.reshape(after) + (bias - mean * factor).reshape(after)


@converts("InstanceNormalization", attributes=("epsilon",))
def instance_norm(node: Site, x: Expr, scale: Expr, bias: Expr) -> Expr:
    """Each channel of each example to mean 0 and variance 1."""
    epsilon = node.attribute("epsilon", 1e-5)
    # torch.nn.functional's takes no channel of a single element.
    return torch.instance_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)


@converts("GroupNormalization", attributes=("epsilon", "num_groups"), neutral=_IN_FLOATS)
def group_norm(node: Site, x: Expr, scale: Expr, bias: Expr) -> Expr:
    """Each group of channels of each example to mean 0 and variance 1."""
    groups, epsilon = node.attribute("num_groups"), node.attribute("epsilon", 1e-5)
    if node.opset >= 21:
        return F.group_norm(x, groups, scale, bias, epsilon)
    size = x.size(1) // groups  # before opset 21, scale and bias have an element for each group
    return F.group_norm(
        x, groups, scale.repeat_interleave(size), bias.repeat_interleave(size), epsilon
    )


@converts(
    "LayerNormalization",
    domains=("", "com.microsoft"),
    attributes=("axis", "epsilon"),
    neutral=_IN_FLOATS,
)
def layer_norm(node: Site, x: Expr, scale: Expr, bias: Expr = None) -> Expr:
    """The axes from `axis` on to mean 0 and variance 1, then a scale and a bias."""
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)
    if len(node.node.outputs) > 1:
        y, mean, inverse = _moments(node, x, axis, epsilon)
        return (y * scale if bias is None else y * scale + bias), mean, inverse
    shape = _whole_shape(node, axis, 1)
    if shape is not None and (bias is None or _whole_shape(node, axis, 2) is not None):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    y = F.layer_norm(x, x.shape[axis:], None, None, epsilon) * scale
    return y if bias is None else y + bias


def _whole_shape(node: Site, axis: int, index: int) -> tuple[int, ...] | None:
    """The static shape of a scale, if it is just what is normalised and nothing is repeated."""
    dims, full = node.dims(index), node.dims(0)
    if dims is None or full is None or dims != full[axis:]:
        return None
    known = tuple(dim for dim in dims if dim is not None)
    return known if len(known) == len(dims) else None


def _moments(node: Site, x: Expr, axis: int, epsilon: float) -> tuple[Expr, Expr, Expr]:
    axes = tuple(range(node.axis(axis), node.need_rank()))
    wide = x.to(torch.float32)
    mean = wide.mean(axes, True)
    inverse = ((wide - mean).square().mean(axes, True) + epsilon).rsqrt()
    return ((wide - mean) * inverse).to(node.torch_dtype()), mean, inverse


@converts(
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    domains=("", "com.microsoft"),
    attributes=("axis", "epsilon"),
    neutral=_IN_FLOATS,
)
def rms_norm(node: Site, x: Expr, scale: Expr) -> Expr:
    """The axes from `axis` on to a mean square of 1, then a scale."""
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)
    if len(node.node.outputs) > 1:
        axes = tuple(range(node.axis(axis), node.need_rank()))
        inverse = (x.to(torch.float32).square().mean(axes, True) + epsilon).rsqrt()
        return (x * inverse).to(node.torch_dtype()) * scale, inverse
    shape = _whole_shape(node, axis, 1)
    if shape is not None:
        return F.rms_norm(x, shape, scale, epsilon)
    return F.rms_norm(x, x.shape[axis:], None, epsilon) * scale


@converts("SkipLayerNormalization", domains=_MICROSOFT, attributes=("epsilon",))
def skip_layer_norm(
    node: Site, x: Expr, skip: Expr, scale: Expr, bias: Expr = None, before: Expr = None
) -> Expr:
    """LayerNormalization of `x + skip + before`; also gives that sum."""
    total, epsilon = _total(x, skip, before), node.attribute("epsilon", 1e-12)
    return F.layer_norm(total, total.shape[-1:], scale, bias, epsilon), None, None, total


@converts("SkipSimplifiedLayerNormalization", domains=_MICROSOFT, attributes=("epsilon",))
def skip_rms_norm(node: Site, x: Expr, skip: Expr, scale: Expr, before: Expr = None) -> Expr:
    """RMSNormalization of `x + skip + before`; also gives that sum."""
    total, epsilon = _total(x, skip, before), node.attribute("epsilon", 1e-5)
    return F.rms_norm(total, total.shape[-1:], scale, epsilon), None, None, total


def _total(x: Expr, skip: Expr, before: Expr) -> Expr:
    return x + skip if before is None else x + skip + before


@converts("LpNormalization", attributes=("axis", "p"))
def lp_norm(node: Site, x: Expr) -> Expr:
    """Divided by the p-norm along an axis."""
    norm = torch.linalg.vector_norm(x, node.attribute("p", 2), node.attribute("axis", -1), True)
    return torch.where(norm == 0, 0, x / norm)


@converts("MeanVarianceNormalization", attributes=("axes",))
def mean_variance_norm(node: Site, x: Expr) -> Expr:
    """To mean 0 and variance 1 over some axes."""
    axes = tuple(node.attribute("axes", (0, 2, 3)))
    centred = x - x.mean(axes, True)
    return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)


@converts("LRN", attributes=("alpha", "beta", "bias", "size"))
def local_response_norm(node: Site, x: Expr) -> Expr:
    """Divided by the squares of neighbouring channels."""
    size, bias = node.attribute("size"), node.attribute("bias", 1.0)
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    # torch looks at size // 2 channels before, ONNX at (size - 1) // 2.
    squares = x.square().reshape(x.size(0), 1, x.size(1), -1)
    around = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    mean = F.avg_pool2d(around, (size, 1), stride=1).reshape(x.shape)
    return x / (mean * alpha + bias).pow(beta)
