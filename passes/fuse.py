"""All the families of fusions in the order in which they help each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.passes.convert_opset import convert, plan
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
    each target the form that is fastest there. The opset is raised where a fusion needs a newer
    operator, only as far as that, and never past what all operators of the model run in.
    """

    name: ClassVar[str] = "fuse"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    opset: int = option(24, "raise the opset no further than this; 0 keeps it")
    norm: bool = option(True, "fuse LayerNormalization, RMSNormalization, GroupNormalization")
    activation: bool = option(True, "fuse Gelu, Swish, HardSwish, Mish")
    linear: bool = option(True, "bring Gemm and MatMul to one form")
    rotary: bool = option(True, "fuse RotaryEmbedding")
    attention: bool = option(True, "fuse Attention")
    affine: bool = option(True, "take constant scales and shifts into weights and biases")

    def run(self, module: Module, ctx: Context) -> None:
        """Raise the opset, run the families that are asked for, and clear away what is left."""
        maker = ctx.maker
        worth = self._worth(module, ctx)
        if worth > module.opset:
            ctx.maker = f"{maker}/convert-opset"
            convert(module, worth, ctx, runs=True)
        for step in self._families():
            ctx.maker = f"{maker}/{step.name}"
            step.run(module, ctx)
        ctx.maker = f"{maker}/{EliminateDead.name}"
        EliminateDead().run(module, ctx)
        ctx.maker = maker

    def _worth(self, module: Module, ctx: Context) -> int:
        """The opset that the fusions need which a copy of the module allows in a higher one."""
        top = self.opset if ctx.target is None else min(self.opset, ctx.target.can.opset[1])
        for version in range(top, module.opset, -1):
            blocked = next(
                (made.blocked[0] for made in plan(module, version, ctx, runs=True) if made.blocked),
                None,
            )
            if blocked is None:
                trial, said = module.clone(), Context(target=ctx.target)
                convert(trial, version, said, runs=True)
                for step in self._families():
                    if not isinstance(
                        step, FuseAffine
                    ):  # which needs no opset, and looks at weights
                        step.run(trial, said)
                return said.opset
            if version == top:
                node, reason = blocked
                ctx.decline(node, f"{reason}, so opset {version} is not reached", by="opset")
        return 0

    def _families(self) -> Iterator[Pass]:
        families: tuple[tuple[bool, Pass], ...] = (
            (self.norm, FuseNorm()),
            (self.activation, FuseActivation()),
            (self.linear, FuseLinear()),
            (self.rotary, FuseRotary()),
            (self.attention, FuseAttention()),
            (self.affine, FuseAffine()),
        )
        yield from (step for wanted, step in families if wanted)
