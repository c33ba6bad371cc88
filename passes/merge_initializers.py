"""Duplicate initializers: equal weights are stored once."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from aigcc.ir.module import Module
from aigcc.ir.weights import duplicates
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass


@dataclasses.dataclass(frozen=True)
class MergeInitializers(Pass):
    """Let values with the same type, shape and bytes share one initializer.

    Only weights that agree in type, shape and size are read, one at a time.
    """

    name: ClassVar[str] = "merge-initializers"

    def run(self, module: Module, ctx: Context) -> None:
        """Merge within each graph; a sub-graph's initializers are its own."""
        for graph in [module.graph, *module.graph.subgraphs()]:
            for kept, *others in duplicates(graph.initializers.values()):
                for value in others:
                    if value.is_graph_output():
                        continue
                    if not ctx.rewrite(None, f"initializer {value.name} equals {kept.name}"):
                        return
                    value.replace_all_uses_with(kept)
                    del graph.initializers[str(value.name)]
