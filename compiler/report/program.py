"""What `artifact.json` keeps of the modules, so that the report can be made from it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from aigcc.analysis.cost import constants, count_work, op_name, with_sizes
from aigcc.ir.module import Module
from aigcc.ir.storage.loading import file_bytes
from aigcc.options import show
from aigcc.pipeline.manager import Pass, PassRun
from aigcc.report.weights import describe_weights, nbytes
from aigcc.synthetic import choose_dims


def describe_program(
    original: Module, module: Module, pipeline: Iterable[Pass], runs: Iterable[PassRun]
) -> dict[str, Any]:
    """Passes, operators, weights and work of a build; reads no weight, changes nothing.

    Args:
        original: Before the first pass.
        module: After the last one.
        pipeline: The passes.
        runs: What each of them did.
    """
    sizes = choose_dims(original)
    states = {"before": original, "after": module}
    return {
        "passes": [
            {
                "text": show(current, current.name, explicit=True),
                "rewrites": run.rewrites,
                "nodes": run.nodes_after,
            }
            for current, run in zip(pipeline, runs, strict=True)
        ],
        "operators": {when: _operators(state) for when, state in states.items()},
        "weights": describe_weights(original, module),
        "work": {
            "sizes": sizes,
            **{when: _work(state, sizes) for when, state in states.items()},
        },
    }


def stored_bytes(module: Module) -> int:
    """Bytes of the model as an .onnx file with its data: of its own, or of one that it would be."""
    path = module.path
    if path is not None and path.suffix == ".onnx" and path.is_file():
        return file_bytes(path)
    bare = module.clone()
    for graph in [bare.graph, *bare.graph.subgraphs()]:
        graph.initializers.clear()
    structure: int = ir.to_proto(bare.model).ByteSize()
    return structure + sum(nbytes(tensor) for _, tensor in constants(module))


def _operators(module: Module) -> dict[str, int]:
    counts = Counter(op_name(node) for node in module.nodes())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _work(module: Module, sizes: Mapping[str, int]) -> dict[str, Any]:
    sized = with_sizes(module, sizes)
    work = count_work(sized, sizes)
    return {
        "operations": work.flops,
        "by_operator": work.by_op,
        "unknown": work.unknown,
    }
