"""Surgery on a module with onnx-graphsurgeon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import onnx_graphsurgeon as gs
import onnx_ir

from aigcc.ir.surgeon.back import bring_home
from aigcc.ir.surgeon.entry import Admission


class HasModel(Protocol):
    """A module, to say it without importing it."""

    model: onnx_ir.Model


@contextmanager
def surgery(module: HasModel | onnx_ir.Model) -> Iterator[gs.Graph]:
    """Hand out a module as a `gs.Graph`, and take it back when the block ends.

    Weights are lazy constants: nothing is read until `.values` is. What the block leaves alone
    comes back as it was, with the metadata, types and weights that onnx-graphsurgeon cannot hold,
    also under a new name. A list of graphs is shown as attributes `name[0]`, `name[1]` and so on.
    New nodes carry `aigcc.made_by = surgery`. Nodes come back in topological order. If the block
    raises, the module keeps its old graph.

        with surgery(module) as graph:
            for node in [n for n in graph.nodes if n.op == "Gelu"]:
                node.op, node.domain = "MyGeluPlugin", "my.plugins"
            graph.cleanup()

    Args:
        module: The module or model. Its graph and functions are replaced; do not keep old nodes or
            values.

    Raises:
        ModelError: If the graph that comes back is not legal: a value that nothing produces, a
            name that two values share, a cycle, an attribute of no ONNX type.
    """
    model = module if isinstance(module, onnx_ir.Model) else module.model
    guest = Admission(model)
    yield guest.graph
    bring_home(guest, model)
    invalidate = getattr(module, "invalidate", None)
    if invalidate is not None:
        invalidate()
