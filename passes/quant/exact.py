"""Which schemes a target's kernels compute exactly on this machine, found by running them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.passes.quant.placement import CONVOLUTIONS, Scheme, schemes, weight_of
from aigcc.passes.quant.region import Regions
from aigcc.target import Target

Array = npt.NDArray[Any]

_ROWS, _IMAGE = "rows", "image"
_INPUTS, _OUTPUTS, _PLACES = 32, 16, (2, 8)
_OPSET = 21
_HIGHEST = 255.0
_WRONG = 0.05  # of the largest number: what is clipped is off by a fifth and more


def offered(target: Target | None) -> dict[str, Scheme]:
    """The schemes that are worth trying on this machine, with the operators they are exact for.

    What stands in for another is left out where that one is exact.
    """
    known, wrong = schemes(target), inexact(target) if target is not None else frozenset()
    made = {}
    for name, scheme in known.items():
        other = known.get(scheme.instead_of)
        kernels = {
            op: kernel
            for op, kernel in scheme.kernels.items()
            if (name, op) not in wrong and (other is None or (other.name, op) in wrong)
        }
        if kernels:
            made[name] = dataclasses.replace(scheme, kernels=kernels)
    return made


def fault(scheme: Scheme, target: Target | None) -> str:
    """What is wrong with a scheme on this machine, and what is exact instead; empty if nothing."""
    if target is None or scheme.computes_in != "int8":
        return ""
    wrong = [op for op in scheme.kernels if (scheme.name, op) in inexact(target)]
    if not wrong:
        return ""
    others = [o.name for o in offered(target).values() if o.instead_of == scheme.name]
    instead = f"; {' and '.join(others)} are exact" if len(others) > 1 else ""
    instead = instead or (f"; {others[0]} is exact" if others else "")
    return (
        "this CPU clips sums of products of 8 bits in its kernels for "
        f"{', '.join(wrong)}, as those without VNNI do{instead}"
    )


@functools.cache
def inexact(target: Target) -> frozenset[tuple[str, str]]:
    """The schemes and operators that a target's runtime gets wrong on this machine.

    Nothing where it cannot run here. Measured when it is first asked for.
    """
    kinds = [
        (scheme, op)
        for scheme in schemes(target).values()
        if scheme.computes_in == "int8"
        for op in scheme.kernels
    ]
    session = target.open(_planted(kinds), 1) if kinds else None
    if session is None:
        return frozenset()
    row = np.where(_pattern(), _HIGHEST, 0).astype(np.float32)
    exact = row @ _weight()
    image = np.broadcast_to(row[:, None, None], (1, _INPUTS, *_PLACES))
    outputs = session.run({_ROWS: row[None], _IMAGE: np.ascontiguousarray(image)}).values()
    found = (_of_one_place(output) for output in outputs)
    return frozenset(
        (scheme.name, op)
        for (scheme, op), output in zip(kinds, found, strict=True)
        if not np.abs(output - exact).max() <= _WRONG * np.abs(exact).max()
    )


def _planted(kinds: Sequence[tuple[Scheme, str]]) -> Module:
    """A product in each scheme and operator, of numbers whose sums are clipped if any are."""
    rows = ir.val(_ROWS, ir.DataType.FLOAT, [1, _INPUTS])
    image = ir.val(_IMAGE, ir.DataType.FLOAT, [1, _INPUTS, *_PLACES])
    imports = {"": _OPSET}
    graph = ir.Graph([rows, image], [], nodes=[], opset_imports=imports, name="planted")
    module = Module(ir.Model(graph, ir_version=10))
    names = Names(module)
    for scheme, op in kinds:
        node = _product(op, image if op in CONVOLUTIONS else rows, names)
        weight = weight_of(node)
        assert weight is not None
        # others would share its grid, and what a runtime makes of Q/DQ depends on who reads them
        regions = Regions(graph, names, "planted", _OPSET, _range_of)
        region = regions.make(node, weight, scheme)
        graph.extend([*region.shared, *region.made])
        graph.outputs.append(region.result)
    return module


def _product(op: str, x: ir.Value, names: Names) -> ir.Node:
    weight = _weight()
    if op in CONVOLUTIONS:
        weight = (weight.T if op == "Conv" else weight)[:, :, None, None]
    tensor = ir.tensor(np.ascontiguousarray(weight))
    node = ir.Node("", op, [x, ir.val("weight", const_value=tensor)], num_outputs=1)
    shape = [1, _OUTPUTS, *_PLACES] if op in CONVOLUTIONS else [1, _OUTPUTS]
    node.outputs[0].type, node.outputs[0].shape = x.type, ir.Shape(shape)
    node.outputs[0].name = names.fresh(op)
    return node


def _pattern() -> Array:
    return np.arange(_INPUTS) % 4 < 2


def _weight() -> Array:
    """[inputs, outputs]: 1 where activations are largest, else -1, or the other way round."""
    column = np.where(_pattern(), 1, -1).astype(np.float32)
    return np.stack([column, -column] * (_OUTPUTS // 2), axis=1)


def _range_of(value: ir.Value, scheme: Scheme) -> tuple[float, float]:
    highest = float(_HIGHEST * _pattern().sum())
    return (0.0, _HIGHEST) if value.name in (_ROWS, _IMAGE) else (-highest, highest)


def _of_one_place(output: Array) -> Array:
    return output[0] if output.ndim == 2 else output[0, :, 0, 0]
