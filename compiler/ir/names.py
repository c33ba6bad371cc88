"""Fresh names that clash with nothing in a module."""

from __future__ import annotations

from aigcc.ir.module import Module


def name_apart(module: Module, *, every: bool = False) -> None:
    """Let no two nodes share a name.

    Args:
        module: Changed in place.
        every: Also give nodes without a name one, after their first output.
    """
    names, seen = Names(module), set()
    for node in module.nodes():
        if node.name and node.name in seen:
            node.name = names.fresh(node.name)
        elif every and not node.name:
            node.name = names.fresh(f"{node.op_type}_{node.outputs[0].name}")
        seen.add(node.name)


class Names:
    """Hands out names that no value or node of the module has."""

    def __init__(self, module: Module) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}
        for graph in module.graphs():
            self._used.update(value.name or "" for value in graph.inputs)
            for node in graph:
                self._used.add(node.name or "")
                self._used.update(value.name or "" for value in node.outputs)
        for graph in [module.graph, *module.graph.subgraphs()]:
            self._used.update(graph.initializers)

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_2`, `stem_3`, ... when that is taken."""
        name = stem
        while name in self._used:
            number = self._next.get(stem, 1) + 1
            self._next[stem] = number
            name = f"{stem}_{number}"
        self._used.add(name)
        return name
