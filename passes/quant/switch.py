"""A module in which nodes run as they are or quantised, as asked: quality of many choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import Scheme, Weight
from aigcc.passes.quant.region import RangeOf, Regions
from aigcc.runtime import OrtSession

_SELECTOR = "aigcc_precision"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A node of a module, by its position in the main graph, and the schemes it may take."""

    position: int
    weight: Weight
    schemes: tuple[Scheme, ...]


class Switch:
    """One program for all choices: each node becomes an `If` for each of its schemes.

    Only the branch that is taken is computed, so trying a choice costs one run, and no program is
    built for it.

    Args:
        module: The module; it is not changed.
        choices: The nodes that may be quantised.
        range_of: The calibrated range of an activation.
        threads: For ONNX Runtime.
    """

    def __init__(
        self,
        module: Module,
        choices: Sequence[Choice],
        range_of: RangeOf,
        threads: int | None = None,
    ) -> None:
        made = module.clone()
        nodes = list(made.graph)
        names = Names(made)
        readers: dict[ir.Value, ir.Value] = {}
        regions = Regions(
            made.graph,
            names,
            "switch",
            made.opset,
            lambda value, scheme: range_of(readers.get(value, value), scheme),
        )
        self._selectors: dict[tuple[int, str], str] = {}
        for choice in choices:
            node = nodes[choice.position]
            for scheme in choice.schemes:
                selector = ir.Value(
                    name=names.fresh(_SELECTOR),
                    type=ir.TensorType(ir.DataType.BOOL),
                    shape=ir.Shape([]),
                )
                made.graph.inputs.append(selector)
                assert selector.name is not None
                self._selectors[choice.position, scheme.name] = selector.name
                node = _branch(made, node, choice, scheme, selector, regions)
                readers[_innermost(node).outputs[0]] = node.outputs[0]
        self._session = OrtSession(made, threads=threads)

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], chosen: Collection[tuple[int, str]]
    ) -> dict[str, npt.NDArray[Any]]:
        """All outputs with some nodes quantised, each given as its position and a scheme's name."""
        switches = {name: np.array(key in chosen) for key, name in self._selectors.items()}
        return self._session.run({**feeds, **switches})


def _branch(
    module: Module,
    node: ir.Node,
    choice: Choice,
    scheme: Scheme,
    selector: ir.Value,
    regions: Regions,
) -> ir.Node:
    """Put `node` into the else branch of an If, and its quantised form into the other."""
    graph, old = module.graph, node.outputs[0]
    inner = _innermost(node)
    region = regions.make(inner, choice.weight, scheme)
    graph.insert_before(node, region.shared)
    chosen = ir.Graph([], [region.result], nodes=region.made, name="quantised")
    merged = ir.Node("", "If", [selector], num_outputs=1, name=regions.names.fresh("switch"))
    merged.outputs[0].type, merged.outputs[0].shape = old.type, old.shape
    # the name stays with what everybody reads: calibration goes by it
    merged.outputs[0].name, old.name = old.name, regions.names.fresh("switched")
    graph.insert_before(node, merged)
    old.replace_all_uses_with(merged.outputs[0], replace_graph_outputs=True)
    graph.remove(node)
    other = ir.Graph([], [old], nodes=[node], name="full")
    merged.attributes["then_branch"] = ir.AttrGraph("then_branch", chosen)
    merged.attributes["else_branch"] = ir.AttrGraph("else_branch", other)
    return merged


def _innermost(node: ir.Node) -> ir.Node:
    while node.op_type == "If":
        node = next(iter(node.attributes["else_branch"].as_graph()))
    return node
