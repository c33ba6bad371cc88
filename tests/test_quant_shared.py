"""Quantisation of values and weights with several readers, and of models in float16."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.verify import verify
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import region
from aigcc.passes.quant.placement import find_scheme, weight_of
from aigcc.passes.quant.region import Regions, Tuning
from aigcc.passes.quant.terms import Term, make_terms
from aigcc.passes.simplify import Simplify
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.rules import remove_dead, replace_value
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets.mobile import Mobile

sys.path.insert(0, str(Path(__file__).parent))
from weighted import Feeds, floats, module, sqnr

HALF = np.float16


def quantised(
    before: Module, feeds: list[Feeds], target: Mobile | None = None, **options: object
) -> Module:
    after = before.clone()
    ctx = Context(target=target, samples=load_samples(lambda: iter(feeds), before))
    PassManager([InsertQdq(**options)]).run(after, ctx)
    return after


def regions_of(made: Module, outliers: Mapping[str, np.ndarray] | None = None) -> Regions:
    tuning = Tuning(outliers=outliers or {})
    return Regions(
        made.graph, Names(made), "test", made.opset, lambda *_: (-3.0, 3.0), tuning=tuning
    )


# --- values that one node reads twice


@pytest.mark.parametrize(
    "middle", ["s = Mul (r, r)", "s = Add (r, r)", "s = Div (r, r)", "s = Gemm (r, b, r)"]
)
def test_no_scale_moves_through_a_node_that_reads_its_value_twice(middle: str) -> None:
    text = f"""g (float[8,16] x) => (float[8,16] y) <W>
    {{ h = MatMul (x, a)  r = LeakyRelu (h)  {middle}  y = MatMul (s, c) }}"""
    weights = {"a": floats(16, 32), "c": floats(32, 16, seed=1)}
    if "Gemm" in middle:
        weights["b"] = floats(32, 32, seed=2)
    before = module(text, weights)
    feeds = [{"x": floats(8, 16, seed=n)} for n in range(3)]
    samples = load_samples(lambda: iter(feeds), before)
    for options in ({"smooth": 0.5}, {"scheme": "w8", "weights": "awq"}):
        after, ctx = before.clone(), Context(samples=samples, maker="insert-qdq")
        InsertQdq(**options)._move_scales(after, ctx)
        assert ctx.total > 0
        assert sqnr(before, after, feeds[0])["y"] > 110
    assert sqnr(before, quantised(before, feeds, smooth=0.5), feeds[0])["y"] > 30


# --- weights that several nodes read


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("options", [{}, {"weights": "gptq"}, {"bias_correction": True}])
def test_only_the_reader_of_outliers_has_them_left_out(op: str, options: dict[str, object]) -> None:
    text = f"""g (float[8,32] x, float[8,32] u) => (float[8,16] y, float[8,16] z) <W>
    {{ p = {op} (x, w)  y = Add (p, b)  q = {op} (u, w)  z = Add (q, b) }}"""
    before = module(text, {"w": floats(32, 16), "b": floats(16)})
    feeds = [{"x": floats(8, 32, seed=n), "u": floats(8, 32, seed=n + 50)} for n in range(4)]
    for each in feeds:
        each["x"][:, 3] *= 40
    after = quantised(before, feeds, outliers=8.0, **options)
    found = sqnr(before, after, feeds[0])
    assert found["y"] > 50
    assert found["z"] > 40


@pytest.mark.parametrize(("op", "scheme"), [("Conv", "w8a8"), ("MatMul", "w8a16")])
def test_a_node_without_float_channels_keeps_the_range_of_outliers(op: str, scheme: str) -> None:
    """No convolution leaves channels out, nor a scheme with several terms of an activation."""
    text = f"g (float[1,32,32] x) => (float[1,32,32] y) <W> {{ y = {op} (x, w) }}"
    before = module(text, {"w": floats(32, 32, 1) if op == "Conv" else floats(32, 32)})
    feeds = [{"x": floats(1, 32, 32, seed=n)} for n in range(4)]
    for each in feeds:
        each["x"][(slice(None), 3) if op == "Conv" else (..., 3)] *= 40
    after = quantised(before, feeds, Mobile(), scheme=scheme, outliers=8.0)
    assert sqnr(before, after, feeds[0])["y"] > 20


def test_terms_live_as_long_as_what_is_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that needs higher scales drops terms, whose numbers no others may get for that."""
    seen: list[weakref.ref[Term]] = []

    def make(*args: Any) -> list[Term]:
        terms = make_terms(*args)
        seen.extend(map(weakref.ref, terms))
        return terms

    monkeypatch.setattr(region, "make_terms", make)
    text = """g (float[4,8] x) => (float[4,8] y, float[4,8] z) <W>
    { y = Gemm (x, w, a)  z = Gemm (x, w, b) }"""
    weights = {"w": floats(8, 8), "a": np.full(8, 0.1), "b": np.full(8, 1e9)}
    before = module(text, {name: array.astype(np.float32) for name, array in weights.items()})
    regions = regions_of(before)
    for node in before.graph:
        weight = weight_of(node)
        assert weight is not None
        regions.make(node, weight, find_scheme("w8a8", None))
    assert len(seen) == 2
    assert all(term() is not None for term in seen)


# --- float16


@pytest.mark.parametrize("size", [0.1, 0.01, 0.003])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_bias_in_units_that_float16_does_not_have_stays_float(op: str, size: float) -> None:
    if op == "Gemm":
        weight, shape, out = floats(64, 32) / 100, (8, 64), "8,32"
    else:
        weight, shape, out = floats(32, 64, 1, 1) / 100, (1, 64, 4, 4), "1,32,4,4"
    dims = ",".join(map(str, shape))
    text = f"g (float16[{dims}] x) => (float16[{out}] y) <W> {{ y = {op} (x, w, b) }}"
    weights = {"w": weight.astype(HALF), "b": (floats(32, seed=4) / 100).astype(HALF)}
    before = module(text, weights)
    feeds = [{"x": (floats(*shape, seed=1) * size).astype(HALF)}]
    assert sqnr(before, quantised(before, feeds, Mobile()), feeds[0])["y"] > 40


def test_moments_of_groups_fit_into_float16() -> None:
    weight = (floats(8, 4, 3, 3) / 10).astype(HALF)
    text = """g (float16[1,8,64,64] x) => (float16[1,8,64,64] y) <W>
    { y = Conv <pads = [1,1,1,1], group = 2> (x, w) }"""
    before = module(text, {"w": weight})
    feeds = [{"x": (floats(1, 8, 64, 64, seed=n) * 5).astype(HALF)} for n in range(2)]
    plain, made = (
        sqnr(before, quantised(before, feeds, weights=how), feeds[0])["y"]
        for how in ("nearest", "gptq")
    )
    assert made >= plain - 0.1


@pytest.mark.parametrize("outliers", [{}, {"x": np.array([3])}])
def test_ranges_at_run_time_are_found_in_float32(outliers: dict[str, np.ndarray]) -> None:
    text = "g (float16[8,32] x) => (float16[8,16] y) <W> { y = MatMul (x, w) }"
    before = module(text, {"w": floats(32, 16).astype(HALF)})
    after = before.clone()
    (node,) = after.graph
    regions = regions_of(after, outliers)
    weight = weight_of(node)
    assert weight is not None
    made = regions.make(node, weight, find_scheme("w8a8-dynamic", Mobile()))
    after.graph.insert_before(node, [*made.shared, *made.made])
    replace_value(after.graph, node.outputs[0], made.result, regions.names, fresh=True)
    remove_dead([node])
    verify(after.model)
    feeds = {"x": floats(8, 32, seed=1).astype(HALF)}
    if outliers:
        feeds["x"][:, 3] *= 40
    assert sqnr(before, after, feeds)["y"] > 35


@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("zero", ["", ", z", ", o"])
def test_one_scale_in_a_list_is_a_scalar(opset: int, zero: str) -> None:
    made = Module.parse(f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[2,3,4] x) => (float[2,3,4] y)
        <float[1] s = {{0.5}}, uint8[1] z = {{7}}, uint8 o = {{7}}> {{
          q = QuantizeLinear <axis = 2> (x, s{zero})  y = DequantizeLinear <axis = 2> (q, s{zero})
        }}""")
    infer_shapes(made.model)
    before = made.clone()
    PassManager([Simplify()]).run(made, Context())
    verify(made.model)
    grids = [value for node in made.graph for value in node.inputs[1:] if value is not None]
    assert [len(value.shape) for value in grids] == [0] * len(grids)
    x = floats(2, 3, 4)
    old, new = (OrtSession(m, optimise=False).run({"x": x})["y"] for m in (before, made))
    np.testing.assert_array_equal(old, new)
