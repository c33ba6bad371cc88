"""All the families of fusions in the order in which they help each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.passes.convert_opset import ConvertOpset
from aigcc.passes.eliminate_dead import EliminateDead
from aigcc.passes.fuse_activation import FuseActivation
from aigcc.passes.fuse_affine import FuseAffine
from aigcc.passes.fuse_attention import FuseAttention
from aigcc.passes.fuse_linear import FuseLinear
from aigcc.passes.fuse_norm import FuseNorm
from aigcc.passes.fuse_rotary import FuseRotary
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass


@dataclasses.dataclass(frozen=True)
class Fuse(Pass):
    """Replace what exporters spell out by the operators that ONNX has for it.

    The families are fuse-norm, fuse-activation, fuse-linear, fuse-rotary, fuse-attention and
    fuse-affine. They write standard operators, whatever a target's kernels are: legalize then gives
    each target the form that is fastest there.
    """

    name: ClassVar[str] = "fuse"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    opset: int = option(24, "raise the opset to this first, as far as the target goes; 0 keeps it")
    norm: bool = option(True, "fuse LayerNormalization, RMSNormalization, GroupNormalization")
    activation: bool = option(True, "fuse Gelu, Swish, HardSwish, Mish")
    linear: bool = option(True, "bring Gemm and MatMul to one form")
    rotary: bool = option(True, "fuse RotaryEmbedding")
    attention: bool = option(True, "fuse Attention")
    affine: bool = option(True, "take constant scales and shifts into weights and biases")

    def run(self, module: Module, ctx: Context) -> None:
        """Raise the opset, run the families that are asked for, and clear away what is left."""
        maker = ctx.maker
        for step in self._steps(module, ctx):
            ctx.maker = f"{maker}/{step.name}"
            step.run(module, ctx)
        ctx.maker = maker

    def _steps(self, module: Module, ctx: Context) -> Iterator[Pass]:
        opset = self.opset
        if ctx.target is not None:
            opset = min(opset, ctx.target.can.opset[1])
        if opset > module.opset:
            yield ConvertOpset(version=opset)
        families: tuple[tuple[bool, Pass], ...] = (
            (self.norm, FuseNorm()),
            (self.activation, FuseActivation()),
            (self.linear, FuseLinear()),
            (self.rotary, FuseRotary()),
            (self.attention, FuseAttention()),
            (self.affine, FuseAffine()),
        )
        yield from (step for wanted, step in families if wanted)
        yield EliminateDead()
