"""The dims of an exported torch program: their names and ranges, for the module made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ranges import Range, declare, invert, solve, symbols

if TYPE_CHECKING:
    import torch

_ASSUMED = 2  # what torch takes for the smallest size where nothing is said; less runs as well


def repair_ranges(program: torch.export.ExportedProgram) -> None:
    """Forget the ranges of expressions, which torch reads back from a .pt2 and then trips over."""
    for dim, _ in _dynamic(program, list(program.graph_signature.user_inputs)):
        known = dim.node.shape_env.var_to_range
        for expression in [key for key in known if not key.is_Symbol]:
            del known[expression]


def keep_dims(
    module: Module, program: torch.export.ExportedProgram, dynamic_shapes: Any = None
) -> None:
    """Call dims in all of a module as its inputs call them, and write down their ranges."""
    names: dict[str, str] = {}
    examples = []
    for value in module.inputs:
        for dim, axis in _dynamic(program, [value.name]):
            given = (value.shape or ())[axis]
            theirs, ours = _free(dim), sorted(symbols(given))
            if len(theirs) == len(ours) == 1:
                names.setdefault(theirs[0], ours[0])
            if not isinstance(given, int) and dim.node.hint is not None:
                examples.append((given, int(dim.node.hint)))
    _rename(module, names)
    sizes, asked = solve(examples), _asked(dynamic_shapes)
    ranges = {}
    for symbol, found in _ranges(program).items():
        if symbol in names:
            name = names[symbol]
            low = asked.get(name, 0)
            low = low if low == _ASSUMED else found.smallest
            ranges[name] = Range(low, found.largest, sizes.get(name))
    declare(module, ranges)


def _asked(dynamic_shapes: Any) -> dict[str, int]:
    """The smallest sizes of the dims that the user made."""
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(dynamic_shapes)
    dims = [getattr(leaf, "root", leaf) for leaf in leaves]
    return {dim.__name__: dim.min for dim in dims if isinstance(dim, torch.export.Dim)}


def _ranges(program: torch.export.ExportedProgram) -> dict[str, Range]:
    """By torch's symbol; one of which only multiples are dims has the range of those."""
    found: dict[str, Range] = {}
    plain = {
        str(dim.node.expr)
        for dim, _ in _dynamic(program, list(program.graph_signature.user_inputs))
        if dim.node.expr.is_Symbol
    }
    for expression, bounds in program.range_constraints.items():
        low, high = _bound(bounds.lower) or 0, _bound(bounds.upper)
        free = [str(symbol) for symbol in expression.free_symbols]
        if expression.is_Symbol:
            found.setdefault(str(expression), Range(1 if low == _ASSUMED else low, high))
        elif len(free) == 1 and free[0] not in plain:
            dim = ir.SymbolicDim(str(expression))
            above = None if high is None else invert(dim, free[0], high + 1, {})
            found[free[0]] = Range(
                invert(dim, free[0], low, {}) or 0, None if above is None else above - 1
            )
    return found


def _bound(number: Any) -> int | None:
    """None for an infinite one."""
    return int(number) if number.is_Integer and abs(number) < 1 << 31 else None


def _free(dim: Any) -> list[str]:
    return sorted(str(symbol) for symbol in dim.node.expr.free_symbols)


def _dynamic(program: torch.export.ExportedProgram, names: list[Any]) -> Iterator[tuple[Any, int]]:
    """The dims of some inputs that vary, as torch has them, and their axes."""
    import torch

    wanted = set(names)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in wanted and isinstance(value, torch.Tensor):
            for axis, dim in enumerate(value.shape):
                if isinstance(dim, torch.SymInt):
                    yield dim, axis


def _rename(module: Module, names: dict[str, str]) -> None:
    """Give symbols their names in all shapes but those of the inputs."""
    fresh = {old: new for old, new in names.items() if old != new}
    if not fresh:
        return
    for graph in module.graphs():
        for node in graph:
            for value in node.outputs:
                if value.shape is not None:
                    value.shape = ir.Shape(_renamed(dim, fresh) for dim in value.shape)


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or not symbols(dim) & names.keys():
        return dim
    text = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(dim.value))
    return ir.SymbolicDim(text)
