"""Optimisation profiles: the shapes that an engine accepts, and the one it is tuned for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.targets.dims import dynamic_dims, sample_sizes, sized

FORM = "dims=[NAME:SMALLEST:BEST:LARGEST]"


@dataclasses.dataclass(frozen=True)
class Range:
    """The sizes of one dim: the smallest and the largest allowed, and the best supported."""

    smallest: int
    best: int
    largest: int


_BATCH = Range(1, 1, 8)
_OTHER = Range(1, 64, 512)

Profiles = dict[str, list[list[int]]]


def parse_ranges(texts: tuple[str, ...]) -> dict[str, Range]:
    """Ranges by dim, from texts such as `sequence:1:64:512`.

    Raises:
        TargetError: a text is not of that form, or its sizes do not grow.
    """
    ranges = {}
    for text in texts:
        name, *numbers = text.rsplit(":", 3)
        sizes = [int(number) for number in numbers if number.isdecimal()]
        if len(sizes) != 3 or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
            raise TargetError(f"{text!r} is no range of sizes", hint=f"the form is {FORM}")
        ranges[name] = Range(*sizes)
    return ranges


def make_profiles(module: Module, ranges: Mapping[str, Range], ctx: Context) -> Profiles:
    """The smallest, best and largest shape of every input; empty where all shapes are fixed.

    A dim without a range gets one from its place: 1 to 8 where it is the first, which is the
    batch, else 1 to 512; the best is what the samples have, if there are real ones. A remark
    says so.

    Raises:
        TargetError: a range names no dim of the inputs, or an input has no shape.
    """
    names = dynamic_dims(module)
    for name in ranges:
        if name not in names:
            hint = did_you_mean(name, names) if names else "all of the model's shapes are fixed"
            raise TargetError(f"the model has no dynamic dim {name!r}", hint=hint)
    chosen = dict(ranges)
    seen = {}
    if ctx.samples is not None and not ctx.samples.synthetic:
        seen = sample_sizes(module, next(iter(ctx.samples)))
    for name, given in ranges.items():
        if name in seen and not given.smallest <= seen[name] <= given.largest:
            takes = f"the engine takes {given.smallest} to {given.largest}"
            ctx.note(None, f"dim {name!r} is {seen[name]} in the samples, and {takes}")
    for name, place in names.items():
        if name not in chosen:
            chosen[name] = _assume(name, place, seen.get(name), ctx)
    if not names:
        return {}
    return {str(value.name): _shapes(value, chosen) for value in module.inputs}


def _assume(name: str, place: str, seen: int | None, ctx: Context) -> Range:
    usual = _BATCH if place.startswith("axis 0 ") else _OTHER
    best = usual.best if seen is None else seen
    assumed = Range(usual.smallest, best, max(usual.largest, best))
    ctx.note(
        None,
        f"dim {name!r} ({place}) may be {assumed.smallest} to {assumed.largest} and is fastest at "
        f"{assumed.best}: give {FORM} to change it",
    )
    return assumed


def _shapes(value: ir.Value, chosen: Mapping[str, Range]) -> list[list[int]]:
    if value.shape is None:
        raise TargetError(
            f"input {value.name!r} has no shape", hint="give it one, with names for what varies"
        )
    shapes = []
    for point in ("smallest", "best", "largest"):
        sizes = {name: getattr(range_, point) for name, range_ in chosen.items()}
        shape = sized(value, sizes)
        if None in shape:
            raise TargetError(
                f"no size follows for {value.shape} of input {value.name!r}",
                hint="name its dims, or fix them",
            )
        shapes.append([size for size in shape if size is not None])
    return shapes
