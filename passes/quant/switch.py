"""A module in which nodes run as they are or quantised, as asked: quality of many choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.exact import open_exact
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import Scheme, Weight
from aigcc.passes.quant.region import PLAIN, RangeOf, Regions, Tuning

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
        tuning: What else is known of activations.
        threads: For ONNX Runtime.
        integers: Whether it may run kernels of integers, as a deployed program does.
    """

    def __init__(
        self,
        module: Module,
        choices: Sequence[Choice],
        range_of: RangeOf,
        tuning: Tuning = PLAIN,
        threads: int | None = None,
        *,
        integers: bool = True,
    ) -> None:
        made = module.clone()
        nodes = list(made.graph)
        names = Names(made)
        self._selectors: dict[tuple[int, str], str] = {}
        for choice in choices:
            node = nodes[choice.position]
            branches = [
                _branch(made, node, choice.weight, scheme, names, range_of, tuning)
                for scheme in choice.schemes
            ]
            for scheme, branch in zip(choice.schemes, branches, strict=True):
                selector = ir.Value(
                    name=names.fresh(_SELECTOR),
                    type=ir.TensorType(ir.DataType.BOOL),
                    shape=ir.Shape([]),
                )
                made.graph.inputs.append(selector)
                assert selector.name is not None
                self._selectors[choice.position, scheme.name] = selector.name
                node = _insert(made, node, branch, selector, names)
        self._session = open_exact(made, threads, integers=integers)

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], chosen: Collection[tuple[int, str]]
    ) -> dict[str, npt.NDArray[Any]]:
        """All outputs with some nodes quantised, each given as its position and a scheme's name."""
        switches = {name: np.array(key in chosen) for key, name in self._selectors.items()}
        return self._session.run({**feeds, **switches})


def _branch(
    module: Module,
    node: ir.Node,
    weight: Weight,
    scheme: Scheme,
    names: Names,
    range_of: RangeOf,
    tuning: Tuning,
) -> ir.Graph:
    """A node in a scheme, with all that it needs: what stood outside the If would always be run."""
    made = ir.Graph([], [], nodes=[], name="quantised")
    regions = Regions(made, names, "switch", module.opset, range_of, tuning=tuning)
    region = regions.make(node, weight, scheme)
    made.extend([*region.shared, *region.made])
    made.outputs.append(region.result)
    return made


def _insert(
    module: Module, node: ir.Node, branch: ir.Graph, selector: ir.Value, names: Names
) -> ir.Node:
    """An If in the place of a node, with the node itself as its else branch."""
    graph, old = module.graph, node.outputs[0]
    merged = ir.Node("", "If", [selector], num_outputs=1, name=names.fresh("switch"))
    merged.outputs[0].type, merged.outputs[0].shape = old.type, old.shape
    merged.outputs[0].name, old.name = old.name, names.fresh("switched")
    graph.insert_before(node, merged)
    old.replace_all_uses_with(merged.outputs[0], replace_graph_outputs=True)
    graph.remove(node)
    other = ir.Graph([], [old], nodes=[node], name="full")
    merged.attributes["then_branch"] = ir.AttrGraph("then_branch", branch)
    merged.attributes["else_branch"] = ir.AttrGraph("else_branch", other)
    return merged
