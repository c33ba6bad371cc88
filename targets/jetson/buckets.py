"""Buckets: several sizes of one dim, each with a program of its own, and how shapes follow it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from aigcc.dims import sized, with_sizes
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.ranges import resolve, symbols
from aigcc.target import Target

_KEY = "aigcc.buckets"  # of a model: see `Buckets.write`
_AGAIN = "canonicalize,legalize,canonicalize"  # what fixed shapes let be simplified

Tables = Mapping[str, Mapping[int, Sequence[int]]]
"""By input or output and axis, the size under each size of the dim, from 0 to the largest."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The programs that a module becomes.

    Attributes:
        dim: The dim that has several sizes.
        sizes: Of it, from the smallest to the largest.
        others: The sizes of all other dims.
        inputs: How the axes of inputs follow from the dim.
        outputs: How those of outputs do.
        pads: By input, the number that its end is filled with.
    """

    dim: str
    sizes: tuple[int, ...]
    others: Mapping[str, int]
    inputs: Tables
    outputs: Tables
    pads: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def smallest(self, size: int) -> int | None:
        """The smallest bucket that holds a size, or None."""
        return next((bucket for bucket in self.sizes if bucket >= size), None)

    def write(self, module: Module) -> None:
        """Write them down in a module, where passes leave them."""
        module.model.metadata_props[_KEY] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, module: Module) -> Buckets | None:
        """Those that are written down, or None."""
        text = module.model.metadata_props.get(_KEY)
        if text is None:
            return None
        return cls.from_json(json.loads(text))

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Buckets:
        """Those that were written as JSON, which has no tuples, and only texts as keys."""
        inputs, outputs = (
            {
                name: {int(axis): sizes for axis, sizes in axes.items()}
                for name, axes in found[kind].items()
            }
            for kind in ("inputs", "outputs")
        )
        return cls(
            found["dim"], tuple(found["sizes"]), found["others"], inputs, outputs, found["pads"]
        )


def plan(
    module: Module, dim: str, sizes: Sequence[int], others: Mapping[str, int]
) -> tuple[Module, Buckets]:
    """The module with all other dims fixed, and its buckets.

    Raises:
        TargetError: the dim has no name; an output's size changes with it, and nothing says how.
        ModelError: the sizes contradict each other within the model.
    """
    fixed = with_sizes(module, others)
    every = [{**others, dim: size} for size in range(max(sizes) + 1)]
    inputs: dict[str, dict[int, list[int]]] = {}
    for value in module.inputs:
        shapes = [sized(value, known) for known in every]
        for axis, own in enumerate(value.shape or ()):
            if dim in symbols(own):
                inputs.setdefault(str(value.name), {})[axis] = [s[axis] or 0 for s in shapes]
    if not inputs:
        raise TargetError(
            f"the dim {dim!r} has no name in the model, and several sizes need one",
            hint="export the model with a name for that dim, or give one size",
        )
    named = {str(value.name): _tables(value, every) for value in module.outputs}
    inferred = {str(value.name): _tables(value, every) for value in fixed.outputs}
    seen = [_output_shapes(with_sizes(module, {**others, dim: size})) for size in sizes]
    outputs: dict[str, dict[int, list[int]]] = {}
    for name in named:
        for axis, first in enumerate(seen[0].get(name, ())):
            wanted = [shapes[name][axis] for shapes in seen]
            if all(size == first for size in wanted) and first is not None:
                continue
            for table in (named[name].get(axis), inferred[name].get(axis)):
                if table and all(
                    size in (None, table[bucket])
                    for size, bucket in zip(wanted, sizes, strict=True)
                ):
                    outputs.setdefault(name, {})[axis] = table
                    break
            else:
                raise TargetError(
                    f"the size of axis {axis} of the output {name!r} changes with {dim!r}, and the "
                    "model does not say how",
                    hint=f"give {dim!r} one size, or export the model with a name for that axis",
                )
    return fixed, Buckets(dim, tuple(sizes), dict(others), inputs, outputs)


def _tables(value: ir.Value, every: Sequence[Mapping[str, int]]) -> dict[int, list[int]]:
    """By axis of an output, its size under all these sizes, where it follows from them."""
    found = {}
    for axis, dim in enumerate(value.shape or ()):
        sizes = [resolve(dim, known) for known in every]
        if None not in sizes[1:]:  # a dim of size 0 may contradict an expression
            found[axis] = [size or 0 for size in sizes]
    return found


def _output_shapes(module: Module) -> dict[str, list[int | None]]:
    return {
        str(value.name): [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        for value in module.outputs
    }


def specialised(module: Module, buckets: Buckets, size: int, target: Target) -> Module:
    """A module with one size of the dim, simplified again where fixed shapes allow that.

    Raises:
        ModelError: the size contradicts the model.
    """
    fixed = with_sizes(module, {**buckets.others, buckets.dim: size})
    del fixed.model.metadata_props[_KEY]
    PassManager(parse(_AGAIN)).run(fixed, Context(target=target))
    return fixed
