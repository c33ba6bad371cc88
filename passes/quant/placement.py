"""What a target's table says about quantised kernels: schemes, their dtypes, and the operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
        "ops": {"Conv": {}, "ConvTranspose": {}, "Gemm": {}, "MatMul": {}},
    },
    "w8": {
        "weight": "int8",
        "ops": {"Conv": {}, "ConvTranspose": {}, "Gather": {}, "Gemm": {}, "MatMul": {}},
    },
    "w4": {
        "weight": "int4",
        "block": 32,
        "ops": {"Conv": {}, "ConvTranspose": {}, "MatMul": {}},
    },
}
"""Used where there is no target: symmetric, per-channel weights, the standard's operators."""

NARROW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
"""Schemes whose weights are of these types compute in floats, between casts."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
"""Operators whose channels lie along axis 1, and whose weights have places of a kernel."""

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
        zero_point: Whether activations may have a zero point other than 0. Without, those that
            are nowhere negative keep the scheme's dtype, and others become signed and symmetric.
        weight_zero: Whether the DequantizeLinear of its weight names a zero point, though it is 0.
        group_inputs: How many input channels a group of a convolution has at least: with fewer
            the kernel takes longer than the one for floats.
        folded: Whether the runtime computes DequantizeLinear of a weight in every run, but a Cast
            and a Mul once, when it loads the program.
        merges: Operators behind it that the runtime merges with Q/DQ around them, and that take
            no grid for each channel then.
    """

    bias: str = "float"
    output: bool = False
    output_channels: bool = False
    input_channels: bool = False
    zero_point: bool = True
    weight_zero: bool = False
    group_inputs: int = 1
    folded: bool = False
    merges: Sequence[str] = ()


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
        even: Whether blocks have to be equally long.
        cost: The time of a product as a factor of what it is unquantised: for devices that this
            machine is not, where nothing can be timed.
        weight_bits: How many bits of the weight's dtype are made use of; None: all of them.
        instead_of: The scheme that it stands in for on machines whose kernels get that one wrong;
            nobody wants it on others.
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
    even: bool
    cost: float
    weight_bits: int | None
    instead_of: str
    kernels: Mapping[str, Kernel]

    @property
    def grid_dtype(self) -> ir.DataType:
        """The signed dtype that weights are rounded to; unsigned ones are written 128 higher."""
        return ir.DataType.INT8 if self.weight == ir.DataType.UINT8 else self.weight

    @property
    def weight_zero(self) -> int:
        """The number that stands for 0 in a weight."""
        return 128 if self.weight == ir.DataType.UINT8 else 0

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

    def bytes_of(self, elements: int) -> float:
        """Bytes of a weight of so many elements, with the scales of its blocks."""
        scales = 4 / self.block if self.block else 0.0
        return elements * (self.weight.bitwidth / 8 * self.weight_terms + scales)

    @property
    def opset(self) -> int:
        """The version of the default operator set from which its nodes are legal."""
        if self.block is not None or self.weight.bitwidth < 8:
            return 21
        return 19 if ir.DataType.FLOAT8E4M3FN in (self.weight, self.activation) else 13

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
            row.get("even", False),
            row.get("cost", 1.0),
            row.get("weight_bits"),
            row.get("instead_of", ""),
            {op: Kernel(**wanted) for op, wanted in row["ops"].items()},
        )


def schemes(target: Target | None) -> dict[str, Scheme]:
    """All schemes of a target, by name."""
    table = PORTABLE if target is None else target.can.facts.get("quantize", {})
    return {name: Scheme.read(name, row) for name, row in table.items()}


def find_scheme(name: str, target: Target | None) -> Scheme:
    """A scheme by its name.

    Raises:
        CompileError: the target's table has none of this name, or its options rule it out.
    """
    known = schemes(target)
    if name not in known:
        where = "without a target" if target is None else f"for {target.name}"
        closed = {} if target is None else target.can.facts.get("closed", {})
        hint = closed.get(name) or did_you_mean(name, known)
        raise CompileError(f"there is no scheme {name!r} {where}", hint=hint)
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
        groups: Into how many groups of channels a convolution falls.
    """

    value: ir.Value
    out_axis: int
    in_axis: int
    channel_axis: int
    turned: bool = False
    groups: int = 1

    def as_matrix(self, array: Array) -> Array:
        """A weight, or its scales in blocks, as [inputs, outputs].

        Of a convolution an input is a place of the kernel in a channel: places of one channel are
        neighbours. In groups each output has inputs of its own.
        """
        moved = np.moveaxis(array, self.out_axis, 0)
        return moved.reshape(len(moved), -1).T

    def from_matrix(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """What `as_matrix` was made of."""
        inputs = [size for axis, size in enumerate(shape) if axis != self.out_axis]
        moved = matrix.T.reshape(shape[self.out_axis], *inputs)
        return np.moveaxis(moved, 0, self.out_axis)

    def along_inputs(self, channels: Array) -> Array:
        """Numbers by input channel, in a shape that broadcasts against the weight."""
        shape = self.tensor.shape.numpy()
        if self.groups == 1:
            return channels.reshape(
                [-1 if axis == self.in_axis else 1 for axis in range(len(shape))]
            )
        rows = np.repeat(channels.reshape(self.groups, -1), shape[0] // self.groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))

    def reach(self, array: Array) -> Array:
        """The largest magnitude between each output and each input channel, [outputs, inputs].

        Where groups keep them apart it is 0.
        """
        moved = np.moveaxis(array, (self.out_axis, self.in_axis), (0, 1))
        flat = moved.reshape(*moved.shape[:2], -1)
        found: Array = np.maximum(flat.max(axis=2), -flat.min(axis=2)).astype(np.float32)
        if self.groups == 1:
            return found
        outputs, inputs = found.shape
        group = np.arange(outputs) * self.groups // outputs
        whole = np.zeros((self.groups, outputs, inputs), np.float32)
        whole[group, np.arange(outputs)] = found
        return whole.swapaxes(0, 1).reshape(outputs, -1)

    @property
    def is_by_rows(self) -> bool:
        """Whether a matrix has its output channels along axis 0, as it is stored."""
        return self.turned or self.out_axis == 0

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
    """The constant that a convolution, Gemm or MatMul multiplies with; None for any other node.

    And None where no kernel has a form for it: `refusals` says why.
    """
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    value, turned = _behind_transpose(node.inputs[1])
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype not in _FLOATS:
        return None
    rank = len(tensor.shape)
    if node.op_type in CONVOLUTIONS and rank > 2 and not turned:
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "Conv":
            return Weight(value, 0, 1, 1, groups=groups)
        return Weight(value, 1, 0, 1) if groups == 1 else None
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
