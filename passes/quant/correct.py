"""Bias correction: what rounding weights adds to the mean of outputs is taken off a bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.calibration.statistics import Channels
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import constant
from aigcc.passes.quant.fold import replace_constant
from aigcc.passes.quant.placement import NARROW, Scheme
from aigcc.passes.quant.quantise import Place
from aigcc.passes.quant.terms import Term, release
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Builder

Array = npt.NDArray[Any]


def correct_biases(
    module: Module,
    places: Iterable[Place],
    term_of: Callable[[Place], Term],
    channels: Mapping[str, Channels],
    split: Callable[[ir.Node, Scheme], Array | None],
    ctx: Context,
) -> None:
    """Make the mean of each output channel what it was (Nagel et al., 2019).

    A weight that is off by `e` moves the mean output by `e` times the mean input. It is subtracted
    from the bias of a convolution or Gemm, which gets one if it has none, or from the constant that
    is added behind a MatMul. At the borders of a padded convolution the mean is another; that is
    neglected, as in the paper.

    Args:
        module: Changed in place.
        places: The nodes that will be quantised.
        term_of: The weight that each will have.
        channels: By name of an activation, what calibration has seen of each channel.
        split: The input channels of a node that stay float, and add no error.
        ctx: Asked before each change.
    """
    names = Names(module)
    for place in places:
        node, data = place.node, place.node.inputs[0]
        name = "" if data is None else data.name or ""
        is_float = place.scheme.weight in NARROW or place.scheme.weight_terms > 1
        if node.op_type == "Gather" or is_float or name not in channels:
            continue
        slot = _slot(node)
        if slot is None:
            ctx.decline(node, "its bias is not corrected: no constant is added to its output")
            continue
        if not ctx.rewrite(node, "its bias makes up for rounded weights", by="bias"):
            return
        mean, without = channels[name].mean, split(node, place.scheme)
        if without is not None:
            mean[without] = 0
        shift = _shift(place, term_of(place), mean) * _coverage(node)
        builder = Builder(module.graph, names, "", ctx.maker, module.opset)
        _add(*slot, shift, place.weight.tensor.dtype, builder)


def _shift(place: Place, term: Term, mean: Array) -> Array:
    """The mean error of each output channel, float64, [outputs]."""
    weight = place.weight
    exact = np.asarray(weight.tensor.numpy(), np.float32)
    left = weight.as_matrix(term.grid.back(term.numbers.numpy(), term.scale) - exact)
    release(weight.tensor)
    release(term.numbers)
    means = np.repeat(mean, len(left) * weight.groups // len(mean)).reshape(weight.groups, -1)
    by_group = left.reshape(len(left), weight.groups, -1)
    return np.asarray(np.einsum("gi,igo->go", means, by_group).reshape(-1))


def _coverage(node: ir.Node) -> float:
    """The share of a kernel's places that an output sees: of a transposed convolution not all."""
    if node.op_type != "ConvTranspose":
        return 1.0
    assert node.inputs[0] is not None
    seen, made = node.inputs[0].shape, node.outputs[0].shape
    sizes = [] if seen is None or made is None else [*seen[2:], *made[2:]]
    known = [size for size in sizes if isinstance(size, int)]
    if not sizes or len(known) < len(sizes):
        return 1 / math.prod(node.attributes.get_ints("strides", (1,)))
    half = len(known) // 2
    return math.prod(known[:half]) / math.prod(known[half:])


def _slot(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and the position of the constant that can take a correction; it may be absent."""
    if node.op_type == "MatMul":
        output = node.outputs[0]
        users = list(output.uses())
        if len(users) != 1 or output.is_graph_output():
            return None
        user, position = users[0]
        other = 1 - position
        is_add = user.op_type == "Add" and user.domain in ("", "ai.onnx")
        return (user, other) if is_add and constant(user.inputs[other]) is not None else None
    scaled = [node.attributes.get(name) for name in ("alpha", "beta")]
    if any(attribute is not None and attribute.as_float() != 1 for attribute in scaled):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return (node, 2) if bias is None or constant(bias) is not None else None


def _add(node: ir.Node, position: int, shift: Array, dtype: ir.DataType, builder: Builder) -> None:
    old = node.inputs[position] if position < len(node.inputs) else None
    if old is None:
        builder.stem = node.name or node.op_type
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, builder.constant((-shift).astype(dtype.numpy()), "bias"))
        return
    tensor = constant(old)
    assert tensor is not None
    corrected = (tensor.numpy().astype(np.float64) - shift).astype(dtype.numpy())
    replace_constant(node, position, ir.tensor(corrected), builder)
