"""Linear layers in their shortest form: MatMul, Gemm, and what reshapes and transposes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from aigcc.analysis.extent import extent_of
from aigcc.ir.module import Module
from aigcc.ir.weights import constant
from aigcc.options import option
from aigcc.passes.conditions import (
    FLOATS,
    computed,
    keeping,
    product,
    rank,
    same_dims,
    size,
    spreads_along,
    unshared,
)
from aigcc.passes.magnitudes import are_ordinary, largest, resolution, smallest
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule, apply_rules


class MatMulAddToGemm(Rule):
    """MatMul(x, w) + b  ->  Gemm(x, w, b), for matrices x and w and a bias b a column"""

    name = "gemm"
    opset = 7

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any) -> Apply:
        return op.Add(op.MatMul(x, w), b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        columns = size(match.w, 1)
        if rank(match.x) != 2 or rank(match.w) != 2 or columns is None:
            return None
        if match.x.dtype not in FLOATS or not spreads_along(match.b, 1, 2, columns):
            return None
        bias = constant(match.b)
        if bias is not None and extent_of(bias).reach * resolution(match.x.dtype) >= 1:
            raise NoMatch("what is added is so large that it rounds each product")
        made: ir.Value = op.Gemm(match.x, match.w, match.b, _like=match.root.outputs[0])
        return made


class GemmToMatMul(Rule):
    """Gemm(x, w, b)  ->  MatMul(x, w) + b"""

    name = "matmul"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any = None) -> Apply:
        return op.Gemm(x, w, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        w = _plain_weight(op, match.root)
        if w is None:
            raise NoMatch("it transposes or scales what is not a constant of its own")
        result = match.root.outputs[0]
        made: ir.Value = op.MatMul(match.x, w, _like=result)
        if match.b is not None:
            made = op.Add(made, match.b, _like=result)
        return made


def _plain_weight(op: Builder, gemm: ir.Node) -> ir.Value | None:
    """The weight that a MatMul needs to do the same, or None where only Gemm can do it."""
    attributes, weight = gemm.attributes, gemm.inputs[1]
    factors = [attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if weight is None or attributes.get_int("transA", 0) == 1 or factors != [1.0, 1.0]:
        return None
    if not attributes.get_int("transB", 0):
        return weight
    if constant(weight) is None:
        return None
    tensor = unshared(weight, "the weight")
    shape = tuple(tensor.shape.numpy())[::-1]
    return computed(op, np.transpose, tensor, like=tensor, shape=shape, name="weight")


class GemmScales(Rule):
    """Gemm(x, w, b, α, β)  ->  Gemm(x, α · w, β · b), for constants w and b"""

    name = "gemm-scales"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any = None) -> Apply:
        return op.Gemm(x, w, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        alpha, beta = (match.root.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        if alpha == 1.0 and (beta == 1.0 or match.b is None):
            return None
        weight = _times(op, match.w, alpha, "weight")
        bias = match.b if match.b is None else _times(op, match.b, beta, "bias")
        made: ir.Value = op.Gemm(
            match.x,
            weight,
            *([] if bias is None else [bias]),
            **keeping(match.root, "alpha", "beta"),
            _like=match.root.outputs[0],
        )
        return made


def _times(op: Builder, value: ir.Value, factor: float, what: str) -> ir.Value:
    if factor == 1.0:
        return value
    tensor = unshared(value, f"the {what}")
    reach = extent_of(tensor).reach * abs(factor)
    if not are_ordinary(np.array([factor]), tensor.dtype) or reach > largest(tensor.dtype):
        raise NoMatch(f"{factor:.3g} times the {what} may leave the range of its type")
    if 0 < reach < 4 * smallest(tensor.dtype):
        raise NoMatch(f"{factor:.3g} times the {what} is too small for its type")
    shape = tuple(tensor.shape.numpy())
    return computed(
        op, lambda x: x * x.dtype.type(factor), tensor, like=tensor, shape=shape, name=what
    )


class GemmTransposes(Rule):
    """Gemm(Transpose(x), w)  ->  Gemm(x, w, transA=1), and alike for w"""

    name = "gemm-transposes"
    shared = frozenset({"left", "right"})

    def pattern(self, op: PatternBuilder, x: Any, w: Any) -> Sequence[Apply]:
        left, right = op.Transpose(x, _as="left"), op.Transpose(w, _as="right")
        return [op.Gemm(left, w, _more=True), op.Gemm(x, right, _more=True)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        flips = "transA" if hasattr(match, "left") else "transB"
        transpose = match.left if hasattr(match, "left") else match.right
        if list(transpose.attributes.get_ints("perm", (1, 0))) != [1, 0]:
            return None
        attributes = keeping(match.root, flips)
        if not match.root.attributes.get_int(flips, 0):
            attributes[flips] = 1
        made: ir.Value = op.Gemm(
            match.x,
            match.w,
            *match.root.inputs[2:],
            **attributes,
            _like=match.root.outputs[0],
        )
        return made


class MatMulTransposed(Rule):
    """MatMul(x, Transpose(w))  ->  Gemm(x, w, transB=1), for matrices"""

    name = "matmul-transposed"
    opset = 11
    shared = frozenset({"transpose"})

    def pattern(self, op: PatternBuilder, x: Any, w: Any) -> Apply:
        return op.MatMul(x, op.Transpose(w, _as="transpose"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if rank(match.x) != 2 or rank(match.w) != 2 or match.x.dtype not in FLOATS:
            return None
        if list(match.transpose.attributes.get_ints("perm", (1, 0))) != [1, 0]:
            return None
        made: ir.Value = op.Gemm(match.x, match.w, transB=1, _like=match.root.outputs[0])
        return made


class UnflattenGemm(Rule):
    """Reshape(Gemm(Reshape(x, [-1, K]), w, b), [..., N])  ->  MatMul(x, w) + b"""

    name = "unflatten"
    shared = frozenset({"flat"})

    def pattern(self, op: PatternBuilder, x: Any, shape: Any, w: Any, result: Any) -> Apply:
        flat = op.Reshape(x, shape, _as="flat")
        return op.Reshape(op.Gemm(flat, w, _more=True, _as="gemm"), result)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, result, gemm = match.x, match.root.outputs[0], match.gemm
        sizes = [size(gemm.inputs[0], 1), size(gemm.outputs[0], 1)]
        if x.shape is None or result.shape is None or None in sizes:
            raise NoMatch("the shapes around the Gemm are not known")
        lead = _common_lead(x.shape, result.shape, *sizes)
        if lead is None:
            return None
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if bias is not None and not spreads_along(bias, 1, 2, sizes[1] or 0):
            raise NoMatch("the bias is not one number a column")
        w = _plain_weight(op, gemm)
        if w is None:
            raise NoMatch("the Gemm transposes or scales what is not a constant of its own")
        if len(x.shape) > lead + 1:
            x = op.Reshape(x, [*[0] * lead, sizes[0]])
        made: ir.Value = op.MatMul(x, w)
        if bias is not None:
            made = op.Add(made, bias, _like=made)
        if len(result.shape) > lead + 1:
            made = op.Reshape(made, [*[0] * lead, *result.shape[lead:]], _like=result)
        return made


def _common_lead(x: ir.Shape, result: ir.Shape, inner: int | None, outer: int | None) -> int | None:
    """How many leading dims (two or more) both shapes have in common, when the rest of `x` holds
    `inner` elements and the rest of `result` `outer`, and one of the rests is a single dim.
    """
    for lead in reversed(range(2, min(len(x), len(result)))):
        if lead + 1 not in (len(x), len(result)) or not same_dims(x[:lead], result[:lead]):
            continue
        if product(x[lead:]) == inner and product(result[lead:]) == outer:
            return lead
    return None


@dataclasses.dataclass(frozen=True)
class FuseLinear(Pass):
    """Bring linear layers to one form, without reshapes and transposes around them.

    ```
    f = Reshape (x, flat); g = Gemm (f, w, b); y = Reshape (g, full)
                                                →      m = MatMul (x, w); y = Add (m, b)
    ```
    Matrices (rank 2) end as Gemm or as MatMul and Add, as preferred; more dims always as MatMul.
    """

    name: ClassVar[str] = "fuse-linear"
    prefer: Literal["gemm", "matmul"] = option("gemm", "the form for matrices: gemm or matmul")

    def run(self, module: Module, ctx: Context) -> None:
        """Apply the rules of the preferred form everywhere."""
        common = (GemmScales(), GemmTransposes(), UnflattenGemm())
        towards: tuple[Rule, ...] = (MatMulAddToGemm(), MatMulTransposed())
        if self.prefer == "matmul":
            towards = (GemmToMatMul(),)
        apply_rules(module, (*common, *towards), ctx)
