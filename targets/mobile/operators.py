"""The operators that a build of ONNX Runtime for one model must contain, as its build reads them."""

from __future__ import annotations

import functools
import importlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aigcc.ir.module import Module

Operators = Mapping[tuple[str, int], frozenset[str]]


def required_operators(modules: Iterable[Module]) -> Operators:
    """(domain, version) to operator names, over all nodes of the modules.

    Versions are those in which an operator was last defined, as ONNX Runtime registers its kernels.
    Calls of model-local functions are replaced by what the functions hold.
    """
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for module in modules:
        functions = module.model.functions
        for graph in module.graphs():
            imports = graph.opset_imports if isinstance(graph, ir.Function) else {}
            for node in graph:
                if node.op_identifier() in functions:
                    continue
                domain = "" if node.domain == "ai.onnx" else node.domain
                opset = imports.get(domain) or module.model.opset_imports.get(domain, 1)
                found[domain or "ai.onnx", _since(domain, node.op_type, opset)].add(node.op_type)
    return {key: frozenset(names) for key, names in sorted(found.items())}


def to_config(operators: Operators, model: str) -> str:
    """The text that `build.sh --include_ops_by_config` of ONNX Runtime takes."""
    lines = [f"{domain};{version};{','.join(sorted(n))}" for (domain, version), n in operators.items()]
    return "\n".join([_header(model), *lines]) + "\n"


def config_of_ort(path: Path, *, types: bool) -> str:
    """The same for a `.ort` file, read from the file itself by ONNX Runtime's own tool.

    Args:
        path: The `.ort` file.
        types: Add the element types that each operator needs, for `--enable_reduced_operator_type_support`.
    """
    tools: Any = importlib.import_module("onnxruntime.tools.ort_format_model")
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    config = path.with_suffix(".config.tmp")
    tools.create_config_from_models([path], config, types)
    try:
        lines = config.read_text("utf-8").splitlines()
    finally:
        config.unlink()
    return "\n".join([_header(path.name), *(x for x in lines if not x.startswith("#"))]) + "\n"


def names_in(config: str) -> list[str]:
    """The operator names in a configuration without types, sorted."""
    lines = [line.split(";") for line in config.splitlines() if not line.startswith("#")]
    return sorted(
        name if domain == "ai.onnx" else f"{domain}::{name}"
        for domain, _, names in lines
        for name in names.split(",")
    )


def _header(model: str) -> str:
    return f"# Operators that {model} needs with graph_optimization_level up to ORT_ENABLE_EXTENDED."


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
