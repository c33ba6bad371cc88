"""The dynamic dims of a module's inputs, and the sizes that samples give them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ranges import place, resolve, solve, symbols
from aigcc.synthetic import Array


def dynamic_dims(module: Module) -> dict[str, str]:
    """Each name of a dim that varies, with the input and axis where it is seen first.

    A dim without a name is called after its place, such as `image.2`.
    """
    found: dict[str, str] = {}
    for value in module.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if is_fixed(dim):
                continue
            where = f"axis {axis} of {value.name!r}"
            for name in symbols(dim) or {place(value, axis)}:
                found.setdefault(name, where)
    return found


def sized(value: ir.Value, sizes: Mapping[str, int]) -> list[int | None]:
    """The shape of an input of known rank under these sizes; None where a size is missing."""
    return [
        resolve(dim, sizes) if is_fixed(dim) or symbols(dim) else sizes.get(place(value, axis))
        for axis, dim in enumerate(value.shape or ())
    ]


def is_fixed(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dim is a size; some exporters write -1 for one that varies."""
    return isinstance(dim, int) and dim >= 0


def sample_sizes(module: Module, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The sizes that a sample of a module gives to its dynamic dims."""
    sizes: dict[str, int] = {}
    named = []
    for value in module.inputs:
        for axis, dim in enumerate(value.shape or ()):
            size = feeds[str(value.name)].shape[axis]
            if symbols(dim):
                named.append((dim, size))
            elif not is_fixed(dim):
                sizes[place(value, axis)] = size
    return sizes | solve(named)


def with_sizes(module: Module, sizes: Mapping[str, int]) -> Module:
    """A copy of a module whose dynamic dims have these sizes.

    Raises:
        ModelError: the sizes contradict each other; names the node.
    """
    fixed = with_input_sizes(module, sizes)
    for graph in fixed.graphs():
        values = {*graph.inputs, *(output for node in graph for output in node.outputs)}
        for value in values.difference(fixed.inputs):
            if value.const_value is None:
                value.shape = None
    infer_shapes(fixed.model)
    return fixed


def with_input_sizes(module: Module, sizes: Mapping[str, int]) -> Module:
    """A copy of a module whose inputs have these sizes, and which says nothing new of the rest."""
    fixed = module.clone()
    for value in fixed.inputs:
        known = zip(sized(value, sizes), value.shape or (), strict=True)
        if value.shape is not None:
            value.shape = ir.Shape(dim if size is None else size for size, dim in known)
    return fixed
