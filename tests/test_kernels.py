"""Which products of integers are exact here: planted numbers that are clipped, and real kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc import kernels
from aigcc.ir.module import Module
from aigcc.kernels import Product, inexact_nodes, probe
from aigcc.runtime import OrtSession

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


class Clipping:
    """Runs planted products as processors without VNNI do: sums of pairs in 16 bits."""

    def __init__(self, module: Module) -> None:
        _, self.wanted = kernels._planted()

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return {name: self._run(*what) for name, what in self.wanted.items()}

    def _run(self, product: Product, exact: Any) -> Any:
        if (product.first, product.second) != ("uint8", "int8") or product.op == "ConvInteger":
            return exact
        factors = kernels._Factors(product, kernels._ROWS[-1] if exact.ndim > 2 else len(exact))
        first, second = factors.first.astype(np.int64), factors.second.astype(np.int64)
        pairs = np.stack([first[:, i::2, None] * second[i::2] for i in (0, 1)])
        sums = np.clip(pairs.sum(axis=0), -(2**15), 2**15 - 1).sum(axis=1)
        sums = sums - int(factors.zeros[0]) * second.sum(axis=0)
        return kernels._as_image(sums) if exact.ndim > 2 else sums


def test_clipped_sums_are_found_in_weights_of_8_bits_alone() -> None:
    found = probe(Clipping)
    assert {(p.first, p.second, p.bits) for p in found} == {("uint8", "int8", 8)}
    assert {p.op for p in found} >= {"MatMulInteger", "QLinearConv", "QGemm", "MatMul", "Gemm"}
    assert "ConvInteger" not in {p.op for p in found}


def test_a_runtime_that_gives_nan_is_inexact() -> None:
    class Broken(Clipping):
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return {name: np.full_like(exact, np.nan) for name, (_, exact) in self.wanted.items()}

    assert probe(Broken) == frozenset(kernels._kinds())


@pytest.mark.parametrize("optimise", [False, True])
def test_unsigned_weights_and_weights_of_7_bits_are_exact_on_every_processor(
    optimise: bool,
) -> None:
    found = kernels.inexact(optimise=optimise)
    assert not [p for p in found if p.bits == 7]
    assert not [p for p in found if (p.first, p.second) == ("uint8", "uint8")]


@settings(deadline=None)  # the first example measures
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "uint8"]), st.booleans())
def test_what_is_not_named_is_exact(seed: int, second: str, optimise: bool) -> None:
    """On a processor without VNNI the kernels for uint8 by int8 are named; all others are right."""
    generator = np.random.default_rng(seed)
    limits = np.iinfo(second)
    w = generator.integers(limits.min, limits.max, (32, 16), second, endpoint=True)
    x = generator.integers(0, 255, (3, 32), np.uint8, endpoint=True)
    module = Module.parse(f"""{HEAD} g (uint8[3,32] x) => (int32[3,16] y)
        <{second}[32,16] w = {{{", ".join(map(str, w.reshape(-1)))}}}>
        {{ y = MatMulInteger (x, w) }}""")
    if inexact_nodes(module, optimise=optimise):
        assert second == "int8"
    else:
        found = OrtSession(module, optimise=optimise, threads=1).run({"x": x})["y"]
        np.testing.assert_array_equal(found, x.astype(np.int64) @ w.astype(np.int64))


@pytest.fixture
def clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "inexact", lambda *, optimise=False: probe(Clipping))


WEIGHTS = (
    "<int8[2,2] w = {127, 1, 2, 3}, int8[2,2] n = {64, -64, 2, 3}, uint8[2,2] u = {9, 8, 7, 255}>"
)


@pytest.mark.usefixtures("clipping")
@pytest.mark.parametrize(
    ("node", "is_named"),
    [
        ("y = MatMulInteger (x, w)", True),
        ("y = MatMulInteger (x, n)", False),
        ("y = MatMulInteger (x, u)", False),
        ("y = MatMulInteger (w, x)", False),
        ("y = MatMulInteger (x, v)", True),
        ("y = ConvInteger (x4, w4)", False),
        ("y = com.microsoft.DynamicQuantizeMatMul (f, w, s)", True),
    ],
)
def test_nodes_are_named_by_what_they_multiply(node: str, is_named: bool) -> None:
    module = Module.parse(f"""{HEAD}
        g (uint8[2,2] x, int8[2,2] v, uint8[1,1,2,2] x4, int8[1,1,2,2] w4, float[2,2] f, float s)
          => (y) {WEIGHTS} {{ {node} }}""")
    assert bool(inexact_nodes(module)) == is_named


@pytest.mark.usefixtures("clipping")
def test_products_between_qdq_are_of_integers_only_where_the_runtime_may_rewrite() -> None:
    module = Module.parse(f"""{HEAD} g (float[2,2] x, bool c) => (float[2,2] y)
        <float s = {{0.1}}, uint8 z = {{128}}, int8[2,2] w = {{127, 1, 2, 3}}, int8 o = {{0}}>
        {{
          q = QuantizeLinear (x, s, z)
          y = If (c) <
            then_branch = t () => (float[2,2] a)
              {{ d = DequantizeLinear (q, s, z) e = DequantizeLinear (w, s, o) a = MatMul (d, e) }},
            else_branch = f () => (float[2,2] b) {{ b = DequantizeLinear (q, s, z) }}
          >
        }}""")
    assert inexact_nodes(module) == []
    assert [node.op_type for node in inexact_nodes(module, optimise=True)] == ["MatMul"]
