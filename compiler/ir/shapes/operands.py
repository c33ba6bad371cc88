"""What rules of dims are made of: broadcasting, and lists that may come from inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import onnx_ir as ir
import sympy

from aigcc.ir.shapes.dims import UNKNOWN, Dim, is_known, maximum
from aigcc.ir.shapes.site import Site, Untraceable

Dims = list[Dim] | None
Type = ir.TypeProtocol | None
Rule = Callable[[Site], Sequence[Dims]]


def broadcast(*operands: Dims) -> Dims:
    """The dims of an elementwise result, by the rules of multidirectional broadcasting."""
    known = [dims for dims in operands if dims is not None]
    if len(known) < len(operands):
        return None
    columns = zip_longest(*(reversed(dims) for dims in known), fillvalue=1)
    return [_broadcast_dim(column) for column in columns][::-1]


def _broadcast_dim(dims: Sequence[Dim]) -> Dim:
    wide = [dim for dim in dims if dim != 1]
    for dim in wide:
        # A static dim above 1 decides alone: the others are equal to it, or 1.
        if isinstance(dim, int):
            return dim
    if not wide:
        return 1
    # Of two dims that broadcast, each at least 1, the result is the greater, where that is decided.
    greatest = maximum(*wide)
    return UNKNOWN if isinstance(greatest, sympy.Max) else greatest


def matmul(left: Dims, right: Dims) -> Dims:
    """The dims of a matrix product of stacks of matrices, or of vectors."""
    if left is None or right is None:
        return None
    stacks = broadcast(left[:-2], right[:-2]) or []
    return [*stacks, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]


def same(site: Site) -> Sequence[Dims]:
    """The first output has the dims of the first input."""
    return [site.dims(0)]


def or_none(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or None where that is known only when the model runs."""
    try:
        return read(*arguments)
    except Untraceable:
        return None


def from_sizes(site: Site, index: int) -> Dims:
    """The dims that input `index` lists; of the right rank at least, where that is known."""
    known, dims = site.known(index), site.dims(index)
    if known is not None:
        return [_checked(size) for size in known.ravel().tolist()]
    if dims is not None and len(dims) == 1 and isinstance(dims[0], int):
        return [UNKNOWN] * dims[0]
    return None


def _checked(size: Dim) -> Dim:
    return size if isinstance(size, sympy.Expr) or size >= 0 else UNKNOWN


def agreed(dims: Sequence[Dim]) -> Dim:
    """One of some dims that are equal, a static one if possible."""
    known = [dim for dim in dims if is_known(dim)]
    return next((dim for dim in known if isinstance(dim, int)), known[0] if known else UNKNOWN)
