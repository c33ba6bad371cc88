"""Weights that GPTQ rounds: once, before nodes are made, into a file that stands in for memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.gptq import Gptq, output_error
from aigcc.analysis.grids import Clip, Grid, nearest, stored
from aigcc.ir.module import Module
from aigcc.ir.storage.scratch import Scratch
from aigcc.passes.quant.placement import Scheme, Weight
from aigcc.passes.quant.probe import Moments, Reader, batches, measure
from aigcc.passes.quant.terms import (
    Key,
    Term,
    choose_scale,
    grid_of,
    key_of,
    release,
    source_of,
)
from aigcc.pipeline.context import Context
from aigcc.samples import Samples

Array = npt.NDArray[Any]
FloorOf = Callable[[ir.Node, Scheme], Array | None]
Split = Callable[[ir.Node, Scheme], Array | None]

_CLIPS: tuple[Clip, ...] = ("max", "mse")
_COLUMNS = 2048  # outputs that are rounded together


class Rounding:
    """GPTQ for the weights of a module's main graph.

    For each output channel it keeps the best of four: scales for the whole range or for the least
    squared error, and the nearest numbers or those of GPTQ. So no output is worse than rounded to
    the nearest, as measured on the calibration samples.

    Args:
        module: Whose activations are measured; not changed.
        samples: What they are measured on; walked once for each 512 MiB of moments.
        floor: The scales that a node's weight needs at least; of several nodes, those of the first.
        split: The input channels of a node's weight that count as 0.
        ctx: Told about progress.
    """

    def __init__(
        self, module: Module, samples: Samples, floor: FloorOf, split: Split, ctx: Context
    ) -> None:
        self._module, self._samples, self._ctx = module, samples, ctx
        self._floor, self._split = floor, split

    def run(self, places: Sequence[tuple[ir.Node, Weight, Scheme]]) -> dict[Key, Term]:
        """The terms of all weights that become one integer term of a product."""
        jobs: dict[Key, list[Reader]] = {}
        schemes: dict[Key, Scheme] = {}
        for node, weight, scheme in places:
            if node.op_type != "Gather" and scheme.weight.is_integer() and scheme.weight_terms == 1:
                jobs.setdefault(key_of(weight, scheme), []).append(Reader(node, weight))
                schemes[key_of(weight, scheme)] = scheme
        keys = {id(readers): key for key, readers in jobs.items()}
        size = sum(readers[0].weight.tensor.size + 64 for readers in jobs.values())
        scratch = Scratch(size)
        made: dict[Key, Term] = {}
        for batch in batches(jobs.values()):
            readers = [reader for job in batch for reader in job]
            moments = measure(self._module, readers, self._samples, self._ctx)
            for job in batch:
                key = keys[id(job)]
                self._ctx.progress(f"rounding {key[0].name}", len(made) / len(jobs))
                made[key] = self._term(list(job), schemes[key], moments, scratch)
        return made

    def _term(
        self, readers: list[Reader], scheme: Scheme, moments: Moments, scratch: Scratch
    ) -> Term:
        weight, node = readers[0].weight, readers[0].node
        without = self._split(node, scheme)
        floor = self._floor(node, scheme)
        grid, source = grid_of(weight, scheme), source_of(weight, without)
        scales = [choose_scale(grid, source, weight, clip, floor) for clip in _CLIPS]
        array = source.read()
        shape = array.shape
        matrix = weight.as_matrix(np.asarray(array, np.float32))
        solvers = []
        for index, piece in enumerate(readers[0].pieces):
            moment = cast(Array, sum(moments[r.key][index] for r in readers))
            if without is not None:
                moment = _without(moment, piece, without)
            solvers.append((piece, moment, Gptq(moment)))
        rows = group_rows(grid, weight, shape)
        stacked = [_as_rows(grid, weight, scale) for scale in scales]
        numbers = np.empty(matrix.shape, np.int8)
        for start in range(0, matrix.shape[1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            columns = [s[:, part] for s in stacked]
            numbers[:, part], chosen = _best(matrix[:, part], columns, rows, grid, solvers)
            stacked[0][:, part] = chosen
        release(source.tensor)
        scale = (
            stacked[0][0]
            if grid.block is None
            else weight.from_matrix(stacked[0], grid.scale_shape(shape))
        )
        whole = stored(weight.from_matrix(numbers, shape), grid.dtype)
        name = f"{weight.value.name}_{grid.dtype.name.lower()}"
        return Term(scratch.keep(whole, grid.dtype, name), np.ascontiguousarray(scale), grid)


def group_rows(grid: Grid, weight: Weight, shape: tuple[int, ...]) -> Array:
    """For each input of `Weight.as_matrix`, the row of its scales there, [inputs]."""
    size = int(np.prod(shape)) // shape[weight.out_axis]
    if grid.block is None:
        return np.zeros(size, np.int64)
    places = size // shape[weight.in_axis]
    channel, place = np.divmod(np.arange(size), places)
    return channel // grid.block * places + place


def _as_rows(grid: Grid, weight: Weight, scale: Array) -> Array:
    return np.array(scale[None] if grid.block is None else weight.as_matrix(scale))


def _without(moment: Array, piece: slice, channels: Array) -> Array:
    """Moments in which some channels are always 0."""
    moment = moment.copy()
    here = channels[(channels >= piece.start) & (channels < piece.stop)] - piece.start
    moment[here] = 0
    moment[:, here] = 0
    return moment


def _best(
    matrix: Array,
    scales: list[Array],
    rows: Array,
    grid: Grid,
    solvers: list[tuple[slice, Array, Gptq]],
) -> tuple[Array, Array]:
    """Numbers and scales with the least error of each output."""
    best = nearest(matrix / scales[0][rows], grid.dtype)
    chosen, least = scales[0].copy(), np.full(matrix.shape[1], np.inf)
    for scale in scales:
        plain, solved = (
            nearest(matrix / scale[rows], grid.dtype),
            np.empty(matrix.shape, np.float32),
        )
        for piece, _, solver in solvers:
            solved[piece] = solver.round(matrix[piece], scale, rows[piece], grid.dtype)
        for numbers in (plain, solved):
            left = matrix - numbers * scale[rows]
            error = cast(Array, sum(output_error(left[p], moment) for p, moment, _ in solvers))
            better = error < least
            best[:, better], chosen[:, better] = numbers[:, better], scale[:, better]
            least = np.minimum(error, least)
    return best, chosen
