"""Factors rounded to float16 and sums in float32: what a target multiplies so is what runs here."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.streaming.stream import Stream
from aigcc.ir.edit import remove_node
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant, derive
from aigcc.options import option
from aigcc.passes.fp16_plan import FLOAT, HALF, LARGEST, is_float
from aigcc.passes.weights_fp16 import relative_error
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_ROOM = 0.5  # of the largest float16: other inputs than the samples go further
_LOSS = 1e-3  # rounding alone costs at most 0.00049, the rest is underflow


@dataclasses.dataclass(frozen=True)
class Fp16Operands(Pass):
    """Round the factors of products and convolutions to float16, and add up in float32.

    ```
    y = MatMul (x, w)  →  h = Cast <to = 10> (x); a = Cast <to = 1> (h);
                          b = Cast <to = 1> (w_fp16); y = MatMul (a, b)
    ```
    For compilers that make one product of float16 numbers with float32 sums of the right side. All
    else stays float32. A product keeps float32 factors, with a remark, where one of them comes near
    the largest float16 or falls below the smallest, in the weights or on the samples, or where no
    sample shows it. Weights are rounded when they are saved, and stay mapped until then.
    """

    name: ClassVar[str] = "fp16-operands"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fold-constants", "fuse", "legalize")
    exact: ClassVar[bool] = False
    measure: int = option(2, "samples that show what float16 loses; 0 trusts that it is nothing")

    def run(self, module: Module, ctx: Context) -> None:
        """Round the factors of every product, each value once."""
        products = [
            node
            for graph in [module.graph, *module.graph.subgraphs()]
            for node in graph
            if node.op_type in PRODUCTS and node.domain in ("", "ai.onnx")
        ]
        factors = {value for node in products for value in node.inputs[:2] if is_float(value)}
        unfit = self._unfit(module, factors, ctx)
        rounding = _Rounding(module, Names(module))
        for node in products:
            pair = [value for value in node.inputs[:2] if value is not None and is_float(value)]
            reason = next((unfit[value] for value in pair if value in unfit), "")
            if len(pair) < 2:
                continue
            if reason:
                ctx.decline(node, f"kept float32: {reason}")
            elif ctx.rewrite(node, f"factors of {node.op_type} in float16"):
                for position, value in enumerate(pair):
                    node.replace_input_with(position, rounding.of(value))
        rounding.drop_unused()

    def _unfit(
        self, module: Module, factors: set[ir.Value | None], ctx: Context
    ) -> dict[ir.Value, str]:
        """The factors that float16 cannot hold, with the reason."""
        found: dict[ir.Value, str] = {}
        computed: dict[str, ir.Value] = {}
        main = set(module.graph.inputs).union(*(node.outputs for node in module.graph))
        for value in factors:
            tensor = constant(value)
            if value is None:
                continue
            if tensor is not None:
                ctx.progress(f"reading {value.name}", 0.0)
                if reason := _misfit(str(value.name), tensor.numpy(), 1.0):
                    found[value] = reason
                if isinstance(tensor, MappedTensor):
                    tensor.release()
            elif value in main:
                computed[str(value.name)] = value
            elif ctx.samples is not None and self.measure:
                found[value] = f"{value.name} is in a branch, where no sample shows it"
        if ctx.samples is None or not self.measure or not computed:
            return found

        def look(name: str, array: npt.NDArray[Any]) -> None:
            if reason := _misfit(name, array, _ROOM):
                found.setdefault(computed[name], f"{reason} on the samples")

        with Stream(module, computed) as stream:
            for feeds in itertools.islice(ctx.samples, self.measure):
                ctx.progress("looking for what float16 cannot hold", 0.0)
                stream.run(feeds, look)
        return found


def _misfit(name: str, array: npt.NDArray[Any], room: float) -> str:
    """Why float16 cannot hold an array, or nothing; NaN and infinities are the same in it."""
    finite = array if np.isfinite(array).all() else array[np.isfinite(array)]
    reach = float(max(finite.max(initial=0), -finite.min(initial=0)))
    if reach > LARGEST * room:
        return f"{name} reaches {reach:.3g}"
    if relative_error(finite) > _LOSS:
        return f"{name} reaches only {reach:.3g}, which float16 does not resolve"
    return ""


@dataclasses.dataclass
class _Rounding:
    """Makes the rounded form of each value once, in the graph where the value is."""

    module: Module
    names: Names
    made: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)

    def of(self, value: ir.Value) -> ir.Value:
        """The value rounded to float16, in float32."""
        if value not in self.made:
            tensor = constant(value)
            half = self._cast(value, HALF) if tensor is None else self._narrow(value, tensor)
            self.made[value] = self._cast(half, FLOAT)
        return self.made[value]

    def drop_unused(self) -> None:
        """Remove the weights that only products had read."""
        for value in self.made:
            if value.uses() or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is not None and producer.op_type == "Constant":
                remove_node(producer)
            elif value.is_initializer() and value.graph is not None and not value.is_graph_input():
                del value.graph.initializers[str(value.name)]

    def _narrow(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        shape, name = tuple(tensor.shape.numpy()), self.names.fresh(f"{value.name}_fp16")
        narrowed = ir.Value(
            name=name,
            type=ir.TensorType(HALF),
            shape=ir.Shape(shape),
            const_value=derive(_half, tensor, dtype=HALF, shape=shape, name=name),
        )
        self.module.graph.register_initializer(narrowed)
        return narrowed

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """A cast right behind the value, in its own graph."""
        node = ir.Node(
            "",
            "Cast",
            [value],
            [ir.AttrInt64("to", int(to))],
            num_outputs=1,
            name=self.names.fresh(f"{value.name}/Cast"),
            metadata_props={"aigcc.made_by": Fp16Operands.name},
        )
        cast, producer = node.outputs[0], value.producer()
        cast.name = self.names.fresh(f"{value.name}_{'fp16' if to == HALF else 'rounded'}")
        cast.type, cast.shape = ir.TensorType(to), value.shape
        graph = value.graph if producer is None else producer.graph
        assert isinstance(graph, ir.Graph)
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(graph[0], node)
        return cast


def _half(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float16)
