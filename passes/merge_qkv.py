"""Projections of one input to queries, keys and values become one matrix product."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import constant, derive
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder, remove_dead, replace_value


@dataclasses.dataclass(frozen=True)
class MergeQkv(Pass):
    """Merge the products of one input that lead to the same Attention, with their biases.

    ```
    q = MatMul (x, a); k = MatMul (x, b); v = MatMul (x, c); y = Attention (q, k, v)
        →      m = MatMul (x, abc); q, k, v = Split (m); y = Attention (q, k, v)
    ```
    For devices where starting a kernel costs more than the copy that Split makes. A target whose
    table says `merge_projections = false` is left alone.
    """

    name: ClassVar[str] = "merge-qkv"
    after: ClassVar[tuple[str, ...]] = ("fuse-attention", "fuse")

    def run(self, module: Module, ctx: Context) -> None:
        """Merge in every graph; no weight is read until the module is saved."""
        target = ctx.target
        if target is not None and not target.can.facts.get("merge_projections", True):
            ctx.decline(None, f"three products are as fast as one on {target.name}")
            return
        names = Names(module)
        for graph in module.graphs():
            opset = graph.opset_imports.get("", module.opset)
            for node in list(graph):
                if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
                    continue
                by_source: dict[ir.Value, list[_Projection]] = defaultdict(list)
                for value in node.inputs[:3]:
                    projection = _Projection.behind(value)
                    if projection is not None:
                        by_source[projection.source].append(projection)
                for projections in by_source.values():
                    if len(projections) < 2 or any(
                        p.product.graph is not graph for p in projections
                    ):
                        continue
                    if not _merge(Builder(graph, names, "", ctx.maker, opset), projections, ctx):
                        return


@dataclasses.dataclass(frozen=True)
class _Projection:
    """`source` times a constant matrix, plus maybe a constant row."""

    source: ir.Value
    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value

    @classmethod
    def behind(cls, value: ir.Value | None) -> _Projection | None:
        """The projection that leads to an input of Attention, maybe through a RotaryEmbedding."""
        node = value.producer() if value is not None else None
        if node is not None and node.op_type == "RotaryEmbedding" and node.inputs[0] is not None:
            value = node.inputs[0]
            node = value.producer()
        bias = None
        if node is not None and node.op_type == "Add":
            sides = list(node.inputs)
            bias = next((side for side in sides if _is_constant(side, rank=1)), None)
            product = next((side for side in sides if side is not bias), None)
            node = product.producer() if product is not None and bias is not None else None
        if value is None or node is None or node.op_type != "MatMul" or node.domain:
            return None
        source, weight = node.inputs
        if source is None or weight is None or not _is_constant(weight, rank=2):
            return None
        return cls(source, node, weight, bias, value)

    @property
    def width(self) -> int:
        """How many columns the matrix has."""
        tensor = constant(self.weight)
        assert tensor is not None
        return int(tensor.shape[1])  # type: ignore[arg-type]

    def obstacle(self) -> str:
        """Why this cannot be merged; empty where it can."""
        if len(self.weight.uses()) > 1:
            return "a weight is used elsewhere as well"
        if len(self.product.outputs[0].uses()) > 1 or self.product.outputs[0].is_graph_output():
            return "a projection is used before its bias is added"
        if any(key.startswith("aigcc.") for key in self.weight.metadata_props):
            return "an earlier pass decided something for a weight alone"
        return ""


def _is_constant(value: ir.Value | None, *, rank: int) -> bool:
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) == rank


def _merge(op: Builder, parts: list[_Projection], ctx: Context) -> bool:
    """Merge projections of one source; False when the run's limit is reached."""
    first = parts[0].product
    obstacle = next(filter(None, (part.obstacle() for part in parts)), "")
    if len({part.weight.dtype for part in parts}) > 1:
        obstacle = "the weights have different types"
    if len({part.product for part in parts}) < len(parts):
        obstacle = "one projection is used twice"
    if obstacle:
        ctx.decline(first, obstacle)
        return True
    if not ctx.rewrite(first, f"{len(parts)} projections of {parts[0].source.name} become one"):
        return False
    op.stem = f"{first.name or first.outputs[0].name}/merged"
    merged = op.MatMul(parts[0].source, op.constant(_beside(parts), "weight"))
    if any(part.bias is not None for part in parts):
        merged = op.Add(merged, op.constant(_end_to_end(parts), "bias"))
    widths = [part.width for part in parts]
    results = op.Split(merged, widths, axis=-1, _outputs=len(parts))
    for made in op.made:
        made.metadata_props["aigcc.made_by"] = ctx.maker
    products = {part.product for part in parts}
    op.graph.insert_before(next(node for node in op.graph if node in products), op.made)
    for part, result in zip(parts, results, strict=True):
        last = part.result.producer()
        replace_value(op.graph, part.result, result, op.names, fresh=True)
        remove_dead([last] if last is not None else [])
    return True


def _beside(parts: list[_Projection]) -> ir.LazyTensor:
    """The matrices beside each other: [rows, all columns]."""
    sources = [tensor for part in parts if (tensor := constant(part.weight)) is not None]
    rows = int(sources[0].shape[0])  # type: ignore[arg-type]
    return derive(
        lambda *arrays: np.concatenate(arrays, axis=1),
        *sources,
        dtype=sources[0].dtype,
        shape=[rows, sum(part.width for part in parts)],
        name="merged",
    )


def _end_to_end(parts: list[_Projection]) -> ir.LazyTensor:
    """The biases one after the other, zeros where there is none."""
    biases = [(constant(part.bias), part.width) for part in parts]
    dtype = next(tensor.dtype for tensor, _ in biases if tensor is not None)

    def join(*arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        given = iter(arrays)
        rows = [
            np.zeros(width, dtype.numpy())
            if tensor is None
            else np.broadcast_to(next(given), (width,))
            for tensor, width in biases
        ]
        return np.concatenate(rows)

    sources = [tensor for tensor, _ in biases if tensor is not None]
    total = sum(width for _, width in biases)
    return derive(join, *sources, dtype=dtype, shape=[total], name="merged")
