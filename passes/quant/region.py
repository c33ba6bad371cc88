"""The nodes that quantise one node: Q/DQ around its input, its weight, its bias and its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.calibration.statistics import Channels
from aigcc.analysis.equalise import channel_grids
from aigcc.analysis.grids import Affine, Clip, Grid, limits
from aigcc.exact import as_unsigned
from aigcc.ir.module import GraphLike
from aigcc.ir.names import Names
from aigcc.ir.weights import constant, derive
from aigcc.passes.quant.placement import NARROW, Kernel, Scheme, Weight
from aigcc.passes.quant.tables import gathered
from aigcc.passes.quant.terms import Key, Term, is_above, key_of, make_terms
from aigcc.pipeline.rules import Builder

Array = npt.NDArray[Any]
RangeOf = Callable[[ir.Value, Scheme], tuple[float, float]]

MIGRATED = "aigcc.migrated"
"""Marks the Mul that divides an activation by the scales of its channels."""

_LARGEST_BIAS = 1 << 30
_LARGEST_HALF = 65504 * (1 - 2**-7)  # a step of 8 bits below what float16 ends with
_SIGNED = {ir.DataType.UINT8: ir.DataType.INT8}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is known besides ranges, and makes numbers better without making kernels slower.

    Attributes:
        channels: By name of an activation, what calibration has seen of each channel.
        outliers: By name of an activation, the channels that stay float.
        rounded: By weight, the term that it becomes if it is not to be rounded to the nearest.
        merged: Names of outputs that have one grid for the whole tensor.
    """

    channels: Mapping[str, Channels] = dataclasses.field(default_factory=dict)
    outliers: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    rounded: Mapping[Key, Term] = dataclasses.field(default_factory=dict)
    merged: frozenset[str] = frozenset()

    def split(self, node: ir.Node, scheme: Scheme) -> Array | None:
        """The channels of a node's activation that stay float; None without any."""
        if node.op_type not in ("MatMul", "Gemm") or scheme.activation in (None, *NARROW):
            return None
        if scheme.activation_terms > 1 or node.inputs[0] is None:
            return None
        return self.outliers.get(node.inputs[0].name or "")


PLAIN = Tuning()
"""Nothing is known besides ranges."""


@dataclasses.dataclass
class Region:
    """What stands for one node.

    Attributes:
        result: The value in the place of the node's output.
        shared: New nodes that other regions use as well: they come first.
        made: New nodes of this region alone.
    """

    result: ir.Value
    shared: list[ir.Node]
    made: list[ir.Node]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One term of an activation: what a product reads, and the scale of its numbers."""

    value: ir.Value
    scale: Array


@dataclasses.dataclass(frozen=True)
class _Output:
    """The grids of a kernel's output: by channel, and what the kernel itself writes."""

    scale: Array
    zero: Array
    middle: int

    @property
    def offset(self) -> Array:
        """What a bias must hold besides, so that each channel gets its zero point."""
        return (self.zero.astype(np.float32) - self.middle) * self.scale


@dataclasses.dataclass
class Regions:
    """Makes the regions of one graph, which share the grids of activations and weights.

    Attributes:
        graph: Where constants are registered.
        names: Names that are free.
        maker: What new nodes are stamped with.
        opset: Of the default domain.
        range_of: The calibrated range of an activation, for a scheme that is not dynamic.
        clip: How the scales of weights are chosen.
        tuning: What else is known.
    """

    graph: GraphLike
    names: Names
    maker: str
    opset: int
    range_of: RangeOf
    clip: Clip = "max"
    tuning: Tuning = PLAIN
    _activations: dict[tuple[ir.Value, str, Affine], list[_Part]] = dataclasses.field(
        default_factory=dict
    )
    _terms: dict[Key, list[Term]] = dataclasses.field(default_factory=dict)
    _shared: dict[tuple[Any, ...], ir.Value] = dataclasses.field(default_factory=dict)

    def make(self, node: ir.Node, weight: Weight, scheme: Scheme) -> Region:
        """The nodes that compute `node` with a scheme; nothing is inserted or replaced yet.

        Raises:
            CompileError: the weight holds NaN or infinity.
        """
        shared = self._builder(node.inputs[0])
        own = self._builder(node.outputs[0])
        if node.op_type == "Gather":
            term = self._weight(weight, scheme)[0]
            result = gathered(own, node, self._numbers(shared, weight, term, scheme), term)
        elif scheme.weight in NARROW:
            result = self._narrow(own, node, weight, scheme.weight)
        elif scheme.dynamic:
            result = self._dynamic(shared, own, node, weight, scheme)
        else:
            result = self._static(shared, own, node, weight, scheme)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        return Region(result, shared.made, own.made)

    def _builder(self, near: ir.Value | None) -> Builder:
        stem = near.name if near is not None and near.name else "quantised"
        return Builder(self.graph, self.names, stem, self.maker, self.opset)

    def _static(
        self,
        shared: Builder,
        own: Builder,
        node: ir.Node,
        weight: Weight,
        scheme: Scheme,
    ) -> ir.Value:
        kernel, data = scheme.kernels[node.op_type], node.inputs[0]
        assert data is not None
        without = self.tuning.split(node, scheme)
        output = self._output(node, scheme)
        terms = self._weight(weight, scheme, self.floor(node, scheme), without)
        weights = [self._back(shared, own, weight, scheme, kernel, term, output) for term in terms]
        values, step = [data], None
        if scheme.activation is not None:
            activations = self._activation(shared, data, node, scheme)
            values, step = [part.value for part in activations], activations[0].scale
        total: ir.Value | None = None
        for i, x in enumerate(values):
            for j, w in enumerate(weights):
                if i + j >= max(len(values), len(weights)):
                    continue  # a remainder times a remainder is nothing
                rest = list(node.inputs[2:]) if total is None else []
                if total is None:
                    is_whole = kernel.bias == "int32" and scheme.block is None
                    unit = terms[0].scale * step if is_whole and step is not None else None
                    rest = _bias(own, rest, unit, output, weight.tensor.dtype.numpy())
                product = own.node(node.op_type, [x, w, *rest], _attributes(node))
                total = product if total is None else own.Add(total, product)
        assert total is not None
        if without is not None:
            total = self._add_outliers(shared, own, total, node, weight, without)
        if output is not None:
            assert scheme.activation is not None
            one = np.asarray(1, total.dtype.numpy() if total.dtype else np.float32)
            middle = np.asarray(output.middle, scheme.activation.numpy())
            numbers = own.QuantizeLinear(total, one, middle)
            total = own.DequantizeLinear(
                numbers, output.scale.astype(one.dtype), output.zero, axis=1
            )
        elif kernel.output and scheme.activation is not None:
            total = _through(own, total, self._grid(node.outputs[0], scheme, kernel)).value
        assert total is not None
        return total

    def _output(self, node: ir.Node, scheme: Scheme) -> _Output | None:
        """Grids by channel of the output, where kernel and calibration have them."""
        kernel, value = scheme.kernels[node.op_type], node.outputs[0]
        channels = self.tuning.channels.get(value.name or "")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not kernel.output_channels or channels is None or scheme.activation is None:
            return None
        if value.name in self.tuning.merged:
            return None
        if scheme.weight_terms > 1 or scheme.activation_terms > 1 or scheme.block is not None:
            return None
        if bias is not None and constant(bias) is None:
            return None
        # the range of a channel is narrow enough as it is: clipping it costs more than it gains
        low, high = _finite(*channels.reach, value.dtype)
        scale, zero = channel_grids(low, high, scheme.activation, scheme.symmetric)
        lowest, highest = limits(scheme.activation)
        return _Output(scale, zero, 0 if scheme.symmetric else int(lowest + highest + 1) // 2)

    def _back(
        self,
        shared: Builder,
        own: Builder,
        weight: Weight,
        scheme: Scheme,
        kernel: Kernel,
        term: Term,
        output: _Output | None,
    ) -> ir.Value:
        """A term of a weight as its node reads it, divided by the scales of the output's grids."""
        numbers = self._numbers(shared, weight, term, scheme)
        key = ("weight", term, kernel.weight_zero, kernel.folded)
        if output is None and key in self._shared:
            return self._shared[key]
        builder = shared if output is None else own
        scale = term.scale if output is None else term.scale / output.scale
        scale = scale.astype(weight.tensor.dtype.numpy())
        grid = term.grid
        if kernel.folded:
            value = self._folded(builder, numbers, scale, weight, grid)
        else:
            zero: list[ir.Value] = []
            if kernel.weight_zero or scheme.weight_zero:
                middle = np.full(scale.shape, scheme.weight_zero, scheme.weight.numpy())
                zero = [builder.constant(middle, "zero")]
            step = builder.constant(scale, "scale")
            value = builder.DequantizeLinear(
                numbers, step, *zero, axis=grid.axis, block_size=grid.block
            )
        if output is None:
            self._shared[key] = value
        return value

    def _folded(
        self, builder: Builder, numbers: ir.Value, scale: Array, weight: Weight, grid: Grid
    ) -> ir.Value:
        """What DequantizeLinear gives, by operators that are folded wherever they are constant."""
        shape, axis = weight.tensor.shape.numpy(), grid.axis
        assert axis is not None
        if grid.block is None:
            shaped = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            step = builder.constant(shaped, "scale")
        else:
            key = ("blocks", shape[axis], grid.block)
            if key not in self._shared:
                blocks = np.arange(shape[axis]) // grid.block
                self._shared[key] = builder.constant(blocks, "blocks")
            step = builder.Gather(builder.constant(scale, "scale"), self._shared[key], axis=axis)
        floats = builder.Cast(numbers, to=int(weight.tensor.dtype))
        value: ir.Value = builder.Mul(floats, step)
        return value

    def _numbers(self, builder: Builder, weight: Weight, term: Term, scheme: Scheme) -> ir.Value:
        key = ("numbers", term)
        if key not in self._shared:
            name = f"{weight.value.name}_{scheme.weight.name.lower()}"
            numbers = term.numbers if not scheme.weight_zero else _unsigned(term.numbers, name)
            value = builder.constant(numbers, name)
            value.metadata_props.update(weight.value.metadata_props)
            self._shared[key] = value
        return self._shared[key]

    def _narrow(self, own: Builder, node: ir.Node, weight: Weight, dtype: ir.DataType) -> ir.Value:
        """The node between casts to a narrower float and back."""
        data, tensor = node.inputs[0], weight.tensor
        assert data is not None and data.dtype is not None
        stored = _narrowed(tensor, dtype)
        rest = [
            None if value is None else self._narrow_rest(own, value, dtype)
            for value in node.inputs[2:]
        ]
        product = own.node(
            node.op_type,
            [own.Cast(data, to=int(dtype)), own.constant(stored, stored.name or "weight"), *rest],
            _attributes(node),
        )
        result: ir.Value = own.Cast(product, to=int(data.dtype))
        return result

    def _narrow_rest(self, own: Builder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        tensor = constant(value)
        if tensor is None:
            cast: ir.Value = own.Cast(value, to=int(dtype))
            return cast
        return own.constant(_narrowed(tensor, dtype), value.name or "rest")

    def _dynamic(
        self, shared: Builder, own: Builder, node: ir.Node, weight: Weight, scheme: Scheme
    ) -> ir.Value:
        data = node.inputs[0]
        assert data is not None and data.dtype is not None
        is_narrow = data.dtype != ir.DataType.FLOAT
        without = self.tuning.split(node, scheme)
        term = self._weight(weight, scheme, None, without)[0]
        key = ("dynamic", data)
        if key not in self._shared:
            rest = data
            if without is not None:
                keep = np.ones(weight.tensor.shape.numpy()[weight.in_axis], data.dtype.numpy())
                keep[without] = 0
                rest = shared.Mul(data, keep)
            if is_narrow:
                rest = shared.Cast(rest, to=int(ir.DataType.FLOAT))  # the operator takes no other
            numbers, step, zero = shared.DynamicQuantizeLinear(rest, _outputs=3)
            self._shared[key], self._shared[(*key, "step")] = numbers, step
            self._shared[(*key, "zero")] = zero
        numbers, step, zero = (self._shared[k] for k in (key, (*key, "step"), (*key, "zero")))
        product = own.MatMulInteger(numbers, self._numbers(shared, weight, term, scheme), zero)
        scale = own.Mul(step, term.scale)
        result: ir.Value = own.Mul(own.Cast(product, to=int(ir.DataType.FLOAT)), scale)
        if is_narrow:
            result = own.Cast(result, to=int(data.dtype))
        if without is not None:
            return self._add_outliers(shared, own, result, node, weight, without)
        return result

    def _add_outliers(
        self,
        shared: Builder,
        own: Builder,
        total: ir.Value,
        node: ir.Node,
        weight: Weight,
        without: Array,
    ) -> ir.Value:
        """The products of the channels that stay float, on top of those of all others."""
        data, tensor = node.inputs[0], weight.tensor
        key = ("outliers", data)
        if key not in self._shared:
            self._shared[key] = shared.Gather(data, without, axis=-1)
        shape = list(tensor.shape.numpy())
        shape[weight.in_axis] = len(without)
        rows = derive(
            lambda array: np.take(array, without, weight.in_axis),
            tensor,
            dtype=tensor.dtype,
            shape=shape,
            name=f"{tensor.name}_outliers",
        )
        kept = own.constant(rows, f"{weight.value.name}_outliers")
        product = own.node(node.op_type, [self._shared[key], kept], _attributes(node))
        result: ir.Value = own.Add(total, product)
        return result

    def _activation(
        self, builder: Builder, data: ir.Value, node: ir.Node, scheme: Scheme
    ) -> list[_Part]:
        without = self.tuning.split(node, scheme)
        grid = self._grid(data, scheme, scheme.kernels[node.op_type], without)
        key = (data, scheme.name, grid)
        if key not in self._activations:
            assert scheme.activation is not None
            parts = [_into_channels(builder, data, node, scheme, grid)]
            while len(parts) < scheme.activation_terms:
                data = builder.Sub(data, parts[-1].value)
                reach = grid.scale / 2
                grid = Affine.over(-reach, reach, scheme.activation, symmetric=True)
                parts.append(_through(builder, data, grid))
            self._activations[key] = parts
        return self._activations[key]

    def floor(self, node: ir.Node, scheme: Scheme) -> Array | None:
        """The scales that a weight needs at least, so that its node's bias fits into int32.

        Where the table wants a float bias, too: ONNX Runtime makes whole ones of them itself.
        """
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if not scheme.is_calibrated or scheme.block is not None:
            return None
        output = self._output(node, scheme)
        if bias is None and output is None:
            return None
        assert node.inputs[0] is not None
        without = self.tuning.split(node, scheme)
        grid = self._grid(node.inputs[0], scheme, scheme.kernels[node.op_type], without)
        numbers = np.zeros(1) if bias is None else np.asarray(bias.numpy(), np.float32)
        if numbers.ndim > 1 and numbers.shape[0] > 1:
            return None  # stays float: see `_bias`
        numbers = np.abs(numbers.reshape(-1))
        if output is not None:
            numbers = numbers + np.abs(output.offset)
        return np.asarray(numbers / (grid.scale * _LARGEST_BIAS), np.float32)

    def _grid(
        self, data: ir.Value, scheme: Scheme, kernel: Kernel, without: Array | None = None
    ) -> Affine:
        assert scheme.activation is not None
        low, high = _finite(*self.range_of(data, scheme), data.dtype)
        if without is not None:
            channels = self.tuning.channels[data.name or ""]
            low = max(low, float(np.delete(channels.low, without).min()))
            high = min(high, float(np.delete(channels.high, without).max()))
        if low < 0 and not kernel.zero_point:
            signed = _SIGNED.get(scheme.activation, scheme.activation)
            return Affine.over(low, high, signed, symmetric=True)
        return Affine.over(low, high, scheme.activation, scheme.symmetric)

    def _weight(
        self,
        weight: Weight,
        scheme: Scheme,
        floor: Array | None = None,
        without: Array | None = None,
    ) -> list[Term]:
        key = key_of(weight, scheme, without)
        rounded = self.tuning.rounded.get(key)
        if rounded is not None and is_above(rounded.scale, floor):
            return [rounded]
        if key not in self._terms or not is_above(self._terms[key][0].scale, floor):
            self._terms[key] = make_terms(weight, scheme, self.clip, floor, without)
        return self._terms[key]


def _unsigned(numbers: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    return derive(
        as_unsigned,
        numbers,
        dtype=ir.DataType.UINT8,
        shape=tuple(numbers.shape.numpy()),
        name=name,
    )


def _finite(low: Any, high: Any, dtype: ir.DataType | None) -> tuple[Any, Any]:
    """A range in which no number becomes infinite when it is rounded up."""
    if dtype != ir.DataType.FLOAT16:
        return low, high
    return np.maximum(low, -_LARGEST_HALF), np.minimum(high, _LARGEST_HALF)


def _bias(
    builder: Builder,
    rest: list[ir.Value | None],
    unit: Array | None,
    output: _Output | None,
    dtype: Any,
) -> list[ir.Value | None]:
    """The inputs behind the weight: a bias in int32, in units of the product where that is wanted.

    A bias that is no constant, or one for each row of a Gemm, stays as it is. So does one whose
    units a narrow `dtype` has no normal number for.
    """
    bias = rest[0] if rest else None
    tensor = constant(bias)
    if tensor is None and (bias is not None or output is None):
        return rest
    array = np.zeros(1, np.float32) if tensor is None else np.asarray(tensor.numpy(), np.float32)
    if array.ndim > 1 and array.shape[0] > 1:
        return rest
    array = array.reshape(-1)
    if output is not None:
        array = array + output.offset
    scale = np.float32(1) if output is None else output.scale
    is_narrow = dtype != np.float32
    if unit is None or (
        is_narrow and (unit / scale < ml_dtypes.finfo(dtype).smallest_normal).any()
    ):
        return rest if output is None else [builder.constant((array / scale).astype(dtype), "bias")]
    array, divisor = np.broadcast_arrays(array, unit)
    whole = np.iinfo(np.int32)
    numbers = np.clip(np.rint(array.astype(np.float64) / divisor), whole.min, whole.max)
    value: ir.Value = builder.DequantizeLinear(
        builder.constant(numbers.astype(np.int32), "bias"),
        builder.constant((unit / scale).astype(dtype), "bias_scale"),
        axis=0,
    )
    return [value, *rest[1:]]


def _into_channels(
    builder: Builder, data: ir.Value, node: ir.Node, scheme: Scheme, grid: Affine
) -> _Part:
    """A value rounded and back; where a Mul scales its channels, QuantizeLinear does that instead.

    `x * m / s` is `x / (s / m)`.
    """
    mul, kernel = data.producer(), scheme.kernels[node.op_type]
    if mul is None or MIGRATED not in mul.metadata_props or data.dtype is None:
        return _through(builder, data, grid)
    made_by = mul.inputs[0].producer() if mul.inputs[0] is not None else None
    is_merged = made_by is not None and made_by.op_type in kernel.merges
    if is_merged or not kernel.input_channels:
        return _through(builder, data, grid)
    factors = constant(mul.inputs[1])
    assert factors is not None
    wide, dtype = factors.numpy().reshape(-1), data.dtype.numpy()
    zero = builder.constant(np.full(len(wide), grid.zero, grid.dtype.numpy()), "zero")
    steps = builder.constant((grid.scale / wide).astype(dtype), "scale")
    numbers = builder.QuantizeLinear(mul.inputs[0], steps, zero, axis=1)
    value = builder.DequantizeLinear(
        numbers,
        builder.constant(np.asarray(grid.scale, dtype), "scale"),
        builder.constant(np.asarray(grid.zero, grid.dtype.numpy()), "zero"),
        _like=data,
    )
    return _Part(value, np.asarray(grid.scale, np.float32))


def _through(builder: Builder, data: ir.Value, grid: Affine) -> _Part:
    """A value rounded to a grid and back."""
    assert data.dtype is not None
    scale = builder.constant(np.asarray(grid.scale, data.dtype.numpy()), "scale")
    zero = builder.constant(np.asarray(grid.zero, grid.dtype.numpy()), "zero")
    numbers = builder.QuantizeLinear(data, scale, zero)
    value = builder.DequantizeLinear(numbers, scale, zero, _like=data)
    return _Part(value, np.asarray(grid.scale, np.float32))


def _narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    shape, name = tuple(tensor.shape.numpy()), f"{tensor.name}_{dtype.name.lower()}"
    return derive(
        lambda array: array.astype(dtype.numpy()), tensor, dtype=dtype, shape=shape, name=name
    )


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
