"""Kernels that keep NaN and infinities: TVM's own lose them in maxima, minima and clipping."""

from __future__ import annotations

from typing import Any

import numpy as np


def keep_special_numbers(program: Any) -> Any:
    """Let a maximum or minimum with NaN be NaN, and that of infinities alone be infinite.

    TVM takes whichever operand a comparison leaves over, starts reductions from the largest finite
    number, and an ArgMax at the index -1.
    """
    from tvm import s_tir, tirx
    from tvm_ffi.structural import structural_map

    def order(node: Any) -> Any:
        if not _is_float(node):
            return node
        is_max = isinstance(node, tirx.Max)
        if isinstance(node.b, tirx.FloatImm):  # which is never NaN
            return tirx.Select(node.a < node.b if is_max else node.a > node.b, node.b, node.a)
        wins = node.a > node.b if is_max else node.a < node.b
        return tirx.Select(tirx.any(wins, tirx.isnan(node.a)), node.a, node.b)

    def start(block: Any) -> Any:
        if block.init is None:
            return block
        found = []

        def number(leaf: Any) -> Any:
            if abs(leaf.value) < float(np.finfo(str(leaf.ty.dtype)).max):
                return leaf
            found.append(leaf)
            infinity = np.copysign(np.inf, leaf.value)
            return tirx.FloatImm(leaf.ty.dtype, infinity)

        def index(leaf: Any) -> Any:
            return tirx.IntImm(leaf.ty.dtype, 0) if found and leaf.value == -1 else leaf

        init = structural_map(block.init, (tirx.FloatImm, number))
        init = structural_map(init, (tirx.IntImm, index))
        return s_tir.SBlock(
            block.iter_vars, block.reads, block.writes, block.name_hint, block.body, init,
            block.alloc_buffers, block.match_buffers, block.annotations,
        )  # fmt: skip

    functions = {
        name: function.with_body(
            structural_map(function.body, [((tirx.Max, tirx.Min), order), (s_tir.SBlock, start)])
        )
        for name, function in program.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    program.update(functions)
    return program


def _is_float(node: Any) -> bool:
    return str(node.ty.dtype).startswith("float")
