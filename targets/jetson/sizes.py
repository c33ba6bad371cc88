"""The sizes that the dynamic dims of a module get, from options and from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aigcc.dims import dynamic_dims, sample_sizes, with_input_sizes
from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ranges import Range, declared, settle_on, settled
from aigcc.samples import Samples

_FORM = "dims=[NAME:SIZE]"


def given_sizes(module: Module, dims: Sequence[str]) -> dict[str, int]:
    """The sizes in texts such as `batch:2`, by dim.

    Raises:
        TargetError: a text is not of that form, or names no dim.
    """
    places = dynamic_dims(module)
    sizes: dict[str, int] = {}
    for text in dims:
        name, _, size = text.rpartition(":")
        if not size.isdecimal():
            raise TargetError(f"{text!r} is no size of a dim", hint=f"the form is {_FORM}")
        if name not in places:
            known = did_you_mean(name, places) if places else "all shapes are fixed"
            raise TargetError(f"the model has no dynamic dim {name!r}", hint=known)
        sizes[name] = int(size)
        allowed = declared(module).get(name, Range())
        if sizes[name] not in allowed:
            raise TargetError(
                f"the dim {name!r} may be {allowed}, as the model was exported, and not {size}",
                hint="give another size, or export the model with a wider range",
            )
    return sizes


def seen_sizes(module: Module, given: Mapping[str, int], samples: Samples | None) -> dict[str, int]:
    """The sizes that samples give to the dims that `given` leaves open.

    Raises:
        TargetError: samples have another size than `given` or than each other.
    """
    if samples is None or not dynamic_dims(module):
        return {}
    if samples.synthetic:
        sized = with_input_sizes(module, given)
        settle_on(sized, {**settled(module), **given})  # for sums that they stand in
        made = samples.fitted(sized)
        seen = sample_sizes(made.module, next(iter(made)))
        return {name: size for name, size in seen.items() if name not in given}
    first: dict[str, int] = {}
    for index, feeds in enumerate(samples):
        sizes = sample_sizes(module, feeds)
        first = first or sizes
        for name, size in sizes.items():
            if given.get(name, size) != size:
                raise TargetError(
                    f"the dim {name!r} is {size} in sample {index}, and {given[name]} in dims",
                    hint=f"give dims=[{name}:{size}], or samples with a size of {given[name]}",
                )
            if first[name] != size:
                raise TargetError(
                    f"the dim {name!r} is {first[name]} in sample 0, and {size} in sample {index}; "
                    "this target needs static shapes",
                    hint="pad or crop the samples to one size",
                )
    return {name: size for name, size in first.items() if name not in given}


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
