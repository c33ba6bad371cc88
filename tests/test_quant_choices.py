"""Which nodes take a scheme: tables, names, axes, and what no kernel can take."""

import sys
from pathlib import Path

import numpy as np
import pytest

from aigcc.passes.assign_precision import AssignPrecision
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import latency, trial
from aigcc.passes.quant.trial import size_of
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.samples import load_samples
from aigcc.targets import make_target

sys.path.insert(0, str(Path(__file__).parent))
from weighted import floats, module, sqnr


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_SECONDS", 0.1)
    monkeypatch.setattr(latency, "_SECONDS", 0.02)


def quantised(before, feeds, passes, target="mobile"):
    made = before.clone()
    ctx = Context(
        target=target and make_target(target), samples=load_samples(lambda: feeds, before)
    )
    PassManager(passes).run(made, ctx)
    return made, ctx


def two_products(rows):
    """Two products with a Relu between them, and two samples."""
    before = module(
        f"""g (float[{rows},256] x) => (float[{rows},256] y) <W>
        {{ h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v) }}""",
        {"w": floats(256, 256) / 16, "v": floats(256, 256, seed=1) / 16},
    )
    return before, [{"x": floats(rows, 256, seed=seed)} for seed in range(2)]


@pytest.mark.parametrize("target", [None, "mobile"])
def test_a_table_is_not_shared_with_a_product_that_reads_it_by_columns(target):
    before = module(
        """g (int64[3] i, float[3,8] x) => (float[3,8] h, float[3,8] y) <W>
        { h = Gather (e, i)  y = MatMul (x, e) }""",
        {"e": floats(8, 8)},
    )
    feed = {"i": np.array([1, 2, 5]), "x": floats(3, 8, seed=1)}
    made, ctx = quantised(before, [feed], [InsertQdq(scheme="w8")], target)
    found = sqnr(before, made, feed)
    assert found["h"] > 100
    assert 30 < found["y"] < 60
    assert any("read otherwise" in str(remark) for remark in ctx.remarks)


@pytest.mark.parametrize("length", [6, 8])  # as many as channels, and not
def test_channels_of_what_is_read_along_another_axis_are_not_told_apart(length):
    loud = np.exp(1.5 * floats(8, seed=5))[:, None, None]
    before = module(
        f"""g (float[1,4,{length}] x) => (float[1,8,5] y) <W>
        {{ c = Conv <pads = [1,1]> (x, k)  y = MatMul (c, v) }}""",
        {"k": floats(8, 4, 3) * loud, "v": floats(length, 5, seed=1)},
    )
    feeds = [{"x": floats(1, 4, length, seed=seed)} for seed in range(4)]
    made, _ = quantised(before, feeds, [InsertQdq(scheme="w8a8")])
    assert sqnr(before, made, feeds[0])["y"] > 30
    made, _ = quantised(before, feeds, [InsertQdq(scheme="w8a8", smooth=0.5)])
    assert sqnr(before, made, feeds[0])["y"] > 30


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("mobile", {"scheme": "w8a8"}),
        (None, {"scheme": "w8", "weights": "gptq"}),
        (None, {"scheme": "w8", "weights": "awq"}),
    ],
)
def test_a_product_of_constants_stays_as_it_is(target, options):
    before = module(
        """g (float[4,16] x) => (float[4,8] y) <W>
        { k = MatMul (p, c)  z = MatMul (x, d)  y = Add (z, k) }""",
        {"p": floats(4, 16), "c": floats(16, 8, seed=1), "d": floats(16, 8, seed=2)},
    )
    feeds = [{"x": floats(4, 16, seed=seed)} for seed in range(3, 5)]
    made, ctx = quantised(before, feeds, [InsertQdq(**options)], target)
    assert any("the same in each run" in str(remark) for remark in ctx.remarks)
    assert sqnr(before, made, feeds[0])["y"] > 30


def test_a_search_in_float16_leaves_ranges_at_run_time_out():
    before = module(
        "g (float16[64,64] x) => (float16[64,64] y) <W> { y = MatMul (x, w) }",
        {"w": floats(64, 64).astype(np.float16)},
    )
    feeds = [{"x": floats(64, 64, seed=seed).astype(np.float16)} for seed in range(2)]
    passes = [AssignPrecision(budget="sqnr>=20"), InsertQdq(scheme="full")]
    made, ctx = quantised(before, feeds, passes)
    assert "w8a8-dynamic" not in ctx.recipe.precision.values()
    assert sqnr(before, made, feeds[0])["y"] > 20


def test_nodes_without_names_get_schemes_of_their_own():
    before, feeds = two_products(128)
    made, ctx = quantised(
        before, feeds, [AssignPrecision(budget="size<=0.3x"), InsertQdq(scheme="full")]
    )
    assert len(ctx.recipe.precision) == 2
    assert "full" not in ctx.recipe.precision.values()
    assert size_of(made) <= 0.3 * size_of(before)


def test_a_table_takes_the_scheme_of_its_product_where_size_is_bounded():
    before = module(
        """g (int64[8] i) => (float[8,512] y) <W>
        { h = Gather (e, i)  t = Transpose (e)  y = MatMul (h, t) }""",
        {"e": floats(512, 128)},
    )
    feeds = [{"i": np.random.default_rng(seed).integers(0, 512, 8)} for seed in range(2)]
    passes = [AssignPrecision(budget="size<=0.6x,sqnr>=20"), InsertQdq(scheme="full")]
    made, ctx = quantised(before, feeds, passes)
    assert set(ctx.recipe.precision.values()) == {"w8"}
    assert len(ctx.recipe.precision) == 2
    assert size_of(made) < 0.3 * size_of(before)
    assert sqnr(before, made, feeds[0])["y"] > 35


def test_without_a_bound_on_quality_the_most_exact_mixture_is_taken(monkeypatch):
    def planted(_, alone, schemes):
        return {"full": 1.0, **{scheme.name: 0.5 for scheme in schemes}}

    monkeypatch.setattr(latency.Latencies, "_measure", planted)
    before, feeds = two_products(64)
    passes = [AssignPrecision(budget="size<=0.7x"), InsertQdq(scheme="full")]
    made, _ = quantised(before, feeds, passes)
    assert size_of(made) <= 0.7 * size_of(before)
    assert sqnr(before, made, feeds[0])["y"] > 38
