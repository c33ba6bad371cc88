"""Second moments of what products read: of activations, and of the patches of convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.calibration.calibrate import calibrate
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import Weight
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import Builder
from aigcc.samples import Samples

Array = npt.NDArray[Any]

WIDEST = 4096
"""Inputs whose moments are kept together; beyond, pieces of them are taken to be independent."""

_LIMIT = 1 << 29  # bytes of moments that are collected in one walk over the samples


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
        if self.node.op_type != "Conv":
            return data.name
        cut = sorted((name, str(a.value)) for name, a in self.node.attributes.items())
        return f"{data.name} {list(self.weight.tensor.shape)[2:]} {cut}"

    @property
    def size(self) -> int:
        """Inputs of one output."""
        shape = self.weight.tensor.shape.numpy()
        return int(np.prod(shape)) // int(shape[self.weight.out_axis])

    @property
    def pieces(self) -> list[slice]:
        """The inputs in equal pieces of at most `WIDEST`."""
        count = -(-self.size // WIDEST)
        step = -(-self.size // count)
        return [slice(at, min(at + step, self.size)) for at in range(0, self.size, step)]


Moments = dict[str, list[Array]]
"""By key of a reader, for each piece of its inputs the mean of `x x^T`, float64."""


def batches(jobs: Iterable[Sequence[Reader]]) -> Iterator[list[Sequence[Reader]]]:
    """Jobs that need the moments of some readers, as many at a time as fit into memory."""
    batch: list[Sequence[Reader]] = []
    sizes: dict[str, int] = {}
    for job in jobs:
        more = {r.key: sum((p.stop - p.start) ** 2 * 8 for p in r.pieces) for r in job}
        if batch and sum((sizes | more).values()) > _LIMIT:
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
    wanted: dict[str, list[str]] = {}
    for reader in readers:
        if reader.key in wanted:
            continue
        data = reader.node.inputs[0]
        assert data is not None
        value = by_name[data.name]
        if reader.node.op_type == "Conv":
            value = _patches(builder, value, reader)
        pieces = reader.pieces
        values = [value] if len(pieces) == 1 else [_cut(builder, value, p) for p in pieces]
        wanted[reader.key] = [str(v.name) for v in values]
    probed.graph.extend(builder.made)
    names = [name for found in wanted.values() for name in found]
    found = calibrate(probed, samples, {}, moments=names, progress=ctx.progress)
    moments = found.moments
    return {
        key: [moments[name].matrix / max(moments[name].rows, 1) for name in pieces]
        for key, pieces in wanted.items()
    }


def _patches(builder: Builder, value: ir.Value, reader: Reader) -> ir.Value:
    """What each output of a convolution sees, along the last axis: inputs, then kernel places."""
    channels, *kernel = reader.weight.tensor.shape.numpy()[1:]
    places = int(np.prod(kernel))
    one = np.eye(places, dtype=np.float32).reshape(places, 1, *kernel)
    every = np.tile(one, (channels, *[1] * (len(kernel) + 1)))
    cut = {
        name: attribute.value
        for name, attribute in reader.node.attributes.items()
        if name in ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
    }
    dtype = reader.weight.tensor.dtype
    made = builder.Conv(value, every.astype(dtype.numpy()), group=channels, **cut)
    turned: ir.Value = builder.Transpose(made, perm=[0, *range(2, len(kernel) + 2), 1])
    return turned


def _cut(builder: Builder, value: ir.Value, piece: slice) -> ir.Value:
    made: ir.Value = builder.Slice(value, [piece.start], [piece.stop], [-1])
    return made
