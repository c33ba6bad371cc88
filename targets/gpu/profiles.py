"""Optimisation profiles: the shapes that an engine accepts, and the one it is tuned for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from aigcc.dims import dynamic_dims, sample_sizes, sized, with_sizes
from aigcc.errors import ModelError, TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.ranges import Range as Declared
from aigcc.ranges import declared, may_be_empty

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
        if len(sizes) != 3 or not sizes[0] <= sizes[1] <= sizes[2] or not sizes[1]:
            raise TargetError(f"{text!r} is no range of sizes", hint=f"the form is {FORM}")
        ranges[name] = Range(*sizes)
    return ranges


def make_profiles(module: Module, ranges: Mapping[str, Range], ctx: Context) -> Profiles:
    """The smallest, best and largest shape of every input; empty where all shapes are fixed.

    A dim without a range gets what the model is exported for, as far as that is declared, else one
    from its place: 1 to 8 where it is the first, which is the batch, else 1 to 512, or less where
    nodes would contradict each other; the best is what the samples have. A remark says so.

    Raises:
        TargetError: a range names no dim of the inputs, or is more than the model is exported for;
            an input has no shape.
    """
    names = dynamic_dims(module)
    for name in ranges:
        if name not in names:
            hint = did_you_mean(name, names) if names else "all of the model's shapes are fixed"
            raise TargetError(f"the model has no dynamic dim {name!r}", hint=hint)
    chosen, allowed = dict(ranges), declared(module)
    seen, is_real = {}, False
    if ctx.samples is not None and names:
        seen, is_real = sample_sizes(module, next(iter(ctx.samples))), not ctx.samples.synthetic
    for name, given in ranges.items():
        limits = allowed.get(name, Declared())
        if given.smallest not in limits or given.largest not in limits:
            raise TargetError(
                f"the dim {name!r} may be {limits}, as the model was exported, and not "
                f"{given.smallest} to {given.largest}",
                hint="give less, or export the model with a wider range",
            )
        if is_real and name in seen and not given.smallest <= seen[name] <= given.largest:
            takes = f"the engine takes {given.smallest} to {given.largest}"
            ctx.note(None, f"dim {name!r} is {seen[name]} in the samples, and {takes}")
    empty = may_be_empty((d for v in module.inputs for d in v.shape or ()), allowed)
    for name, place in names.items():
        if name not in chosen:
            best = seen.get(name) if is_real or name in allowed else None
            limits = allowed.get(name, Declared())
            chosen[name] = _assume(place, best, limits, least=0 if name in empty else 1)
    if not names:
        return {}
    fit = _fitting(module, chosen, seen, [n for n in names if n not in (*ranges, *allowed)])
    for name, range_ in fit.items():
        if name not in ranges:
            ctx.note(
                None,
                f"dim {name!r} ({names[name]}) may be {range_.smallest} to {range_.largest} and is "
                f"fastest at {range_.best}: give {FORM} to change it",
            )
    return {str(value.name): _shapes(value, fit) for value in module.inputs}


def _assume(place: str, seen: int | None, allowed: Declared, least: int) -> Range:
    """The usual range within what is allowed."""
    usual = _BATCH if place.startswith("axis 0 ") else _OTHER
    best = allowed.clamp(usual.best) if seen is None else seen
    largest = allowed.largest or allowed.clamp(max(usual.largest, best))
    return Range(min(max(least, allowed.smallest), best), best, largest)


def _fitting(
    module: Module, chosen: Mapping[str, Range], seen: Mapping[str, int], free: Sequence[str]
) -> dict[str, Range]:
    """The ranges, those of `free` dims cut to sizes that are consistent throughout the module."""
    fit = dict(chosen)
    sizes = {name: range_.best for name, range_ in chosen.items()}
    if free and not _is_consistent(module, sizes):
        sizes |= {name: seen[name] for name in free if name in seen}
        if not _is_consistent(module, sizes):
            return fit
    for name in free:
        given = fit[name] = dataclasses.replace(fit[name], best=sizes[name])
        for end in ("smallest", "largest"):
            size = getattr(given, end)
            while size != given.best and not _is_consistent(module, {**sizes, name: size}):
                size = (size + given.best + (end == "smallest")) // 2
            fit[name] = dataclasses.replace(fit[name], **{end: size})
    return fit


def _is_consistent(module: Module, sizes: Mapping[str, int]) -> bool:
    try:
        with_sizes(module, sizes)
    except ModelError:
        return False
    return True


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
