"""Shapes that a model declares: only those of its inputs are law.

What is declared of any other value gives names to dims, and sizes where inference finds none.
Names that exporters give to whatever they do not know, such as `None` or `unk__7`, say nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import onnx_ir as ir
import sympy

from aigcc.ir.shapes.dims import Dim, is_known, to_dim, to_dims, to_shape

_NAMELESS = re.compile(
    r"(none|null|nan|n/?a|unk(nown)?|undef(ined)?|dyn(amic)?|any|variable)[\W_\d]*"
    r"(dim(ension)?[\W_\d]*)?|[\W_\d]*",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=4096)
def is_nameless(text: str | None) -> bool:
    """Whether the name of a dim says nothing, so that two of one name need not be equal."""
    return text is None or _NAMELESS.fullmatch(text) is not None


def name_inputs(graph: ir.Graph) -> None:
    """Give the dims of a graph's inputs whose names say nothing names of their own."""
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and is_known(to_dim(dim)) and is_nameless(dim.value):
                shape = (value.shape or ir.Shape([])).copy()
                shape[axis] = f"{value.name}_dim_{axis}"
                value.shape = shape


def symbols_of(graph: ir.Graph) -> frozenset[sympy.Basic]:
    """The symbols in the shapes of a graph's inputs."""
    dims = [dim for value in graph.inputs for dim in to_dims(value.shape) or ()]
    return frozenset(
        symbol for dim in dims if isinstance(dim, sympy.Expr) for symbol in dim.free_symbols
    )


@dataclasses.dataclass
class Declarations:
    """What the declared names of dims stand for.

    Attributes:
        of_inputs: The symbols in the shapes of the model's inputs, which mean what they say.
        others: What each other name is: a dim, or the place of one that nobody knows.
    """

    of_inputs: frozenset[sympy.Basic] = frozenset()
    others: dict[sympy.Symbol, object] = dataclasses.field(default_factory=dict)

    def copy(self) -> Declarations:
        """The same to try something out with."""
        return Declarations(self.of_inputs, dict(self.others))

    def settle(self, value: ir.Value, dims: list[Dim]) -> ir.Shape | None:
        """Give a value the dims that its node makes, under the names that it declares.

        Returns:
            The declared shape, if it is false.
        """
        declared = value.shape
        if declared is None:
            value.shape = to_shape(dims)
            return None
        old = [to_dim(dim) for dim in declared]
        if len(old) != len(dims) or any(map(_differ, old, dims)):
            value.shape = to_shape(dims)
            return declared
        merged = [
            self._named(*pair, (value, axis))
            for axis, pair in enumerate(zip(old, dims, strict=True))
        ]
        if any(new is not before for new, before in zip(merged, old, strict=True)):
            value.shape = to_shape(merged)
        return None

    def _named(self, old: Dim, new: Dim, place: tuple[ir.Value, int]) -> Dim:
        """A dim that is `new`, under the name `old` where that stands for nothing else."""
        if isinstance(old, int):
            return new if is_known(new) else old
        if old == new or isinstance(new, int):
            return new
        if isinstance(old, sympy.Symbol) and not is_nameless(old.name):
            if old in self.of_inputs:
                return new if is_known(new) else old
            meaning = new if is_known(new) else place
            if self.others.setdefault(old, meaning) == meaning:
                return old
        return new


def _differ(a: Dim, b: Dim) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b
