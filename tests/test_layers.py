"""Layers: which node of a rewritten module is to blame, told from what only arrives at it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import aigcc
from aigcc import cli
from aigcc.analysis.layers.compare import Layer, Layers, compare_layers
from aigcc.analysis.layers.spill import Spill
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.samples import load_samples

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
CHAIN = """
    chain (float[n,4] x) => (float[n,4] y) <float two = {2}>
    {
      [a] first = Mul (x, two)
      [b] second = Tanh (first)
      [c] third = Mul (second, two)
      [d] y = Add (third, x)
    }
"""
NET = """
    net (float[n,4] x) => (float[n,4] y)
    <float[4,4] w1 = {1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6, -7},
     float[4,4] w2 = {7, 1, 3, 0, 2, 5, 7, 8, 1, -1, 2, 3, 4, 0, 6, -7}>
    {
      [up] wide = MatMul (x, w1)  # in: body.up; at: net.py:7
      [act] bent = Relu (wide)
      [down] y = MatMul (bent, w2)
    }
"""


def module(text: str) -> Module:
    return Module.parse(HEAD + text)


def feeds(count: int = 2) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((3, 4)).astype(np.float32)} for _ in range(count)]


def compared(first: str, second: str) -> Layers:
    return compare_layers(module(first), module(second), feeds())


def by_value(found: Layers) -> dict[str, Layer]:
    return {row.value: row for row in found.rows}


def test_the_node_that_is_wrong_is_told_from_those_after_it() -> None:
    found = compared(CHAIN, CHAIN.replace("Tanh (first)", "Sigmoid (first)"))
    rows = by_value(found)
    assert min(found.rows, key=lambda row: row.own).value == "second"
    assert rows["second"].own == rows["second"].arriving < 10
    assert rows["first"].own == rows["first"].arriving == np.inf
    for name in ("third", "y"):
        assert rows[name].own == np.inf
        assert rows[name].arriving < 10
    assert (found.nodes, found.matched, found.unlike) == (4, 4, [])
    assert [row.order for row in found.rows] == [0, 1, 2, 3]


def test_a_segment_holds_the_nodes_between_matched_values() -> None:
    split = CHAIN.replace(
        "[b] second = Tanh (first)",
        "[s] near = Sin (first)  [t] bent = Tanh (first)  [b] second = Identity (bent)",
    ).replace("Mul (second, two)", "Mul (bent, two)")
    found = compared(CHAIN, split)
    rows = by_value(found)
    assert (found.nodes, found.matched) == (6, 4)
    assert rows["second"].nodes == 2
    assert (rows["second"].node, rows["second"].op) == ("t", "Tanh")
    # `third` reads `bent`, which the original does not name: its segment starts from `first`
    assert rows["third"].nodes == 2
    assert rows["third"].own == np.inf


def test_quantised_nodes_come_first_with_their_precision_and_origin() -> None:
    original = module(NET)
    quantised = original.clone()
    ctx = Context(samples=load_samples(feeds, original), threads=1)
    PassManager(parse("infer-shapes,insert-qdq")).run(quantised, ctx)
    found = compare_layers(original, quantised, feeds())
    rows = by_value(found)
    worst = sorted(found.rows, key=lambda row: row.own)
    assert {row.value for row in worst[:2]} == {"wide", "y"}
    assert rows["wide"].op == "MatMul"
    assert rows["wide"].precision == "w8a8: int8 weight, int8 activation"
    assert (rows["wide"].module, rows["wide"].source) == ("body.up", "net.py:7")
    assert rows["bent"].own == np.inf > rows["bent"].arriving
    assert rows["y"].own != rows["y"].arriving


def test_half_precision_is_compared_as_numbers() -> None:
    original = module(NET)
    half = original.clone()
    PassManager(parse("infer-shapes,to-fp16")).run(half, Context())
    rows = by_value(compare_layers(original, half, feeds()))
    assert 50 < rows["bent"].own < 90
    assert rows["bent"].precision == "float16"


@pytest.mark.parametrize("spill", [1, 60, 1 << 20])
def test_the_temporary_file_may_be_as_small_as_one_value(spill: int) -> None:
    wrong = CHAIN.replace("Tanh (first)", "Sigmoid (first)")
    found = compare_layers(module(CHAIN), module(wrong), feeds(), spill=spill, limit=1)
    assert found == compared(CHAIN, wrong)


def test_sub_graphs_read_values_of_the_original() -> None:
    branch = """
        branch (float[n,4] x, bool c) => (float[n,4] y)
        {
          [a] first = Tanh (x)
          [i] mixed = If (c) <
            then_branch = yes () => (float[n,4] t) { inner = Neg (first) t = Neg (inner) },
            else_branch = no () => (float[n,4] e) { e = Exp (first) }>
          [b] y = Neg (mixed)
        }
    """
    samples = [{**feed, "c": np.array(True)} for feed in feeds()]
    wrong = branch.replace("first = Tanh (x)", "first = Sin (x)")
    rows = by_value(compare_layers(module(branch), module(wrong), samples))
    assert rows["first"].own < 40
    assert rows["mixed"].own == rows["y"].own == np.inf
    assert rows["mixed"].arriving < 40
    inside = branch.replace("inner = Neg (first)", "inner = Sin (first)")
    rows = by_value(compare_layers(module(branch), module(inside), samples))
    assert list(rows) == ["first", "mixed", "y"]
    assert rows["mixed"].own < 40
    assert rows["y"].own == np.inf


def test_names_that_mean_something_else_are_left_out() -> None:
    shaped = CHAIN.replace("third = Mul (second, two)", "third = ReduceMax (second)")
    typed = CHAIN.replace(
        "second = Tanh (first)", "second = Cast <to = 7> (first)  again = Cast <to = 1> (second)"
    ).replace("Mul (second", "Mul (again")
    assert compared(CHAIN, shaped).unlike == ["third"]
    found = compared(CHAIN, typed)
    assert found.unlike == ["second"]
    assert by_value(found)["third"].own < np.inf


def test_shapes_that_differ_only_when_it_runs_are_left_out() -> None:
    text = """
        sized (float[n,4] x, int64[k] shape) => (float[?] y)
        {
          [a] flat = Reshape (x, shape)
          [b] bent = Tanh (flat)
          [c] y = ReduceSum <keepdims = 0> (bent)
        }
    """
    other = text.replace("Tanh (flat)", "Flatten (flat)")
    samples = [{**feed, "shape": np.array([3, 2, 2])} for feed in feeds()]
    found = compare_layers(module(text), module(other), samples)
    assert found.unlike == ["bent"]
    assert [row.value for row in found.rows] == ["flat", "y"]


def test_models_without_a_name_in_common_are_refused() -> None:
    other = "other (float[n,4] x) => (float[n,4] z) { z = Neg (x) }"
    with pytest.raises(CompileError, match="no node makes a value with the name"):
        compared(CHAIN, other)


def test_where_nan_comes_from_is_named() -> None:
    broken = CHAIN.replace("Mul (second, two)", "Log (second)")
    found = compared(CHAIN, broken)
    assert found.first_broken is not None
    assert (found.first_broken.value, found.first_broken.node) == ("third", "c")
    assert found.first_broken.own_broken
    assert by_value(found)["third"].own == -np.inf
    assert not by_value(found)["y"].own_broken


def test_spilled_arrays_come_back() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 3), np.int64),
        "flag": np.array(True),
    }
    with Spill() as spill:
        for name, array in arrays.items():
            spill.put(name, array)
        for name, array in arrays.items():
            np.testing.assert_array_equal(spill.get(name), array)
            assert spill.get(name).dtype == array.dtype


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in a folder with `right.onnx` and `wrong.onnx`."""
    monkeypatch.chdir(tmp_path)
    module(CHAIN).save("right.onnx")
    module(CHAIN.replace("Tanh", "Sigmoid")).save("wrong.onnx")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aigcc", "compare", "--layers", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_ranks_nodes(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("right.onnx", "wrong.onnx", "--top", 2)
    assert code == 0
    lines = out.splitlines()
    assert "on synthetic inputs" in lines[0]
    assert lines[2].split()[:3] == ["b", "Sigmoid", "float32"]
    assert "2 of 4 values; --top 4 shows all" in out
    code, out, _ = run("right.onnx", "wrong.onnx", "--sort", "order", "--json")
    facts = json.loads(out)
    assert facts["synthetic"] is True
    assert [row["node"] for row in facts["layers"]] == ["a", "b", "c", "d"]
    assert facts["layers"][0]["own"] == "inf"
    assert facts["first_broken"] is None


def test_the_command_takes_artifacts_whose_program_is_onnx(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    aigcc.build("right.onnx", "mobile", "made", passes="canonicalize")
    code, out, _ = run("right.onnx", "made")
    assert code == 0
    assert "4 of 4 nodes" in out
    aigcc.build("right.onnx", "mobile(format=ort)", "sealed", passes="canonicalize")
    code, _, err = run("right.onnx", "sealed")
    assert code == 1
    assert "cannot be looked at" in err
    assert run("right.onnx", "wrong.onnx", "--psnr", 1)[0] == 2
