"""The operators that a build of ONNX Runtime for one model must contain."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping

from aigcc.ir.module import Module

Operators = Mapping[tuple[str, int], frozenset[str]]


def required_operators(module: Module) -> Operators:
    """(domain, version) to operator names, over all nodes of a module.

    Versions are those in which an operator was last defined, as ONNX Runtime registers its kernels.
    Calls of model-local functions are replaced by what the functions hold.
    """
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    functions = module.model.functions
    for graph in module.graphs():
        for node in graph:
            if node.op_identifier() in functions or node.op_type == "Constant":
                continue
            domain = "" if node.domain == "ai.onnx" else node.domain
            opset = graph.opset_imports.get(domain) or module.model.opset_imports.get(domain, 1)
            found[domain or "ai.onnx", _since(domain, node.op_type, opset)].add(node.op_type)
    return {key: frozenset(names) for key, names in sorted(found.items())}


def to_config(*parts: Operators) -> str:
    """All of the operators as the text that ONNX Runtime's `--include_ops_by_config` takes."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for part in parts:
        for key, names in part.items():
            found[key] |= names
    lines = [
        f"{domain};{version};{','.join(sorted(names))}"
        for (domain, version), names in sorted(found.items())
    ]
    return "".join(f"{line}\n" for line in lines)


def names_in(config: str) -> list[str]:
    """The operators of a configuration without types, as `Op` or `domain::Op`, sorted."""
    lines = [line.split(";") for line in config.splitlines()]
    return sorted(
        name if domain == "ai.onnx" else f"{domain}::{name}"
        for domain, _, names in lines
        for name in names.split(",")
    )


def _since(domain: str, name: str, opset: int) -> int:
    versions = _versions().get((domain, name), ())
    return max((version for version in versions if version <= opset), default=opset)


@functools.cache
def _versions() -> dict[tuple[str, str], list[int]]:
    """The versions of every operator that the installed ONNX Runtime knows."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for schema in state.get_all_operator_schema():
        found[schema.domain, schema.name].append(schema.since_version)
    return found
