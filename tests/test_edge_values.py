"""NaN, infinities, zeros, huge and tiny numbers come out of a rewritten graph as out of the old."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

# Not so large that squares overflow: what overflows spelled out need not inside of one operator.
NUMBERS = [0, -0.0, 1, -1, 0.5, 3, -20, 100, -1e4, 1e9, -1e15, 1e-9, -1e-20, np.inf, -np.inf,
           np.nan]  # fmt: skip
CONSTANTS = {
    "zero": 0.0, "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0, "six": 6.0, "minus": -1.0,
    "root": 1.4142135, "cube": 0.044715, "slope": 0.7978846, "tiny": 1e-5, "low": -3.4028234e38,
    "hidden": float("-inf"), "nan": float("nan"), "large": 50.0, "sigma": 1.702,
}  # fmt: skip
# Parts of graphs, as exporters write them; {x} and {y} are values, each line makes `name`.
PARTS = {
    "gelu": "{n}a = Div ({x}, root)  {n}b = Erf ({n}a)  {n}c = Add ({n}b, one)  "
    "{n}d = Mul ({x}, half)  {n} = Mul ({n}d, {n}c)",
    "gelu-tanh": "{n}a = Mul ({x}, {x})  {n}b = Mul ({n}a, {x})  {n}c = Mul ({n}b, cube)  "
    "{n}d = Add ({x}, {n}c)  {n}e = Mul ({n}d, slope)  {n}f = Tanh ({n}e)  {n}g = Add ({n}f, one)"
    "  {n}h = Mul ({x}, half)  {n} = Mul ({n}h, {n}g)",
    "swish": "{n}a = Sigmoid ({x})  {n} = Mul ({x}, {n}a)",
    "quick gelu": "{n}s = Mul ({x}, sigma)  {n}a = Sigmoid ({n}s)  {n} = Mul ({x}, {n}a)",
    "hard swish": "{n}a = Add ({x}, three)  {n}b = Clip ({n}a, zero, six)  {n}c = Div ({n}b, six)"
    "  {n} = Mul ({x}, {n}c)",
    "hard sigmoid": "{n}a = Add ({x}, three)  {n}b = Relu ({n}a)  {n}c = Min ({n}b, six)"
    "  {n} = Div ({n}c, six)",
    "mish": "{n}a = Softplus ({x})  {n}b = Tanh ({n}a)  {n} = Mul ({x}, {n}b)",
    "layer norm": "{n}a = ReduceMean <axes: ints = [-1]> ({x})  {n}b = Sub ({x}, {n}a)  "
    "{n}c = Mul ({n}b, {n}b)  {n}d = ReduceMean <axes: ints = [-1]> ({n}c)  "
    "{n}e = Add ({n}d, tiny)  {n}f = Sqrt ({n}e)  {n}g = Div ({n}b, {n}f)  {n} = Mul ({n}g, row)",
    "rms norm": "{n}a = Mul ({x}, {x})  {n}b = ReduceMean <axes: ints = [-1]> ({n}a)  "
    "{n}c = Add ({n}b, tiny)  {n}d = Sqrt ({n}c)  {n} = Div ({x}, {n}d)",
    "softmax": "{n} = Softmax <axis: int = -1> ({x})",
    "guarded softmax": "{n}a = Softmax <axis: int = -1> ({x})  {n}b = IsNaN ({n}a)  "
    "{n} = Where ({n}b, zero, {n}a)",
    "masked": "{n} = Where (keep, {x}, hidden)",
    "masked low": "{n}a = Where (keep, zero, low)  {n}b = Add ({x}, {n}a)  "
    "{n} = Softmax <axis: int = -1> ({n}b)",
    "chosen": "{n} = Where (keep, {x}, {y})",
    "always": "{n}a = Where (all, {x}, {y})  {n} = Neg ({n}a)",
    "scales": "{n}a = Mul ({x}, two)  {n} = Mul ({n}a, {c})",
    "shifts": "{n}a = Add ({x}, {c})  {n} = Sub ({n}a, two)",
    "neutral": "{n}a = Mul ({x}, one)  {n}b = Sub ({n}a, zero)  {n} = Div ({n}b, one)",
    "affine": "{n}a = Mul ({x}, half)  {n}b = Add ({n}a, {c})  {n} = Mul ({n}b, half)",
    "nothing": "{n} = Sub ({x}, {x})",
    "ratio": "{n} = Div ({x}, {y})",
    "product": "{n} = Mul ({x}, {c})",
    "clip": "{n} = Clip ({x}, minus, three)",
    "most": "{n} = Max ({x}, {c})",
    "relu": "{n} = Relu ({x})",
    "power": "{n} = Pow ({x}, one)",
    "reciprocal": "{n} = Reciprocal ({x})",
    "layer": "{n}a = MatMul ({x}, weight)  {n}b = Add ({n}a, row)  {n} = Mul ({n}b, half)",
    "casts": "{n}a = Cast <to: int = 11> ({x})  {n} = Cast <to: int = 1> ({n}a)",
    "half": "{n}a = Cast <to: int = 10> ({x})  {n} = Cast <to: int = 1> ({n}a)",
}


@st.composite
def graphs(draw: st.DrawFn) -> Module:
    values, lines = ["x", "z"], []
    for number in range(draw(st.integers(1, 4))):
        part, name = draw(st.sampled_from(sorted(PARTS))), f"v{number}"
        names = st.sampled_from(sorted(CONSTANTS))
        x, y, c = draw(st.sampled_from(values)), draw(st.sampled_from(values)), draw(names)
        lines.append(PARTS[part].format(n=name, x=x, y=y, c=c))
        values.append(name)
    constants = ", ".join(f"float {name} = {{{number!r}}}" for name, number in CONSTANTS.items())
    module = Module.parse(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"edges (float[3,4] x, float[3,4] z, bool[3,4] keep) => ({values[-1]})\n"
        f"<{constants}, float[4] row = {{1.0, -2.0, 0.5, 3.0}}, bool[1] all = {{1}},\n"
        " float[4,4] weight = {1.0, 0.5, 0.0, 2.0, -1.0, 3.0, 1.0, 0.0, 0.0, 1.0, 0.25, 1.0, 2.0,"
        " 0.0, 0.0, -1.0}>\n{\n" + "\n".join(lines) + "\n}"
    )
    infer_shapes(module.model)
    return module


@settings(max_examples=100, deadline=None)
@given(graphs(), st.integers(0, 2**32 - 1))
def test_edge_values(module: Module, seed: int) -> None:
    random = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        name: random.choice(np.array(NUMBERS, np.float32), (3, 4)) for name in ("x", "z")
    }
    feeds["keep"] = random.random((3, 4)) > 0.5
    after = module.clone()
    PassManager(parse("canonicalize,fuse")).run(after, Context())
    (old,), (new,) = (
        OrtSession(each, optimise=False).run(feeds).values() for each in (module, after)
    )
    np.testing.assert_array_equal(np.isnan(new), np.isnan(old))
    np.testing.assert_array_equal(np.isinf(new), np.isinf(old))
    finite = np.isfinite(old)
    old, new = np.where(finite, old, 0), np.where(finite, new, 0)
    assert (np.abs(new - old) <= 1e-4 * np.abs(old).max(-1, keepdims=True) + 1e-6).all()
