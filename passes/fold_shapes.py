"""Shape arithmetic that comes out the same for every input becomes a constant."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.values import Values
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder, remove_dead, replace_value

_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL})


@dataclasses.dataclass(frozen=True)
class FoldShapes(Pass):
    """Replace integers that are traced from shapes and constants to known numbers.

    ```
    s = Shape (x); c = Gather (s, one)      →      c = 64      with x: float[N, 64]
    ```
    """

    name: ClassVar[str] = "fold-shapes"

    def run(self, module: Module, ctx: Context) -> None:
        """Trace every small integer value; those used by other traced values die as dead code."""
        names = Names(module)
        for root, opset in module.roots():
            values = Values(opset, defaults_are_constant=module.model.ir_version <= 3)
            graphs = (
                [*root.subgraphs()] if isinstance(root, ir.Function) else [root, *root.subgraphs()]
            )
            for graph in graphs:
                for node in graph:
                    if len(node.outputs) == 1 and not _fold(graph, node, values, opset, names, ctx):
                        return


def _fold(
    graph: GraphLike, node: ir.Node, values: Values, opset: int, names: Names, ctx: Context
) -> bool:
    old = node.outputs[0]
    if node.op_type == "Constant" or old.dtype not in _INTEGERS or old.is_graph_output():
        return True
    if not old.uses() or (old.shape is not None and len(old.shape) > 1):
        return True
    known = values.get(old)
    if known is None or not all(isinstance(element, int) for element in known.ravel().tolist()):
        return True
    if not ctx.rewrite(node, f"{node.op_type} is always {known.tolist()}"):
        return False
    builder = Builder(graph, names, node.name or node.op_type, FoldShapes.name, opset)
    new = builder.constant(known.astype(old.dtype.numpy()))
    replace_value(graph, old, new, names)
    remove_dead([node])
    return True
