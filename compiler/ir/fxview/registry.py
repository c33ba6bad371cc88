"""The table of converters: how each operator is found, and how it wants its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import onnx_ir as ir

Convert = Callable[..., Any]
Wide = Literal["no", "bits", "order"]


@dataclasses.dataclass(frozen=True)
class Converter:
    """How one operator becomes torch.

    Attributes:
        function: Takes the node and its inputs, and returns its output, or a tuple of them. An
            input that is left out is None; one that is left out at the end is not passed.
        attributes: Those that the function follows, of all versions of the operator; it can read
            no others. A node that has another one is refused, unless that has its default value.
        neutral: Attributes that no schema tells the default of, and the value at which they change
            nothing.
        sizes: Inputs that come as a list of whole numbers (or as one proxy of such a list, where
            their count is not known) instead of a tensor.
        numbers: Inputs that come as a Python number where they are a constant of one element.
        settings: Inputs that are not passed: the converter asks for their constant.
        wide: How whole numbers of 16, 32 and 64 bits without a sign come, which torch can move and
            not compute with: "no", as they are; "bits", as numbers with a sign, of more bits where
            there are any; "order", the same, but those of 64 bits moved so that they keep their
            order. What is made of them goes back by itself.
        folds: Whether the node is computed at once when all of its inputs are small constants.
    """

    function: Convert
    attributes: frozenset[str] = frozenset()
    neutral: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    wide: Wide = "no"
    folds: bool = True


CONVERTERS: dict[tuple[str, str], Converter] = {}


def converts(
    *ops: str,
    domains: Iterable[str] = ("",),
    attributes: Iterable[str] = (),
    neutral: Mapping[str, Any] | None = None,
    sizes: tuple[int, ...] = (),
    numbers: tuple[int, ...] = (),
    settings: tuple[int, ...] = (),
    wide: Wide = "no",
    folds: bool = True,
) -> Callable[[Convert], Convert]:
    """Register a function as the converter of some operators (see `Converter`)."""

    def register(function: Convert) -> Convert:
        known = frozenset(attributes)
        converter = Converter(function, known, neutral or {}, sizes, numbers, settings, wide, folds)
        for domain in domains:
            for op in ops:
                assert (domain, op) not in CONVERTERS, op
                CONVERTERS[domain, op] = converter
        return function

    return register


def key(node: ir.Node) -> tuple[str, str]:
    """The domain and the name of a node's operator, with one spelling of the default domain."""
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type
