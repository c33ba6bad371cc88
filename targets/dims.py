"""The dynamic dims of a module's inputs, and the sizes that samples give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.canonicalize import Canonicalize
from aigcc.pipeline.context import Context
from aigcc.synthetic import resolve, symbols

if TYPE_CHECKING:
    from aigcc.samples import Samples


def dynamic_dims(module: Module) -> dict[str, str]:
    """Each name of a dim that varies, with the input and axis where it is seen first.

    A dim without a name is called after its place, such as `image.2`.
    """
    found: dict[str, str] = {}
    for value in module.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if is_fixed(dim):
                continue
            place = f"axis {axis} of {value.name!r}"
            for name in symbols(dim) or {_place(value, axis)}:
                found.setdefault(name, place)
    return found


def sized(value: ir.Value, sizes: Mapping[str, int]) -> list[int | None]:
    """The shape of an input of known rank under these sizes; None where a size is missing."""
    return [
        resolve(dim, sizes) if is_fixed(dim) or symbols(dim) else sizes.get(_place(value, axis))
        for axis, dim in enumerate(value.shape or ())
    ]


def is_fixed(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dim is a size; some exporters write -1 for one that varies."""
    return isinstance(dim, int) and dim >= 0


def sample_sizes(module: Module, samples: Samples | None) -> dict[str, int]:
    """The sizes of the dynamic dims in the first sample; none without samples."""
    if samples is None:
        return {}
    feeds = next(iter(samples))
    sizes: dict[str, int] = {}
    for value in module.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if is_fixed(dim):
                continue
            name = str(dim) if symbols(dim) == {str(dim)} else _place(value, axis)
            sizes.setdefault(name, feeds[str(value.name)].shape[axis])
    return sizes


def with_sizes(module: Module, sizes: Mapping[str, int]) -> Module:
    """A copy of a module whose dynamic dims have these sizes, in canonical form.

    Raises:
        ModelError: the sizes contradict each other; names the node.
    """
    fixed = module.clone()
    shapes = {value: ir.Shape(sized(value, sizes)) for value in fixed.inputs}
    for graph in fixed.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.const_value is None:
                value.shape = shapes.get(value)
    infer_shapes(fixed.model)
    Canonicalize().run(fixed, Context())
    return fixed


def _place(value: ir.Value, axis: int) -> str:
    return f"{value.name}.{axis}"
