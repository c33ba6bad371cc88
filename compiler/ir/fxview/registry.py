"""The table of converters: how each operator is found, and how it wants its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import onnx_ir as ir

Convert = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Converter:
    """How one operator becomes torch.

    Attributes:
        function: Takes the node and its inputs, and returns its output, or a tuple of them. An
            input that is left out is None; one that is left out at the end is not passed.
        sizes: Inputs that come as a list of whole numbers (or as one proxy of such a list, where
            their count is not known) instead of a tensor.
        numbers: Inputs that come as a Python number where they are a constant of one element.
        settings: Inputs that are not passed: the converter asks for their constant.
        folds: Whether the node is computed at once when all of its inputs are small constants.
    """

    function: Convert
    sizes: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    folds: bool = True


CONVERTERS: dict[tuple[str, str], Converter] = {}


def converts(
    *ops: str,
    domains: Iterable[str] = ("",),
    sizes: tuple[int, ...] = (),
    numbers: tuple[int, ...] = (),
    settings: tuple[int, ...] = (),
    folds: bool = True,
) -> Callable[[Convert], Convert]:
    """Register a function as the converter of some operators (see `Converter`)."""

    def register(function: Convert) -> Convert:
        for domain in domains:
            for op in ops:
                assert (domain, op) not in CONVERTERS, op
                CONVERTERS[domain, op] = Converter(function, sizes, numbers, settings, folds)
        return function

    return register


def key(node: ir.Node) -> tuple[str, str]:
    """The domain and the name of a node's operator, with one spelling of the default domain."""
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type
