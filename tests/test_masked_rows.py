"""Rows of scores that a mask hides whole come out of Attention as they came out of its parts."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.legal.attention import Decompose
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.rules import apply_rules
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

INF, LOW, LOW16 = np.inf, float(np.finfo(np.float32).min), float(np.finfo(np.float16).min)
ROWS = [
    [0, 0, 0], [-INF, 0, 0], [-INF, -INF, -INF], [LOW, LOW, LOW], [-INF, LOW, LOW], [LOW, 0.5, -2],
    [-1e38, -1e38, -1e38], [-1e9, -1e9, -1e9], [-INF, -1e9, -1e9], [np.nan, 0, 0], [INF, 0, 0],
]  # fmt: skip
MASK = np.array(ROWS, np.float32)
KEEP = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]] * 3, bool)[: len(ROWS)]
# What is done to the scores s, with the inputs mask (added) and keep (bool).
FORMS = {
    "added": "m = Add (s, mask)",
    "added to other numbers": "b = Add (s, bias)  m = Add (b, mask)",
    "moved and scaled": "d = Mul (mask, two)  e = Unsqueeze (d, first)  f = Squeeze (e, first) "
    "m = Add (s, f)",
    "chosen from -inf": "m = Where (keep, s, ninf)",
    "chosen from the lowest": "m = Where (keep, s, low)",
    "dropped for -inf": "n = Not (keep)  m = Where (n, ninf, s)",
    "added -inf": "a = Where (keep, zero, ninf)  m = Add (s, a)",
    "added the lowest": "a = Where (keep, zero, low)  m = Add (s, a)",
    "flags times the lowest": "c = Cast <to: int = 1> (keep)  i = Sub (one, c)  a = Mul (i, low) "
    "m = Add (s, a)",
    "never whole": "o = Or (keep, last)  m = Where (o, s, ninf)",
    "never whole, added": "o = Or (keep, last)  a = Where (o, zero, ninf)  m = Add (s, a)",
    "no input": "a = Where (fixed, zero, ninf)  m = Add (s, a)",
}
GUARDS = {"plain": "w = Identity (p)", "guarded": "e1 = IsNaN (p)  w = Where (e1, zero, p)"}


def attention(form: str, guard: str, dtype: str) -> Module:
    low, rows = LOW if dtype == "float" else LOW16, len(ROWS)
    fixed = ", ".join(str(int(x)) for x in (KEEP | [False, True, False]).ravel())
    module = Module.parse(
        f"""<ir_version: 10, opset_import: ["" : 17]>
attn ({dtype}[1,{rows},4] q, {dtype}[1,3,4] k, {dtype}[1,3,4] v, {dtype}[{rows},3] mask,
      {dtype}[1,{rows},3] bias, bool[{rows},3] keep) => (y)
<{dtype} zero = {{0.0}}, {dtype} one = {{1.0}}, {dtype} two = {{2.0}}, {dtype} low = {{{low!r}}},
 {dtype} ninf = {{-inf}}, bool[3] last = {{0, 0, 1}}, int64[1] first = {{0}},
 bool[{rows},3] fixed = {{{fixed}}}>
{{
  kt = Transpose <perm: ints = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  {FORMS[form].replace("int = 1", "int = 10" if dtype == "float16" else "int = 1")}
  p = Softmax <axis: int = -1> (m)
  {GUARDS[guard]}
  y = MatMul (w, v)
}}"""
    )
    infer_shapes(module.model)
    return module


def feeds(module: Module, dtype: str) -> dict[str, npt.NDArray[np.generic]]:
    random, kind = np.random.default_rng(0), np.float32 if dtype == "float" else np.float16
    numbers = {
        name: random.standard_normal(shape).astype(kind)
        for name, shape in {"q": (1, len(ROWS), 4), "k": (1, 3, 4), "v": (1, 3, 4)}.items()
    }
    with np.errstate(over="ignore"):
        mask = np.where(np.isfinite(MASK), np.maximum(MASK, LOW16 if kind == np.float16 else LOW),
                        MASK).astype(kind)  # fmt: skip
    bias = random.standard_normal((1, len(ROWS), 3)).astype(kind)
    return {**numbers, "mask": mask, "bias": bias, "keep": KEEP}


def fused(module: Module) -> Module:
    after = module.clone()
    PassManager(parse("canonicalize,fuse")).run(after, Context())
    return after


@pytest.mark.parametrize(("form", "guard"), list(itertools.product(FORMS, GUARDS)))
def test_a_row_that_is_hidden_whole_means_what_it_meant(form: str, guard: str) -> None:
    module = attention(form, guard, "float")
    given = feeds(module, "float")
    if "moved" in form:  # twice the lowest is -inf
        given["mask"] = np.where(given["mask"] == LOW, np.float32(LOW / 2), given["mask"])
    if guard == "guarded":  # the guard hides NaN of any origin, and Attention that of masks alone
        given["mask"] = np.where(np.isnan(MASK) | (MASK == INF), np.float32(0), given["mask"])
    wanted = OrtSession(module, optimise=False).run(given)["y"]
    after = fused(module)
    assert [node.op_type for node in after.graph].count("Attention") == 1
    found = OrtSession(after, optimise=False).run(given)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert apply_rules(after, [Decompose()], Context()) == 1
    parts = OrtSession(after, optimise=False).run(given)["y"]
    np.testing.assert_allclose(parts, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("form", "guard"), list(itertools.product(FORMS, GUARDS)))
def test_half_precision_has_nan_where_it_had(form: str, guard: str) -> None:
    module = attention(form, guard, "float16")
    given = feeds(module, "float16")
    if guard == "guarded":
        given["mask"] = np.where(np.isnan(MASK) | (MASK == INF), np.float16(0), given["mask"])
    wanted = OrtSession(module, optimise=False).run(given)["y"]
    found = OrtSession(fused(module), optimise=False).run(given)["y"]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))


@pytest.mark.parametrize("form", ["never whole", "never whole, added", "no input"])
@pytest.mark.parametrize("guard", GUARDS)
def test_a_mask_that_hides_no_row_gets_no_nodes_for_it(form: str, guard: str) -> None:
    operators = {node.op_type for node in fused(attention(form, guard, "float")).graph}
    assert not {"ReduceMax", "IsNaN", "Mul"} & operators


@pytest.mark.parametrize("mask", ["float", "bool"])
@pytest.mark.parametrize("causal", [0, 1])
def test_the_parts_of_an_attention_hide_what_it_hides(mask: str, causal: int) -> None:
    rows = len(ROWS)
    module = Module.parse(
        f"""<ir_version: 10, opset_import: ["" : 23]>
a (float[1,2,{rows},4] q, float[1,2,3,4] k, float[1,2,3,4] v, {mask}[{rows},3] mask) => (y)
{{ y = Attention <is_causal: int = {causal}> (q, k, v, mask) }}"""
    )
    infer_shapes(module.model)
    random = np.random.default_rng(0)
    given: dict[str, npt.NDArray[np.generic]] = {
        name: random.standard_normal((1, 2, size, 4)).astype(np.float32)
        for name, size in {"q": rows, "k": 3, "v": 3}.items()
    }
    given["mask"] = KEEP if mask == "bool" else MASK
    given["q"][0, 0, 0, 0] = np.nan
    wanted = OrtSession(module, optimise=False).run(given)["y"]
    assert np.isnan(wanted[0, 0, 0]).all()
    assert not wanted[0, 1, 2].any()
    assert apply_rules(module, [Decompose()], Context()) == 1
    found = OrtSession(module, optimise=False).run(given)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
