"""What a target's table says about quantised kernels: schemes, their dtypes, and the operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import CompileError, did_you_mean
from aigcc.ir.weights import constant, derive
from aigcc.target import Target

Array = npt.NDArray[Any]

PORTABLE: Mapping[str, Any] = {
    "w8a8": {
        "weight": "int8",
        "activation": "int8",
        "ops": {"Conv": {}, "Gemm": {}, "MatMul": {}},
    },
    "w8": {"weight": "int8", "ops": {"Conv": {}, "Gather": {}, "Gemm": {}, "MatMul": {}}},
    "w4": {"weight": "int4", "block": 32, "ops": {"MatMul": {}}},
}
"""Used where there is no target: symmetric, per-channel weights, the standard's operators."""

NARROW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
"""Schemes whose weights are of these types compute in floats, between casts."""

_FLOATS = (ir.DataType.FLOAT, *NARROW)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a quantised kernel wants besides its scheme.

    Attributes:
        bias: The dtype of its bias: "int32", with the scale of the product, or "float".
        output: Whether it writes quantised numbers, so that its output has a grid, too.
        output_channels: Whether the DequantizeLinear behind it may have a grid for each channel.
        input_channels: Whether the QuantizeLinear before it may have a scale for each channel,
            and takes no longer with them.
    """

    bias: str = "float"
    output: bool = False
    output_channels: bool = False
    input_channels: bool = False


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way to quantise a node: a row of the table `[quantize]` of a target.

    Attributes:
        name: What recipes call it.
        weight: The dtype of weights.
        activation: The dtype of activations; None: they stay as they are.
        symmetric: Whether activations have their zero in the middle of the grid.
        dynamic: Whether the range of an activation is found when the model runs.
        weight_terms: In how many parts a weight is written, each on the grid of what the one
            before left over: two terms of 8 bits are as good as 16.
        activation_terms: The same for activations.
        block: How many numbers along the summed axis share a scale; None: one per output channel.
        cost: The time of a product as a factor of what it is unquantised: for devices that this
            machine is not, where nothing can be timed.
        kernels: The operators, and what their kernels want.
    """

    name: str
    weight: ir.DataType
    activation: ir.DataType | None
    symmetric: bool
    dynamic: bool
    weight_terms: int
    activation_terms: int
    block: int | None
    cost: float
    kernels: Mapping[str, Kernel]

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranges of activations have to be known beforehand."""
        return self.activation not in (None, *NARROW) and not self.dynamic

    @property
    def computes_in(self) -> str:
        """The dtype of the products: "int8", "bfloat16" and so on; "float" for narrow weights."""
        if self.activation is None:
            return "float"
        return {ir.DataType.UINT8: "int8"}.get(self.activation, self.activation.name.lower())

    @classmethod
    def read(cls, name: str, row: Mapping[str, Any]) -> Scheme:
        """A row of the table."""
        activation = row.get("activation")
        return cls(
            name,
            ir.DataType[row["weight"].upper()],
            None if activation is None else ir.DataType[activation.upper()],
            row.get("symmetric", True),
            row.get("dynamic", False),
            row.get("weight_terms", 1),
            row.get("activation_terms", 1),
            row.get("block"),
            row.get("cost", 1.0),
            {op: Kernel(**wanted) for op, wanted in row["ops"].items()},
        )


def schemes(target: Target | None) -> dict[str, Scheme]:
    """All schemes of a target, by name."""
    table = PORTABLE if target is None else target.can.facts.get("quantize", {})
    return {name: Scheme.read(name, row) for name, row in table.items()}


def find_scheme(name: str, target: Target | None) -> Scheme:
    """A scheme by its name.

    Raises:
        CompileError: the target's table has none of this name.
    """
    known = schemes(target)
    if name not in known:
        where = "without a target" if target is None else f"for {target.name}"
        raise CompileError(
            f"there is no scheme {name!r} {where}",
            hint=did_you_mean(name, known) or f"one of {', '.join(known) or 'none'}",
        )
    return known[name]


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where a node has its weight, and what the axes of it mean.

    Attributes:
        value: The weight.
        out_axis: The axis of output channels.
        in_axis: The axis of input channels, that blocks lie along.
        channel_axis: The axis of input channels of the activation.
        turned: Whether a Transpose stands between the constant and the node.
    """

    value: ir.Value
    out_axis: int
    in_axis: int
    channel_axis: int
    turned: bool = False

    def as_matrix(self, array: Array) -> Array:
        """A weight, or its scales in blocks, as [inputs, outputs]; a kernel's places are inputs."""
        if self.out_axis == 0:
            return array.reshape(len(array), -1).T
        return array

    def from_matrix(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """What `as_matrix` was made of."""
        return (matrix.T if self.out_axis == 0 else matrix).reshape(shape)

    def along_inputs(self, channels: Array) -> Array:
        """Numbers by input channel, in a shape that broadcasts against the weight."""
        rank = len(self.tensor.shape)
        return channels.reshape([-1 if axis == self.in_axis else 1 for axis in range(rank)])

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's numbers as the node reads them, still on disk."""
        tensor = constant(self.value)
        assert tensor is not None
        if not self.turned:
            return tensor
        shape = tuple(tensor.shape.numpy())[::-1]
        return derive(np.transpose, tensor, dtype=tensor.dtype, shape=shape, name=tensor.name or "")


def weight_of(node: ir.Node) -> Weight | None:
    """The constant that a Conv, Gemm or MatMul multiplies with; None for any other node."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    value, turned = _behind_transpose(node.inputs[1])
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype not in _FLOATS:
        return None
    rank = len(tensor.shape)
    if node.op_type == "Conv" and rank > 2 and not turned:
        groups = node.attributes.get("group")
        if groups is not None and groups.as_int() != 1:
            return None
        return Weight(value, 0, 1, 1)
    if node.op_type == "MatMul" and rank == 2:
        return Weight(value, 1, 0, -1, turned)
    if node.op_type == "Gemm" and rank == 2 and not _flag(node, "transA"):
        axes = (0, 1) if _flag(node, "transB") else (1, 0)
        return Weight(value, *axes, -1, turned)
    return None


def table_of(node: ir.Node) -> Weight | None:
    """The constant table that a Gather takes rows of; None for any other node."""
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
        return None
    axis, tensor = node.attributes.get("axis"), constant(node.inputs[0])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
        return None
    if axis is not None and axis.as_int() not in (0, -2):
        return None
    assert node.inputs[0] is not None
    return Weight(node.inputs[0], 0, 1, -1)


def _behind_transpose(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """A matrix that is turned when the model runs, as it is stored."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return value, False
    order = node.attributes.get("perm")
    stored = constant(node.inputs[0])
    if stored is None or len(stored.shape) != 2 or (order and list(order.as_ints()) != [1, 0]):
        return value, False
    return node.inputs[0], True


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.as_int() != 0
