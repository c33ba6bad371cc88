"""Each node with weights is quantised, or a sentence says why it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import aigcc
from aigcc.errors import CompileError
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant.candidates import candidates
from aigcc.passes.quant.refusals import refusal
from aigcc.passes.quant.summary import BUDGET, SLOWER, holders, summarise
from aigcc.pipeline.context import Context, Remark
from aigcc.pipeline.manager import PassManager
from aigcc.samples import load_samples
from aigcc.targets import make_target

sys.path.insert(0, str(Path(__file__).parent))
from weighted import Weights, floats, module

LEFT = "its constant is the first factor"
NOT_QUANTISED: dict[str, tuple[str, Weights, str]] = {
    "constant on the left": (
        "g (float[2,64,8] x) => (float[2,48,8] y) <W> { y = MatMul (w, x) }",
        {"w": floats(48, 64)},
        LEFT,
    ),
    "constant on the left of Gemm": (
        "g (float[64,8] x) => (float[48,8] y) <W> { y = Gemm (w, x) }",
        {"w": floats(48, 64)},
        LEFT,
    ),
    "a weight for each batch": (
        "g (float[4,9,64] x) => (float[4,9,48] y) <W> { y = MatMul (x, w) }",
        {"w": floats(4, 64, 48)},
        "a weight for each batch",
    ),
    "a vector": (
        "g (float[9,64] x) => (float[9] y) <W> { y = MatMul (x, w) }",
        {"w": floats(64)},
        "its weight has 1 dims",
    ),
    "transA": (
        "g (float[64,9] x) => (float[9,48] y) <W> { y = Gemm <transA = 1> (x, w) }",
        {"w": floats(64, 48)},
        "reads its activation transposed",
    ),
    **{
        op: (
            f"""g (float[5,2,64] x) => (float[5,1,2,16] y) <W>
            {{ y = {op} <hidden_size = 16> (x, w, r) }}""",
            {"w": floats(1, gates * 16, 64), "r": floats(1, gates * 16, 16)},
            f"{op} has no scheme",
        )
        for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    },
    "Einsum": (
        'g (float[2,64] x) => (float[2,48] y) <W> { y = Einsum <equation = "ij,jk->ik"> (x, w) }',
        {"w": floats(64, 48)},
        "Einsum has no scheme, so w stays",
    ),
    "ConvTranspose in groups": (
        "g (float[1,8,4,4] x) => (float[1,8,5,5] y) <W> { y = ConvTranspose <group = 2> (x, w) }",
        {"w": floats(8, 4, 2, 2)},
        "outputs of several groups",
    ),
    "columns of a table": (
        "g (int64[2] i) => (float[64,2] y) <W> { y = Gather <axis = 1> (w, i) }",
        {"w": floats(64, 48)},
        "rows of a matrix alone",
    ),
    "a table of matrices": (
        "g (int64[2] i) => (float[2,8,6] y) <W> { y = Gather (w, i) }",
        {"w": floats(64, 8, 6)},
        "rows of a matrix alone",
    ),
    "a weight that is computed": (
        """g (float[2,64] x, float s) => (float[2,48] y) <W>
        { v = Mul (w, s)  y = MatMul (x, v) }""",
        {"w": floats(64, 48)},
        "its weight is computed by Mul",
    ),
    "behind Cast": (
        """g (float[2,64] x) => (float[2,48] y) <W>
        { v = Identity (w)  u = Cast <to = 1> (v)  y = MatMul (x, u) }""",
        {"w": floats(64, 48)},
        "made of constants by Cast: see fold-constants",
    ),
    "behind Reshape": (
        """g (float[2,64] x) => (float[2,48] y) <W>
        { s = Constant <value_ints = [64, 48]> ()  v = Reshape (w, s)  y = MatMul (x, v) }""",
        {"w": floats(48, 64)},
        "made of constants by Reshape",
    ),
    "a kernel behind Transpose": (
        """g (float[1,8,4,4] x) => (float[1,9,4,4] y) <W>
        { v = Transpose <perm = [3, 0, 1, 2]> (w)  y = Conv (x, v) }""",
        {"w": floats(8, 1, 1, 9)},
        "made of constants by Transpose",
    ),
    "two activations": (
        """g (float[2,64] x, float[2,64] z) => (float[2,2] y)
        { t = Transpose <perm = [1, 0]> (z)  y = MatMul (x, t) }""",
        {},
        "both of its factors are computed",
    ),
    "a second input": (
        "g (float[2,64] x, float[64,48] z) => (float[2,48] y) { y = MatMul (x, z) }",
        {},
        "its second factor is an input",
    ),
}
QUANTISED: dict[str, tuple[str, Weights]] = {
    "one-dimensional": (
        "g (float[1,64,8] x) => (float[1,64,6] y) <W> { y = Conv (x, w) }",
        {"w": floats(64, 64, 3)},
    ),
    "three-dimensional": (
        "g (float[1,16,8,8,8] x) => (float[1,16,6,6,6] y) <W> { y = Conv (x, w) }",
        {"w": floats(16, 16, 3, 3, 3)},
    ),
    "depthwise": (
        "g (float[1,64,8,8] x) => (float[1,64,6,6] y) <W> { y = Conv <group = 64> (x, w) }",
        {"w": floats(64, 1, 3, 3)},
    ),
    "behind Transpose": (
        """g (float[2,64] x) => (float[2,48] y) <W>
        { v = Transpose <perm = [1, 0]> (w)  y = MatMul (x, v) }""",
        {"w": floats(48, 64)},
    ),
    "shared": (
        "g (float[2,64] x) => (float[2,64] y) <W> { h = MatMul (x, w)  y = MatMul (h, w) }",
        {"w": floats(64, 64)},
    ),
    "inside If": (
        """g (float[2,64] x, bool c) => (float[2,48] y) <W> { y = If (c) <
          then_branch = t () => (float[2,48] a) { a = MatMul (x, w) },
          else_branch = e () => (float[2,48] b) { b = MatMul (x, v) }> }""",
        {"w": floats(64, 48), "v": floats(64, 48)},
    ),
}
SCHEMES = ("w8a8", "w8a8-dynamic", "w8", "w4")


def by_hand(text: str, weights: Weights, scheme: str) -> tuple[Context, set[ir.DataType]]:
    made = module(text, weights)
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made))
    PassManager([InsertQdq(scheme=scheme)]).run(made, ctx)
    held = [v for graph in made.graphs() for v in graph.initializers.values()]
    sizes = {array.size for array in weights.values()}
    return ctx, {v.dtype for v in held if v.const_value.size in sizes}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", NOT_QUANTISED)
def test_what_no_scheme_takes_is_said_to_stay(case: str, scheme: str) -> None:
    text, weights, words = NOT_QUANTISED[case]
    ctx, dtypes = by_hand(text, weights, scheme)
    assert dtypes <= {ir.DataType.FLOAT}
    said = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert any(words in message for message in said), said
    assert any(r.message.startswith("0 of ") for r in ctx.remarks if r.kind == "note")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", QUANTISED)
def test_others_are_quantised_or_said_to_stay(case: str, scheme: str) -> None:
    ctx, dtypes = by_hand(*QUANTISED[case], scheme)
    declined = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert (ir.DataType.FLOAT in dtypes) == bool(declined)
    assert declined or ctx.rewrites.total()


@pytest.mark.parametrize("case", NOT_QUANTISED)
def test_a_search_says_it_as_well(case: str) -> None:
    text, weights, words = NOT_QUANTISED[case]
    made = module(text, weights)
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made), threads=1)
    assert not candidates(made, ctx, by_size=True).choices
    assert any(words in remark.message for remark in ctx.remarks)


def test_what_a_search_cannot_reach_is_said() -> None:
    text, weights = QUANTISED["inside If"]
    made = module(text, weights)
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made), threads=1)
    candidates(made, ctx, by_size=True)
    assert "a search looks at the main graph alone" in str([str(r) for r in ctx.remarks])


def test_a_long_way_to_constants_is_not_walked_to_its_end() -> None:
    chain = " ".join(f"v{n + 1} = Add (v{n}, v{n})" for n in range(200))
    made = module(
        f"""g (float[2,64] x) => (float[2,48] y) <W>
        {{ v0 = Identity (w)  {chain}  y = MatMul (x, v200) }}""",
        {"w": floats(64, 48)},
    )
    assert refusal(list(made.graph)[-1])


def test_numbers_that_are_added_or_compared_are_no_weights() -> None:
    made = module(
        "g (float[64,48] x) => (float[64,48] y) <W> { h = Add (x, w)  y = Mul (h, w) }",
        {"w": floats(64, 48)},
    )
    assert [refusal(node) for node in made.graph] == ["", ""]
    assert holders(made) == []


# --- the summary


def nodes(count: int) -> list[ir.Node]:
    return [ir.Node("", "MatMul", [], num_outputs=1, name=f"n{n}") for n in range(count)]


def declined(node: ir.Node, why: str) -> Remark:
    return Remark("declined", "test", str(node.name), "", {"why": why})


def test_the_summary_counts_and_names_reasons() -> None:
    every = nodes(9)
    remarks = [declined(node, SLOWER) for node in every[3:]]
    text = summarise(every, every[:3], BUDGET, remarks)
    assert text == "3 of 9 nodes quantised; 6 kept: 8 bits are slower here"
    text = summarise(every, every[:3], BUDGET, remarks[2:])
    assert text.endswith("6 kept: 4 8 bits are slower here, 2 to keep the budget")
    assert summarise(every, every, BUDGET, remarks) == "9 of 9 nodes quantised"


def test_a_build_says_how_many_nodes_it_quantised(tmp_path: Path) -> None:
    text, weights, _ = NOT_QUANTISED["ConvTranspose in groups"]
    module(text, weights).save(tmp_path / "net.onnx")
    made = aigcc.build(
        tmp_path / "net.onnx",
        "mobile",
        tmp_path / "out",
        passes="canonicalize,insert-qdq(scheme=w8)",
        verify="structure",
    )
    assert "0 of 1 nodes quantised" in str(made.artifact.manifest["remarks"])


@pytest.mark.parametrize("passes", [None, "canonicalize"])
def test_samples_that_nothing_would_be_calibrated_on_are_refused(
    tmp_path: Path, passes: str | None
) -> None:
    text, weights, _ = NOT_QUANTISED["transA"]
    module(text, weights).save(tmp_path / "net.onnx")
    with pytest.raises(CompileError, match="nothing is quantised") as error:
        aigcc.build(
            tmp_path / "net.onnx",
            "mobile",
            tmp_path / "out",
            passes=passes,
            calibration=lambda: [{"x": np.zeros((64, 9), np.float32)}],
        )
    assert "insert-qdq" in str(error.value.hint)


def test_tables_are_told_from_what_has_no_form() -> None:
    text = "g (int64[2] i) => (float[2,48] y) <W> { y = Gather (w, i) }"
    made = module(text, {"w": floats(64, 48)})
    assert [refusal(node) for node in made.graph] == [""]
    ctx = Context(target=make_target("mobile"), samples=load_samples(None, made), threads=1)
    assert not candidates(made, ctx, by_size=True).choices
    assert "narrows a table only with a product" in str([str(r) for r in ctx.remarks])
    ctx, dtypes = by_hand(text, {"w": floats(64, 48)}, "w8")
    assert ctx.rewrites.total() == 1
    assert ir.DataType.FLOAT not in dtypes
