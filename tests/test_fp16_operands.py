"""What fp16-operands promises: factors are float16 numbers, sums are float32, nothing overflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.fp16_operands import Fp16Operands
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples

Feeds = dict[str, npt.NDArray[Any]]


def parsed(text: str) -> Module:
    made = Module.parse(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    infer_shapes(made.model)
    return made


def rounded(made: Module, feeds: Feeds | None = None, **options: int) -> Context:
    samples = None if feeds is None else load_samples(lambda: iter([feeds]), made)
    ctx = Context(samples=samples)
    PassManager([Fp16Operands(**options)]).run(made, ctx)
    return ctx


def product(scale: float = 1, power: float = 0) -> tuple[Module, Feeds]:
    """Linear, a power of a multiple of it, linear."""
    made = parsed(
        "g (float[2,8] x, float[8,4] v) => (y)"
        f"<float scale = {{{scale}}}, float[8,8] w = {{{','.join(['0.3', '-0.2'] * 32)}}}>"
        "{ a = MatMul (x, w) b = Mul (a, scale)"
        f"{' c = Mul (b, b)' if power else ' c = Identity (b)'} y = MatMul (c, v) }}"
    )
    random = np.random.default_rng(0)
    return made, {
        name: random.standard_normal(size).astype(np.float32)
        for name, size in (("x", (2, 8)), ("v", (8, 4)))
    }


def test_products_are_those_of_float16_numbers() -> None:
    made, feeds = product()
    w = made.graph.initializers["w"].const_value
    assert w is not None
    rounded(made, feeds)

    def half(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.astype(np.float16).astype(np.float32)

    right = half(half(feeds["x"]) @ half(w.numpy())) @ half(feeds["v"])
    y = OrtSession(made, optimise=False).run(feeds)["y"]
    np.testing.assert_allclose(y, right, 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("scale", "power", "reason"),
    [(1e3, 2, "reaches"), (1e-9, 0, "which float16 does not resolve"), (2e4, 0, "reaches")],
)
def test_a_factor_that_float16_cannot_hold_stays(scale: float, power: int, reason: str) -> None:
    made, feeds = product(scale, power)
    before = OrtSession(made, optimise=False).run(feeds)["y"]
    ctx = rounded(made, feeds)
    (declined,) = [remark for remark in ctx.remarks if remark.kind == "declined"]
    assert reason in declined.message and "on the samples" in declined.message
    y = OrtSession(made, optimise=False).run(feeds)["y"]
    assert np.abs(y - before).max() <= 2e-3 * np.abs(before).max()


@given(exponent=st.floats(-12, 12), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_result_is_near_whatever_the_magnitudes(exponent: float, seed: int) -> None:
    made, feeds = product()
    random = np.random.default_rng(seed)
    feeds = {
        name: (array * 10**exponent * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in feeds.items()
    }
    before = OrtSession(made, optimise=False).run(feeds)["y"]
    rounded(made, feeds)
    y = OrtSession(made, optimise=False).run(feeds)["y"]
    assert np.isfinite(y).all()
    assert np.abs(y - before).max() <= 1e-2 * np.abs(before).max()


def test_no_other_pass_takes_the_rounding_away() -> None:
    made, feeds = product()
    rounded(made)
    before = OrtSession(made, optimise=False).run(feeds)["y"]
    PassManager(parse("canonicalize,fuse")).run(made)
    np.testing.assert_array_equal(OrtSession(made, optimise=False).run(feeds)["y"], before)


def test_branches_round_only_what_is_trusted() -> None:
    text = """g (float[2,2] x, bool c) => (y)
{
  y = If (c) <
    then_branch = t () => (float[2,2] a) { a = MatMul (x, x) },
    else_branch = e () => (float[2,2] b) { s = Exp (x) b = MatMul (s, x) }
  >
}"""
    feeds = {"x": np.ones((2, 2), np.float32), "c": np.array(True)}
    made = parsed(text)
    ctx = rounded(made, feeds)
    assert [r.message for r in ctx.remarks if r.kind == "declined"] == [
        "kept float32: s is in a branch, where no sample shows it"
    ]
    assert sum(node.op_type == "Cast" for node in made.nodes()) == 2
    made = parsed(text)
    rounded(made, measure=0)
    assert sum(node.op_type == "Cast" for node in made.nodes()) == 4
    for c in (True, False):
        y = OrtSession(made, optimise=False).run(feeds | {"c": np.array(c)})["y"]
        np.testing.assert_allclose(y, 2 if c else 2 * np.float16(np.e), 1e-6)


def test_weights_stay_lazy_and_are_shared() -> None:
    made = parsed("""g (float[2,4] x) => (y, z)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ y = MatMul (x, w) z = Gemm <transB = 1> (x, w) }""")
    rounded(made)
    ((_, stored),) = made.graph.initializers.items()
    assert isinstance(stored.const_value, ir.LazyTensor)
    assert stored.const_value.dtype == ir.DataType.FLOAT16
    assert sum(node.op_type == "Cast" for node in made.nodes()) == 3
