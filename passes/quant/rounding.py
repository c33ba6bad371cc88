"""Weights that GPTQ rounds: once, before nodes are made, into a file that stands in for memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.gptq import Gptq, output_error
from aigcc.analysis.grids import Clip, Grid, stored
from aigcc.ir.module import Module
from aigcc.ir.storage.scratch import Scratch
from aigcc.passes.quant.placement import Scheme, Weight
from aigcc.passes.quant.probe import Moments, Part, Reader, batches, measure
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
_DAMPINGS = (0.01, 0.1, 1.0)
_TRIED = 128  # outputs, and
_PARTS = 8  # parts of the inputs that a damping is chosen on


class Rounding:
    """GPTQ for the weights of a module's main graph.

    Few samples leave much of the second moments open, and GPTQ moves errors to where they were not
    seen. So each weight is rounded on one half of the samples and judged on the other, with several
    dampings and to the nearest numbers, and what is best there is done with all of them. For each
    output channel there are two scales to choose from: for the whole range, and for the least
    squared error. No output is worse than rounded to the nearest, as measured on all samples.

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
        self._module, self._ctx = module, ctx
        self._floor, self._split = floor, split
        self._halves = _halves(samples)

    def run(self, places: Sequence[tuple[ir.Node, Weight, Scheme]]) -> dict[Key, Term]:
        """The terms of all weights that become one integer term of a product."""
        jobs: dict[Key, list[Reader]] = {}
        schemes: dict[Key, Scheme] = {}
        for node, weight, scheme in places:
            if node.op_type != "Gather" and scheme.weight.is_integer() and scheme.weight_terms == 1:
                key = key_of(weight, scheme, self._split(node, scheme))
                jobs.setdefault(key, []).append(Reader(node, weight))
                schemes[key] = scheme
        keys = {id(readers): key for key, readers in jobs.items()}
        size = sum(readers[0].weight.tensor.size + 64 for readers in jobs.values())
        scratch = Scratch(size)
        made: dict[Key, Term] = {}
        for batch in batches(jobs.values(), len(self._halves)):
            readers = [reader for job in batch for reader in job]
            moments = [measure(self._module, readers, half, self._ctx) for half in self._halves]
            for job in batch:
                key = keys[id(job)]
                self._ctx.progress(f"rounding {key[0].name}", len(made) / len(jobs))
                made[key] = self._term(list(job), schemes[key], moments, scratch)
        return made

    def _term(
        self, readers: list[Reader], scheme: Scheme, halves: list[Moments], scratch: Scratch
    ) -> Term:
        weight, node = readers[0].weight, readers[0].node
        without, floor = self._split(node, scheme), self._floor(node, scheme)
        grid, source = grid_of(weight, scheme), source_of(weight, without)
        scales = [choose_scale(grid, source, weight, clip, floor) for clip in _CLIPS]
        array = source.read()
        shape = array.shape
        matrix = weight.as_matrix(np.asarray(array, np.float32))
        rows = group_rows(grid, weight, shape)
        stacked = [_as_rows(grid, weight, scale) for scale in scales]
        inputs = _inputs(readers, halves, without)
        damping = _choose_damping(matrix, stacked[-1], rows, grid, inputs)
        numbers = np.empty(matrix.shape, np.int8)
        for columns, grouped in groupby(inputs, lambda each: each.part.columns):
            here = list(grouped)
            solvers = [] if damping is None else [Gptq(i.all, damping=damping) for i in here]
            for start in range(columns.start, columns.stop, _COLUMNS):
                part = slice(start, min(start + _COLUMNS, columns.stop))
                steps = [s[:, part] for s in stacked]
                numbers[:, part], chosen = _best(matrix[:, part], steps, rows, grid, here, solvers)
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


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Inputs that are rounded together, and their second moments on each half of the samples."""

    part: Part
    halves: list[Array]

    @property
    def all(self) -> Array:
        return np.asarray(sum(self.halves) / len(self.halves))


def _inputs(
    readers: Sequence[Reader], halves: Sequence[Moments], without: Array | None
) -> list[_Inputs]:
    """The parts of a weight's inputs; what several nodes multiply it with is summed.

    Nodes that see other inputs together than the first one does are left out.
    """
    found = []
    alike = [reader for reader in readers if reader.layout == readers[0].layout]
    for index, part in enumerate(readers[0].parts):
        moments = [cast(Array, sum(m[r.key][index] for r in alike)) for m in halves]
        if without is not None:
            moments = [_without(moment, part.rows, without) for moment in moments]
        found.append(_Inputs(part, moments))
    return found


def _halves(samples: Samples) -> list[Samples]:
    """Every second sample, and the others; a single one is left alone."""

    def half(start: int) -> Samples:
        return dataclasses.replace(samples, read=lambda: islice(samples.read(), start, None, 2))

    return [half(0), half(1)] if len(list(islice(samples, 2))) == 2 else [samples]


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


def _without(moment: Array, rows: Array, channels: Array) -> Array:
    """Moments in which some channels are always 0."""
    moment = moment.copy()
    here = np.isin(rows, channels)
    moment[here] = 0
    moment[:, here] = 0
    return moment


def _choose_damping(
    matrix: Array, scale: Array, rows: Array, grid: Grid, inputs: Sequence[_Inputs]
) -> float | None:
    """What errs least on samples that it was not made of; None for the nearest numbers."""
    if len(inputs[0].halves) < 2:
        return _DAMPINGS[0]
    chosen, least = None, _unseen_error(matrix, scale, rows, grid, inputs, None)
    best = np.inf
    for damping in _DAMPINGS:
        error = _unseen_error(matrix, scale, rows, grid, inputs, damping)
        if error > best:
            break  # more of it is worse still
        best = error
        if error < least:
            chosen, least = damping, error
    return chosen


def _unseen_error(
    matrix: Array,
    scale: Array,
    rows: Array,
    grid: Grid,
    inputs: Sequence[_Inputs],
    damping: float | None,
) -> float:
    """Of some outputs, rounded on one half of the samples, on the other half."""
    total = 0.0
    for each in inputs[:: -(-len(inputs) // _PARTS)]:
        weight, steps = matrix[:, each.part.columns], scale[:, each.part.columns]
        every = -(-weight.shape[1] // _TRIED)
        weight, steps = weight[each.part.rows, ::every], steps[:, ::every]
        places = rows[each.part.rows]
        for made_of, judge in (each.halves, each.halves[::-1]):
            if damping is None:
                numbers = grid.nearest(weight / steps[places])
            else:
                numbers = Gptq(made_of, damping=damping).round(weight, steps, places, grid)
            total += float(output_error(weight - numbers * steps[places], judge).sum())
    return total


def _best(
    matrix: Array,
    scales: list[Array],
    rows: Array,
    grid: Grid,
    inputs: Sequence[_Inputs],
    solvers: Sequence[Gptq],
) -> tuple[Array, Array]:
    """Numbers and scales with the least error of each output."""
    best = grid.nearest(matrix / scales[0][rows])
    chosen, least = scales[0].copy(), np.full(matrix.shape[1], np.inf)
    for scale in scales:
        tries = [grid.nearest(matrix / scale[rows])]
        if solvers:
            tries.append(np.empty(matrix.shape, np.float32))
        for each, solver in zip(inputs, solvers, strict=False):
            here = each.part.rows
            tries[1][here] = solver.round(matrix[here], scale, rows[here], grid)
        for numbers in tries:
            left = matrix - numbers * scale[rows]
            error = cast(Array, sum(output_error(left[i.part.rows], i.all) for i in inputs))
            better = error < least
            best[:, better], chosen[:, better] = numbers[:, better], scale[:, better]
            least = np.minimum(error, least)
    return best, chosen
