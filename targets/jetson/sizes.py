"""The sizes that the dynamic dims of a module get, from options and from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aigcc.dims import dynamic_dims, sample_sizes, with_input_sizes
from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ranges import Range, declared, settle_on, settled
from aigcc.samples import Samples

_FORM = "dims=[NAME:SIZE]"
_FEW = 4  # programs that are suggested, at most


def given_sizes(module: Module, dims: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The sizes in texts such as `batch:2` or `tokens:64|128`, by dim, the smallest first.

    Raises:
        TargetError: a text is not of that form, or names no dim; several dims have several sizes.
    """
    places = dynamic_dims(module)
    found: dict[str, tuple[int, ...]] = {}
    for text in dims:
        name, _, sizes = text.rpartition(":")
        if not all(size.isdecimal() for size in sizes.split("|")):
            raise TargetError(
                f"{text!r} is no size of a dim",
                hint=f"the form is {_FORM}, or dims=[NAME:SIZE|SIZE] for several sizes",
            )
        if name not in places:
            known = did_you_mean(name, places) if places else "all shapes are fixed"
            raise TargetError(f"the model has no dynamic dim {name!r}", hint=known)
        found[name] = tuple(sorted({int(size) for size in sizes.split("|")}))
        allowed = declared(module).get(name, Range())
        for size in found[name]:
            if size not in allowed:
                raise TargetError(
                    f"the dim {name!r} may be {allowed}, as the model was exported, and not {size}",
                    hint="give another size, or export the model with a wider range",
                )
    several = [name for name, sizes in found.items() if len(sizes) > 1]
    if len(several) > 1:
        raise TargetError(
            f"the dims {several[0]!r} and {several[1]!r} have several sizes each, and only one may",
            hint=f"give {several[1]!r} one size",
        )
    return found


def seen_sizes(
    module: Module, given: Mapping[str, Sequence[int]], samples: Samples | None
) -> dict[str, int]:
    """The sizes that samples give to the dims that `given` leaves open.

    Raises:
        TargetError: samples have another size than `given` or than each other, or are larger than
            all that a dim is given.
    """
    if samples is None or not dynamic_dims(module):
        return {}
    if samples.synthetic:
        first = {name: sizes[0] for name, sizes in given.items()}
        sized = with_input_sizes(module, first)
        settle_on(sized, {**settled(module), **first})  # for sums that they stand in
        made = samples.fitted(sized)
        seen = sample_sizes(made.module, next(iter(made)))
        return {name: size for name, size in seen.items() if name not in given}
    every = [sample_sizes(module, feeds) for feeds in samples]
    for index, found in enumerate(every):
        for name, size in found.items():
            _refuse_other(name, size, index, given.get(name, ()))
    for name, size in every[0].items():
        other = next((i for i, found in enumerate(every) if found.get(name, size) != size), None)
        if other is not None and name not in given:
            sizes = sorted({found[name] for found in every if name in found})
            form = f"jetson(dims=[{name}:{'|'.join(map(str, _suggested(sizes)))}])"
            raise TargetError(
                f"the dim {name!r} is {size} in sample 0, and {every[other][name]} in sample "
                f"{other}; this target needs static shapes, and the samples have {_listed(sizes)}",
                hint=f"a program for each of a few sizes, to which inputs are filled up: "
                f"-t {form!r}; or pad or crop the samples to one size",
            )
    return {name: size for name, size in every[0].items() if name not in given}


def _refuse_other(name: str, size: int, index: int, allowed: Sequence[int]) -> None:
    """Do nothing if a sample has the size that a dim is given, or is no larger than a bucket."""
    if len(allowed) == 1 and size != allowed[0]:
        raise TargetError(
            f"the dim {name!r} is {size} in sample {index}, and {allowed[0]} in dims",
            hint=f"give dims=[{name}:{size}], or samples with a size of {allowed[0]}",
        )
    if allowed and size > allowed[-1]:
        sizes = "|".join(map(str, (*allowed, size)))
        raise TargetError(
            f"the dim {name!r} is {size} in sample {index}, and {allowed[-1]} at most in dims",
            hint=f"give dims=[{name}:{sizes}], or leave out the sample",
        )


def _suggested(sizes: Sequence[int]) -> list[int]:
    """A few of the sizes that samples have, as many samples below each."""
    count = min(len(sizes), _FEW)
    return [sizes[len(sizes) * (place + 1) // count - 1] for place in range(count)]


def _listed(sizes: Sequence[int]) -> str:
    if len(sizes) > 2 * _FEW:
        return f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"


def refuse_dynamic(module: Module) -> None:
    """Do nothing if all inputs have static shapes.

    Raises:
        TargetError: a dim varies; names it.
    """
    places = dynamic_dims(module)
    if places:
        raise TargetError(
            f"the dim {next(iter(places))!r} has no size, and this target needs static shapes",
            at=next(iter(places.values())),
            hint=f"give dims=[{','.join(f'{name}:SIZE' for name in places)}], or samples",
        )
