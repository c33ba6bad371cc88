"""Weights stored in float16 and computed with in float32: half the file, the same kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.liveness import used_values
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import derive
from aigcc.options import option
from aigcc.passes.fp16_sensitive import Sensitive
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_CHUNK = 1 << 22  # elements that are rounded at a time to see what that costs


@dataclasses.dataclass(frozen=True)
class WeightsFp16(Pass):
    """Store float32 weights as float16, with a Cast back where they are first used.

    ```
    <float[64,64] w> { y = MatMul (x, w) }
        →      <float16[64,64] w_fp16> { w = Cast <to = 1> (w_fp16); y = MatMul (x, w) }
    ```
    For runtimes that fold the Cast when they load the model: the file is half as large and every
    kernel stays the same. Weights are rounded when they are saved, one at a time, and each is read
    once here to measure the loss. A weight stays float32, with a remark, where float16 overflows or
    where max|w - fp16(w)| / max|w| is above `tolerance`; rounding alone costs at most 0.00049,
    the rest is underflow below 6e-8. So do those without which the outputs are further off on the
    samples than the target allows.
    """

    name: ClassVar[str] = "weights-fp16"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fold-constants", "fuse", "legalize")
    exact: ClassVar[bool] = False
    tolerance: float = option(1e-3, "the largest relative error of a weight")
    smallest: int = option(1024, "bytes; smaller weights stay as they are")

    def run(self, module: Module, ctx: Context) -> None:
        """Convert the initializers of all graphs; functions have none."""
        weights = list(self._candidates(module))
        errors = [_error(value, ctx) for value, _ in weights]
        for (value, user), error in zip(weights, errors, strict=True):
            if not error <= self.tolerance:
                reason = f"its relative error would be {error:.2g}"
                if error == np.inf:
                    reason = "it holds values that float16 has not"
                ctx.decline(user, f"{value.name} stays float32: {reason}", error=error)
        fit = [at for at, error in enumerate(errors) if error <= self.tolerance]

        def make(wanted: Sequence[int]) -> Module:
            made = module.clone()
            self._store(made, wanted, Context(maker=ctx.maker))
            return made

        search = Sensitive(module, make, ctx)
        kept = set(search.find(fit))
        for at in sorted(kept):
            value, user = weights[at]
            ctx.decline(
                user,
                f"{value.name} stays float32: else the outputs would be {search.error:.2g} off on "
                f"the samples, where {search.allowed:.2g} is allowed",
                error=errors[at],
            )
        self._store(module, [at for at in fit if at not in kept], ctx)

    def _candidates(self, module: Module) -> Iterator[tuple[ir.Value, ir.Node]]:
        """The weights that are large enough, each with the node of its graph that is first."""
        for graph in [module.graph, *module.graph.subgraphs()]:
            seen: set[ir.Value] = set()
            for node in graph:
                for value in list(used_values(node)):
                    if value not in seen and self._is_candidate(value, graph):
                        seen.add(value)
                        yield value, node

    def _store(self, module: Module, wanted: Sequence[int], ctx: Context) -> None:
        """Store those of the candidates that are wanted."""
        names, weights = Names(module), list(self._candidates(module))
        for at in wanted:
            value, user = weights[at]
            if not ctx.rewrite(user, f"{value.name} stored as float16"):
                return
            _narrow(value, user, names, self.name)

    def _is_candidate(self, value: ir.Value, graph: ir.Graph) -> bool:
        tensor = value.const_value
        return (
            tensor is not None
            and tensor.dtype == ir.DataType.FLOAT
            and tensor.nbytes >= self.smallest
            and graph.initializers.get(value.name or "") is value
            and not value.is_graph_input()
            and not value.is_graph_output()
        )


def _error(value: ir.Value, ctx: Context) -> float:
    """What rounding to float16 takes of a weight, relative to its largest element."""
    tensor = value.const_value
    assert tensor is not None
    ctx.progress(f"reading {value.name}", 0.0)
    error = relative_error(tensor.numpy())
    if isinstance(tensor, MappedTensor):
        tensor.release()
    return error


def _narrow(value: ir.Value, user: ir.Node, names: Names, maker: str) -> None:
    """Store a weight as float16, and widen it before the first node that uses it."""
    tensor, graph = value.const_value, user.graph
    assert tensor is not None and value.name is not None and graph is not None
    name = names.fresh(f"{value.name}_fp16")
    shape = tuple(tensor.shape.numpy())
    stored = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=ir.Shape(shape),
        const_value=derive(_round, tensor, dtype=ir.DataType.FLOAT16, shape=shape, name=name),
        metadata_props=dict(value.metadata_props),
    )
    wide = ir.Value(name=value.name, type=value.type, shape=value.shape)
    cast = ir.Node(
        "",
        "Cast",
        [stored],
        [ir.AttrInt64("to", ir.DataType.FLOAT)],
        outputs=[wide],
        name=names.fresh(f"{value.name}_cast"),
        metadata_props={"aigcc.made_by": maker},
    )
    value.replace_all_uses_with(wide)
    del graph.initializers[value.name]
    graph.register_initializer(stored)
    graph.insert_before(user, cast)


def _round(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float16)


def relative_error(array: npt.NDArray[Any]) -> float:
    """max|w - fp16(w)| / max|w|; infinite where float16 overflows or a value is not finite."""
    flat = array.reshape(-1)
    largest = error = 0.0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        with np.errstate(over="ignore", invalid="ignore"):
            difference = np.abs(chunk - _round(chunk).astype(np.float32))
        if not np.isfinite(difference).all():
            return np.inf
        error = max(error, float(difference.max()))
        largest = max(largest, float(np.abs(chunk).max()))
    return error / largest if largest else 0.0
