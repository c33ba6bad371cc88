"""The opset that schemes need, and no higher."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.passes.convert_opset import ConvertOpset
from aigcc.passes.quant.exact import offered
from aigcc.passes.quant.placement import Scheme, weight_of
from aigcc.passes.quant.quantise import least_opset
from aigcc.passes.quant.trial import silent
from aigcc.pipeline.context import Context


def raise_for(wanted: Iterable[tuple[ir.Node, Scheme]], module: Module, ctx: Context) -> None:
    """Raise a module's opset as far as nodes need it for schemes, and the target's runtime goes.

    Where something in the module is in the way of that, it goes as far as others need it.

    Without a target nothing is raised: nobody knows what will run the module.
    """
    if ctx.target is None:
        return
    highest = ctx.target.can.opset[1]
    least = {least_opset(node, scheme) for node, scheme in wanted if node.op_type in scheme.kernels}
    for version in sorted(least, reverse=True):
        if module.opset < version <= highest:
            ConvertOpset(version=version).run(module, ctx)


def raised(module: Module, ctx: Context) -> Module:
    """A copy in the opset that all schemes are legal in, as far as the target's goes."""
    made = module.clone()
    known = offered(ctx.target).values()
    nodes = [node for node in made.graph if weight_of(node) is not None]
    raise_for([(node, scheme) for node in nodes for scheme in known], made, silent(ctx))
    return made
