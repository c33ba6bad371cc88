"""Casts that are merged give every bit that they gave before, at the edges of all types."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.simplify import _WIDER
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

EDGES = [
    0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 127, 128, -129, 255, 256, -300, 448, 464, 480, 1000, 65504,
    7e4, 3e9, -3e9, 1e19, -1e19, np.inf, -np.inf, np.nan, 1e-8, 0.1,
]  # fmt: skip
NARROW = ("FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ")
RESULTS = [
    ir.DataType[name]
    for name in (
        "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8",
        "UINT16", "UINT32", "UINT64", "BOOL", "STRING", *NARROW,
    )
]  # fmt: skip


def edges(dtype: ir.DataType) -> np.ndarray:
    if dtype == ir.DataType.BOOL:
        return np.array([True, False])
    if dtype.is_floating_point():
        with np.errstate(over="ignore"):
            return np.array(EDGES, np.float64).astype(dtype.numpy())
    bounds = np.iinfo(dtype.numpy())
    return np.array([0, 1, 3, 100, bounds.min, bounds.max], dtype.numpy())


def canonical(module: Module) -> Module:
    infer_shapes(module.model)
    after = module.clone()
    PassManager(parse("simplify")).run(after, Context())
    return after


def bits(module: Module, feeds: dict[str, np.ndarray]) -> dict[str, bytes]:
    results = OrtSession(module, optimise=False).run(feeds)
    return {n: repr(a.tolist()).encode() if a.dtype == object else a.tobytes() for n, a in
            results.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "middle"),
    [(source, middle) for source, wide in _WIDER.items() for middle in sorted(wide)],
    ids=lambda dtype: dtype.name,
)
def test_a_cast_through_a_wider_type_is_not_seen(source: ir.DataType, middle: ir.DataType) -> None:
    feeds = {"x": edges(source)}
    size, lines, shown = feeds["x"].size, [], []
    saturations = {dtype: ("", ", saturate: int = 0") for dtype in RESULTS if dtype.name in NARROW}
    for dtype in RESULTS:
        for place, extra in enumerate(saturations.get(dtype, ("",))):
            name = f"y{dtype.value}_{place}"
            shown.append(f"{dtype.name.lower()}[{size}] {name}")
            lines.append(f"a{name} = Cast <to: int = {middle.value}> (x)")
            lines.append(f"{name} = Cast <to: int = {dtype.value}{extra}> (a{name})")
    module = Module.parse(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({source.name.lower()}[{size}] x) => '
        f"({', '.join(shown)}) {{ {' '.join(lines)} }}"
    )
    after = canonical(module)
    assert len(after.graph) <= len(shown) + 1  # text keeps what it is written from
    assert bits(after, feeds) == bits(module, feeds)


@pytest.mark.parametrize(("dtype", "saturate"), list(itertools.product(NARROW, (0, 1))))
def test_cast_like_saturates_as_it_is_told(dtype: str, saturate: int) -> None:
    module = Module.parse(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[5] x) => (float[5] y) <{dtype.lower()}[1] t = {{0}}>
        {{ a = CastLike <saturate: int = {saturate}> (x, t)  y = Cast <to: int = 1> (a) }}"""
    )
    after = canonical(module)
    assert [node.op_type for node in after.graph] == ["Cast", "Cast"]
    feeds = {"x": np.array([1e6, -1e6, np.inf, 1.0, np.nan], np.float32)}
    assert bits(after, feeds) == bits(module, feeds)


def test_cast_like_rounds_as_it_is_told() -> None:
    module = Module.parse(
        """<ir_version: 13, opset_import: ["" : 24]>
        g (float[3] x, float8e8m0[1] t) => (float8e8m0[3] y)
        { y = CastLike <round_mode: string = "down"> (x, t) }"""
    )
    after = canonical(module)
    assert after.graph[0].op_type == "Cast"
    assert after.graph[0].attributes["round_mode"].as_string() == "down"


def test_a_cast_whose_type_each_call_chooses_stays() -> None:
    module = Module.parse(
        """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.through <to: int = 6> (x) }
        <domain: "local", opset_import: ["" : 20]>
        through <to> (x) => (y)
        { a = Cast <to: int = @to> (x)  y = Cast <to: int = 1> (a) }"""
    )
    after = canonical(module)
    (function,) = after.model.functions.values()
    assert [node.op_type for node in function] == ["Cast", "Cast"]
    feeds = {"x": np.array([1.5, -2.5], np.float32)}
    assert bits(after, feeds) == bits(module, feeds)
