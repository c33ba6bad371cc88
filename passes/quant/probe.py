"""Second moments of what products read: of activations, and of the patches of convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.calibration.calibrate import Calibration, calibrate
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import CONVOLUTIONS, Weight
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Builder
from aigcc.samples import Samples

Array = npt.NDArray[Any]

WIDEST = 4096
"""Inputs whose moments are kept together; beyond, pieces of them are taken to be independent."""

_LIMIT = 1 << 29  # bytes of moments that are collected in one walk over the samples
_CUTS = frozenset(
    {
        "auto_pad",
        "dilations",
        "kernel_shape",
        "output_padding",
        "output_shape",
        "pads",
        "strides",
    }
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Inputs whose moments are kept together, and the outputs that read them.

    Attributes:
        rows: Of `Weight.as_matrix`, [inputs].
        columns: Of the same; all outputs, or those of one group.
    """

    rows: npt.NDArray[np.int64]
    columns: slice


@dataclasses.dataclass(frozen=True)
class Reader:
    """A product, and what multiplies its weight: two with the same key read the same."""

    node: ir.Node
    weight: Weight

    @property
    def key(self) -> str:
        """The name of the activation, and for a convolution how patches are cut out of it."""
        data = self.node.inputs[0]
        assert data is not None and data.name is not None
        if self.node.op_type not in CONVOLUTIONS:
            return data.name
        cut = sorted((name, str(a.value)) for name, a in self.node.attributes.items())
        return f"{data.name} {self.node.op_type} {list(self.weight.tensor.shape)[2:]} {cut}"

    @property
    def size(self) -> int:
        """Inputs of one output."""
        shape = self.weight.tensor.shape.numpy()
        return int(np.prod(shape)) // int(shape[self.weight.out_axis])

    @property
    def parts(self) -> list[Part]:
        """The inputs in pieces of at most `WIDEST`, by group.

        Places of a transposed kernel that never meet are in pieces of their own: with a stride of 2
        an output sees every second place.
        """
        outputs, phase = int(self.weight.tensor.size) // self.size, self._phase()
        step = outputs // self.weight.groups
        return [
            Part(piece, slice(start, start + step))
            for start in range(0, outputs, step)
            for rows in (np.flatnonzero(phase == each) for each in np.unique(phase))
            for piece in np.array_split(rows, -(-len(rows) // WIDEST))
        ]

    @property
    def layout(self) -> tuple[int, bytes]:
        """Equal for readers of one weight that have the same parts."""
        return self.weight.groups, self._phase().tobytes()

    def _phase(self) -> npt.NDArray[np.int64]:
        """For each input a number: an output sees inputs of one number only."""
        if self.node.op_type != "ConvTranspose":
            return np.zeros(self.size, np.int64)
        kernel = self.weight.tensor.shape.numpy()[2:]
        ones = (1,) * len(kernel)
        strides = self.node.attributes.get_ints("strides", ones)
        steps = self.node.attributes.get_ints("dilations", ones)
        places = np.indices(kernel).reshape(len(kernel), -1)
        phases = places * np.reshape(steps, (-1, 1)) % np.reshape(strides, (-1, 1))
        every = np.ravel_multi_index(tuple(phases), strides)
        return np.asarray(every[np.arange(self.size) % len(every)])

    @property
    def bytes(self) -> int:
        """Of all moments, and of the sums that they come from."""
        copies = 1 if self.weight.groups == 1 else 6  # sums by channel have five fields
        return sum(len(part.rows) ** 2 * 8 * copies for part in self.parts)

    def energy(self, moments: Sequence[Array]) -> Array:
        """The mean square of each input channel, float64, [channels]."""
        groups, size = self.weight.groups, self.size
        found = np.zeros((groups, size))
        for part, moment in zip(self.parts, moments, strict=True):
            group = part.columns.start // (part.columns.stop - part.columns.start)
            found[group, part.rows] = np.diagonal(moment)
        channels = self.weight.tensor.shape.numpy()[self.weight.in_axis] * groups
        return np.asarray(found.reshape(channels, -1).mean(axis=1))


Moments = dict[str, list[Array]]
"""By key of a reader, for each of its parts the mean of `x x^T`, float64; of groups, the sum."""


def batches(jobs: Iterable[Sequence[Reader]], copies: int = 1) -> Iterator[list[Sequence[Reader]]]:
    """Jobs that need the moments of some readers, as many at a time as fit into memory.

    Args:
        jobs: Readers that are needed together.
        copies: How often moments are kept.
    """
    batch: list[Sequence[Reader]] = []
    sizes: dict[str, int] = {}
    for job in jobs:
        more = {reader.key: reader.bytes for reader in job}
        if batch and sum((sizes | more).values()) * copies > _LIMIT:
            yield batch
            batch, sizes = [], {}
        batch.append(job)
        sizes |= more
    if batch:
        yield batch


def measure(module: Module, readers: Iterable[Reader], samples: Samples, ctx: Context) -> Moments:
    """The second moments of what readers in the main graph multiply their weights with.

    The module is left alone: its copy gets nodes that cut patches and pieces.

    Raises:
        SampleError: a sample does not fit.
        CompileError: a value is not finite.
    """
    probed = module.clone()
    by_name = {v.name: v for v in probed.graph.inputs}
    by_name |= {value.name: value for node in probed.graph for value in node.outputs}
    builder = Builder(probed.graph, Names(probed), "probe", "probe", probed.opset)
    wanted: dict[str, tuple[Reader, list[str]]] = {}
    for reader in readers:
        if reader.key in wanted:
            continue
        data = reader.node.inputs[0]
        assert data is not None
        values = _values(builder, by_name[data.name], reader)
        wanted[reader.key] = reader, [str(v.name) for v in values]
    probed.graph.extend(builder.made)
    sums = {names[0]: 0 for reader, names in wanted.values() if reader.weight.groups > 1}
    moments = {name for _, names in wanted.values() for name in names} - sums.keys()
    found = calibrate(probed, samples, sums, moments=moments, progress=ctx.progress)
    return {key: _read(found, *each) for key, each in wanted.items()}


def _read(found: Calibration, reader: Reader, names: Sequence[str]) -> list[Array]:
    if reader.weight.groups == 1:
        moments = [found.moments[name] for name in names]
        return [moment.matrix / max(moment.rows, 1) for moment in moments]
    channels = found.tensors[names[0]].channels
    assert channels is not None
    return list(channels.mean.reshape(reader.weight.groups, reader.size, reader.size))


def _values(builder: Builder, value: ir.Value, reader: Reader) -> list[ir.Value]:
    """What the moments are of: for each part, or the sums of all groups in one vector."""
    if reader.node.op_type in CONVOLUTIONS:
        value = _patches(builder, value, reader)
    if reader.weight.groups > 1:
        wide = builder.Cast(value, to=int(ir.DataType.FLOAT))  # float16 may not hold the sums
        by_group = builder.Reshape(wide, [-1, reader.weight.groups, reader.size])
        columns = builder.Transpose(by_group, perm=[1, 2, 0])
        rows = builder.Transpose(by_group, perm=[1, 0, 2])
        return [builder.Reshape(builder.MatMul(columns, rows), [-1])]
    parts = reader.parts
    return [value] if len(parts) == 1 else [builder.Gather(value, p.rows, axis=-1) for p in parts]


def _patches(builder: Builder, value: ir.Value, reader: Reader) -> ir.Value:
    """What each output of a convolution sees, along the last axis: inputs, then kernel places."""
    weight = reader.weight
    shape = weight.tensor.shape.numpy()
    channels, kernel = shape[weight.in_axis] * weight.groups, shape[2:]
    places = int(np.prod(kernel))
    one = np.eye(places, dtype=weight.tensor.dtype.numpy())
    axes = (places, 1) if reader.node.op_type == "Conv" else (1, places)
    every = np.tile(one.reshape(*axes, *kernel), (channels, *[1] * (len(kernel) + 1)))
    cut = {name: a.value for name, a in reader.node.attributes.items() if name in _CUTS}
    made = builder.node(reader.node.op_type, [value, every], {**cut, "group": channels})
    turned: ir.Value = builder.Transpose(made, perm=[0, *range(2, len(kernel) + 2), 1])
    return turned
