"""Modules that ONNX Runtime computes exactly, whatever the processor, and alike in each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.weights import constant, derive
from aigcc.kernels import inexact_nodes
from aigcc.narrow import computes_in_bfloat16, in_float32
from aigcc.noise import equal_noise
from aigcc.pipeline.rules import Builder
from aigcc.runtime import OrtSession

_MIDDLE = 128

# Where operators have their factors, and the zero points of these.
_PLACES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "ConvInteger": ((0, 2), (1, 3)),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
    "DynamicQuantizeMatMul": ((1, 3),),
    "MatMulInteger": ((0, 2), (1, 3)),
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
    "QAttention": ((1, 7),),
    "QGemm": ((0, 2), (3, 5)),
    "QLinearConv": ((0, 2), (3, 5)),
    "QLinearMatMul": ((0, 2), (3, 5)),
}


def exact(module: Module, *, rounds: bool = False) -> Module:
    """The module, or a copy where ONNX Runtime would clip its products or has no kernels for it.

    Where it draws random numbers the copy draws equal ones in each run (see `equal_noise`).
    bfloat16, for which it has next to none, is computed in float32 (see `in_float32`).
    Factors of int8 are read as uint8, 128 higher, and so are their zero points: the kernels for
    two factors of uint8 do not clip. It is for running without optimisations; what ONNX Runtime
    makes of Q/DQ when it rewrites a module is left to it.

    Args:
        module: It is left as it is.
        rounds: Whether float32 in the place of bfloat16 is rounded as that is.
    """
    module = equal_noise(module)
    if computes_in_bfloat16(module):
        module = in_float32(module, rounds=rounds)
    if not inexact_nodes(module):
        return module
    made = module.clone()
    wrong, names = set(inexact_nodes(made)), Names(made)
    for graph in made.graphs():
        for node in graph:
            if node in wrong:
                builder = Builder(graph, names, node.name or node.op_type, "exact", made.opset)
                for factor, zero in _PLACES[node.op_type]:
                    _shift(node, factor, zero, builder)
                graph.insert_before(node, builder.made)
    return made


def open_exact(
    module: Module, threads: int | None = None, *, integers: bool = False, rounds: bool = False
) -> OrtSession:
    """A module in ONNX Runtime with its optimisations, but without kernels that clip here.

    Args:
        module: The module.
        threads: As for `OrtSession`.
        integers: Whether what stands between Q/DQ may be rewritten to kernels of integers, which
            round activations that no Q/DQ rounds, too; not where they would clip.
        rounds: As for `exact`.
    """
    made = exact(module, rounds=rounds)
    allowed = integers and not inexact_nodes(made, optimise=True)
    return OrtSession(made, integers=allowed, threads=threads)


def _shift(node: ir.Node, factor: int, zero: int, builder: Builder) -> None:
    value = node.inputs[factor]
    if value is None or value.dtype != ir.DataType.INT8:
        return
    given = node.inputs[zero] if zero < len(node.inputs) else None
    middle = np.asarray(_MIDDLE, np.uint8)
    node.resize_inputs(max(len(node.inputs), zero + 1))
    node.replace_input_with(factor, _shifted(value, builder))
    node.replace_input_with(
        zero, builder.constant(middle) if given is None else _shifted(given, builder)
    )


def _shifted(value: ir.Value, builder: Builder) -> ir.Value:
    tensor = constant(value)
    if tensor is not None:  # some zero points have to be constants
        shape, name = tuple(tensor.shape.numpy()), f"{value.name}_uint8"
        return builder.constant(
            derive(as_unsigned, tensor, dtype=ir.DataType.UINT8, shape=shape, name=name)
        )
    wide = builder.Cast(value, to=int(ir.DataType.INT32))
    higher = builder.Add(wide, np.asarray(_MIDDLE, np.int32))
    made: ir.Value = builder.Cast(higher, to=int(ir.DataType.UINT8))
    return made


def as_unsigned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers of int8 as uint8, 128 higher: the same bits but for the first."""
    return np.asarray(array.view(np.uint8) ^ np.uint8(_MIDDLE))
