"""Linear layers seen alike: convolutions, Gemm and MatMul take input to output channels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant
from aigcc.passes.conditions import (
    FLOATS,
    Array,
    computed,
    keeping,
    rank,
    size,
    spreads_along,
    tensor_of,
    unshared,
    vector,
)
from aigcc.passes.magnitudes import are_ordinary, largest, smallest
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node that multiplies by a weight.

    Attributes:
        node: The Conv, ConvTranspose, Gemm or MatMul.
        x: What it is applied to.
        weight: What it multiplies by.
        bias: What it adds, if anything.
        inputs: How many input channels it has.
        outputs: How many output channels it has.
        groups: Groups of a convolution; 1 for others.
        dims: The rank of its output.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    inputs: int
    outputs: int
    groups: int
    dims: int

    @classmethod
    def of(cls, node: ir.Node) -> Layer | None:
        """The layer that a node is, or None where its sizes are not known."""
        x, weight, bias = (*node.inputs, None)[:3]
        if x is None or weight is None or weight.shape is None or len(weight.shape) < 2:
            return None
        a, b = weight.shape[0], weight.shape[1]
        if not isinstance(a, int) or not isinstance(b, int):
            return None
        groups, dims = node.attributes.get_int("group", 1), len(weight.shape)
        if node.op_type == "Conv":
            return cls(node, x, weight, bias, b * groups, a, groups, dims)
        if node.op_type == "ConvTranspose":
            return cls(node, x, weight, bias, a, b * groups, groups, dims)
        if dims != 2 or node.attributes.get_int("transA", 0) == 1 or x.shape is None:
            return None
        if node.attributes.get_int("transB", 0):
            a, b = b, a
        return cls(node, x, weight, bias, a, b, 1, len(x.shape))

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return self.node.op_type in ("Conv", "ConvTranspose")

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, in the input and in the output."""
        return 1 if self.is_conv else self.dims - 1

    @property
    def is_unpadded(self) -> bool:
        """Whether every output sees as many inputs as the weight has taps."""
        if self.node.op_type != "Conv":
            return not self.is_conv
        pads = self.node.attributes.get_ints("pads", ())
        return self.node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and (
            not any(pads)
        )

    @property
    def is_plain(self) -> bool:
        """Whether weight and bias count once each, as they do unless a Gemm says otherwise."""
        return all(self.node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))

    def takes(self, x: ir.Value) -> bool:
        """Whether `x` has the rank and the channels of an input."""
        return rank(x) == self.dims and size(x, self.channel_axis) == self.inputs

    def scales_outputs(self, value: ir.Value) -> bool:
        """Whether `value` has one number for each output channel, or one for all."""
        return spreads_along(value, self.channel_axis, self.dims, self.outputs)

    def scales_inputs(self, value: ir.Value) -> bool:
        """Whether `value` has one number for each input channel, or one for all."""
        return spreads_along(value, self.channel_axis, self.dims, self.inputs)

    def unfold(self, weight: Array) -> Array:
        """A weight as [groups, outputs of a group, inputs of a group, taps]."""
        if self.node.op_type == "Conv":
            return weight.reshape(self.groups, -1, weight.shape[1], _taps(weight))
        if self.node.op_type == "ConvTranspose":
            split = weight.reshape(self.groups, -1, weight.shape[1], _taps(weight))
            return split.swapaxes(1, 2)
        rows = weight if self.node.attributes.get_int("transB", 0) else weight.T
        return rows[None, :, :, None]

    def fold(self, unfolded: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `unfold`, for a weight of the given shape."""
        if self.node.op_type == "ConvTranspose":
            return unfolded.swapaxes(1, 2).reshape(shape)
        if self.is_conv or self.node.attributes.get_int("transB", 0) == 1:
            return unfolded.reshape(shape)
        return unfolded[0, :, :, 0].T

    def scaled_outputs(self, op: Builder, factors: Array) -> ir.Value:
        """A new weight that gives each output channel times its factor.

        Raises:
            NoMatch: the weight is not a constant, is shared, or would leave the range of its type.
        """
        return self._scaled(op, factors.reshape(self.groups, -1, 1, 1))

    def scaled_inputs(self, op: Builder, factors: Array) -> ir.Value:
        """A new weight that takes each input channel times its factor.

        Raises:
            NoMatch: the weight is not a constant, is shared, or would leave the range of its type.
        """
        return self._scaled(op, factors.reshape(self.groups, 1, -1, 1))

    def _scaled(self, op: Builder, factors: Array) -> ir.Value:
        tensor = unshared(self.weight, "the weight")
        shape = tuple(tensor.shape.numpy())
        self._check_scaled(tensor, factors)

        def scale(weight: Array) -> Array:
            return self.fold(self.unfold(weight) * factors.astype(weight.dtype), shape)

        return computed(op, scale, tensor, like=tensor, shape=shape, name="weight")

    def _check_scaled(self, tensor: ir.TensorProtocol, factors: Array) -> None:
        if not np.isfinite(factors).all():
            raise NoMatch("a factor is not finite")
        if not are_ordinary(factors, tensor.dtype):
            raise NoMatch("a factor is too far from 1 to be multiplied with anything else")
        axes = tuple(axis for axis in range(4) if factors.shape[axis] == 1 and axis)
        sizes = self._sizes(tensor, axes)
        if float(sizes.max(initial=0.0)) > math.sqrt(largest(tensor.dtype)):
            raise NoMatch("the weight is so large that its products may overflow before a scale")
        most = float((sizes * np.abs(factors)).max(initial=0.0))
        if most > largest(tensor.dtype):
            raise NoMatch(f"the weight would overflow {tensor.dtype.name.lower()}")
        if 0 < most < 4 * smallest(tensor.dtype):
            raise NoMatch(f"the weight would be too small for {tensor.dtype.name.lower()}")

    def _sizes(self, tensor: ir.TensorProtocol, axes: tuple[int, ...]) -> Array:
        """The largest size of a weight's elements along some axes of the unfolded form."""
        view = self.unfold(tensor.numpy())
        high, low = (f(view, axis=axes, keepdims=True, initial=0) for f in (np.max, np.min))
        if isinstance(tensor, MappedTensor):
            tensor.release()
        sizes: Array = np.maximum(high.astype(np.float64), -low.astype(np.float64))
        return sizes

    @property
    def dtype(self) -> ir.DataType:
        """The type of the weight.

        Raises:
            NoMatch: it is not one of floats.
        """
        if self.weight.dtype not in FLOATS:
            raise NoMatch("the type of the weight is not known")
        return self.weight.dtype

    def reach(self) -> float:
        """How large products are for inputs of about 1, which computed weights are taken for."""
        tensor = constant(self.weight)
        if tensor is None:
            return 1.0
        view = self.unfold(tensor.numpy())
        sums = np.abs(view.astype(np.float32)).sum(axis=(2, 3), dtype=np.float64)
        if isinstance(tensor, MappedTensor):
            tensor.release()
        return float(sums.max(initial=0.0))

    def shifted(self, op: Builder, shift: Array) -> ir.Value:
        """A new bias that makes up for a shift of each input channel, where `is_unpadded`.

        Raises:
            NoMatch: the weight or the bias is not a constant.
        """
        tensor = tensor_of(self.weight, "the weight")
        sources = [tensor] if self.bias is None else [tensor, tensor_of(self.bias, "the bias")]

        def add(weight: Array, *bias: Array) -> Array:
            view = self.unfold(weight)
            taps: Array = np.einsum("goit,gi->go", view, shift.reshape(self.groups, -1))
            return np.add(taps.reshape(-1), vector(bias[0], self.outputs) if bias else 0.0)

        return computed(op, add, *sources, like=tensor, shape=(self.outputs,), name="bias")

    def rebuilt(
        self,
        op: Builder,
        like: ir.Value,
        *,
        x: ir.Value | None = None,
        weight: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        """The layer with other inputs where given, and the type and shape of `like`."""
        bias = self.bias if bias is None else bias
        inputs = [x or self.x, weight or self.weight, *([] if bias is None else [bias])]
        made: ir.Value = op.node(self.node.op_type, inputs, {**keeping(self.node), "_like": like})
        return made


def _taps(weight: Array) -> int:
    return math.prod(weight.shape[2:])
