"""A module with buckets as the passes get it, and the samples that reach each bucket."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.ranges import Range, declared, settle_on, settled, vary
from aigcc.reference import Reference
from aigcc.synthetic import synthetic_feeds
from aigcc.targets.jetson.buckets import Buckets, plan
from aigcc.targets.jetson.padding import choose_pads, shortened, size_of


def prepare_buckets(
    module: Module, dim: str, sizes: Sequence[int], others: Mapping[str, int], ctx: Context
) -> Module:
    """The module with all dims fixed but one, which has these sizes; that is written down in it.

    Synthetic samples get a size below each of them. Where there are samples, inputs that are filled
    up are proved to change nothing, and a remark says which sizes no sample needs.

    Raises:
        TargetError: the inputs do not say the dim's size, an output's size does not follow from
            it, or inputs that are filled up change an output.
        ModelError: the sizes contradict each other within the model.
    """
    fixed, buckets = plan(module, dim, sizes, others)
    samples = ctx.samples
    if samples is not None:
        reference = Reference(module, ctx.threads)
        if samples.synthetic:
            _vary_samples(fixed, buckets, reference)
            samples = samples.fitted(fixed)
        found = [size_of(feeds, buckets.inputs) or 0 for feeds in samples]
        settle_on(fixed, {**settled(fixed), **others, dim: found[0]})
        pads = choose_pads(reference, buckets, samples)
        buckets = dataclasses.replace(buckets, pads=pads)
        needed = set(map(buckets.smallest, found))
        for size in buckets.sizes:
            if size not in needed:
                ctx.note(
                    None,
                    f"no sample needs the program for {dim} = {size}, so it is not compared",
                )
    buckets.write(fixed)
    return fixed


def _vary_samples(module: Module, buckets: Buckets, reference: Reference) -> None:
    """Let synthetic samples have a size in each bucket, which the model takes."""
    smallest = declared(module).get(buckets.dim, Range()).smallest
    known = {**settled(module), **buckets.others}
    sizes = []
    for below, size in itertools.pairwise((0, *buckets.sizes)):
        settle_on(module, {**known, buckets.dim: size})
        full = next(synthetic_feeds(module, count=1))
        bounds = max((below + size + 1) // 2, smallest), max(below + 1, smallest)
        shorter = shortened(reference, buckets, full, bounds)
        sizes.append(size if shorter is None else shorter[0])
    vary(module, buckets.dim, sizes)
