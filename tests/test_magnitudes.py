"""Constants change places only where their sizes let the results stay what they were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

Array = npt.NDArray[np.float32]
EPS = float(np.finfo(np.float32).eps)
NUMBERS = [
    0.4, -0.6, 1.7, 2.2, 0.5, 1e-9, -3e-20, 1e-38, 1e-44, 1e10, -1e25, 3e38, -2e38, 0.0,
    np.inf, -np.inf, np.nan,
]  # fmt: skip
SCALES = [1e-38, 1e-30, 1e-10, 1e-3, 0.5, 1.0, -3.0, 255.0, 1e10, 1e30, 3e38]
SHIFTS = [12582912.0, -12582912.0, 49152.0, -49152.0, 1.0, -1.0, 0.25, -0.5, 3.0, 1e-8, 1e30, -1e30]


def fused(module: Module) -> Module:
    infer_shapes(module.model)
    after = module.clone()
    PassManager(parse("canonicalize,fuse")).run(after, Context())
    return after


def chain(first: str, a: float, second: str, b: float, dtype: str = "float") -> Module:
    return Module.parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
chain ({dtype}[N] x) => ({dtype}[N] y) <{dtype} a = {{{float(a)!r}}}, {dtype} b = {{{float(b)!r}}}>
{{ m = {first} (x, a)  y = {second} (m, b) }}"""
    )


def both(module: Module, x: npt.NDArray[np.generic]) -> tuple[Array, Array]:
    old, new = (
        OrtSession(each, optimise=False).run({"x": x})["y"] for each in (module, fused(module))
    )
    return old, new


@settings(max_examples=80, deadline=None)
@given(*[st.sampled_from(each) for each in (["Mul", "Div"], SCALES, ["Mul", "Div"], SCALES)])
def test_scales(first: str, a: float, second: str, b: float) -> None:
    x = np.array(NUMBERS, np.float32)
    old, new = both(chain(first, a, second, b), x)
    # What a product between loses at the lower end of float32 can come back by the second scale.
    np.testing.assert_allclose(new, old, rtol=4 * EPS, atol=1e-25)


@settings(max_examples=80, deadline=None)
@given(*[st.sampled_from(each) for each in (["Add", "Sub"], SHIFTS, ["Add", "Sub"], SHIFTS)])
def test_shifts(first: str, a: float, second: str, b: float) -> None:
    x = np.array(NUMBERS, np.float32)
    old, new = both(chain(first, a, second, b), x)
    total = abs((a if first == "Add" else -a) + (b if second == "Add" else -b))
    room = 8 * EPS * (np.abs(np.nan_to_num(x, posinf=0, neginf=0)) + total)
    np.testing.assert_array_equal(np.isnan(new), np.isnan(old))
    np.testing.assert_array_equal(np.isinf(new), np.isinf(old))
    finite = np.isfinite(old)
    assert (np.abs(new[finite] - old[finite]) <= room[finite]).all()


@pytest.mark.parametrize(
    ("first", "second"), [("Add", "Sub"), ("Sub", "Add")], ids=["added first", "taken first"]
)
@pytest.mark.parametrize(
    ("dtype", "number"),
    [("float", 12582912.0), ("float16", 1536.0), ("double", 6755399441055744.0)],
)
def test_numbers_are_rounded_by_adding(first: str, second: str, dtype: str, number: float) -> None:
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    old, new = both(
        chain(first, number, second, number, dtype), np.array([0.4, 0.6, -1.7, 2.2], kind)
    )
    np.testing.assert_array_equal(new, old)
    if dtype != "float16":  # ONNX Runtime adds those in float
        np.testing.assert_array_equal(new, [0, 1, -2, 2])


@pytest.mark.parametrize("x", [1000.0, 60000.0, -1000.0])
def test_half_precision_overflows_where_it_did(x: float) -> None:
    module = chain("Mul", 100.0, "Mul", 0.01, "float16")
    assert len(fused(module).graph) == 2
    assert len(fused(chain("Mul", 0.5, "Mul", 0.25, "float16")).graph) == 1


def test_a_bounded_value_may_be_scaled_up_and_down() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 17]>
g (bool[N] x) => (float[N] y) <float a = {1000.0}, float b = {0.25}>
{ f = Cast <to: int = 1> (x)  s = Sigmoid (f)  m = Mul (s, a)  y = Mul (m, b) }""")
    assert [node.op_type for node in fused(module).graph] == ["Cast", "Sigmoid", "Mul"]


LAYERS = {
    "Conv": ("float[1,3,5,5] x", "Conv ({}, w{})", (4, 3, 1, 1)),
    "ConvTranspose": ("float[1,3,5,5] x", "ConvTranspose ({}, w{})", (3, 4, 2, 2)),
    "Gemm": ("float[5,3] x", "Gemm ({}, w{})", (3, 4)),
    "MatMul": ("float[2,5,3] x", "MatMul ({}, w)", (3, 4)),
}


@st.composite
def layers(draw: st.DrawFn) -> Module:
    """A layer with scales, shifts or a BatchNormalization around it, of all sizes."""
    kind = draw(st.sampled_from(sorted(LAYERS)))
    x, call, shape = LAYERS[kind]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    constants: list[str] = []

    def constant(name: str, dims: tuple[int, ...], size: float) -> str:
        items = ", ".join(repr(float(n)) for n in random.uniform(0.5, 2, dims).ravel() * size)
        constants.append(f"float[{','.join(map(str, dims))}] {name} = {{{items}}}")
        return name

    sizes = st.sampled_from([1e-30, 1e-12, 1e-6, 1.0, 1.0, 100.0, 1e12, 1e25])
    shifts = st.sampled_from([0.0, 1.0, -1.0, 0.01, 12582912.0, -12582912.0, -49152.0])
    column = (1, 1) if "Conv" in kind else ()
    constant("w", shape, draw(sizes))
    biased = kind != "MatMul" and draw(st.booleans())
    bias = f", {constant('b', (4,), draw(shifts))}" if biased else ""
    lines, last = [], "x"

    def step(name: str, channels: int) -> None:
        nonlocal last
        what = draw(st.sampled_from(["Mul", "Div", "Add", "Sub", "BatchNormalization", ""]))
        dims = (channels, *column)
        if what in ("Add", "Sub"):
            lines.append(f"{name} = {what} ({last}, {constant('c' + name, dims, draw(shifts))})")
        elif what in ("Mul", "Div"):
            lines.append(f"{name} = {what} ({last}, {constant('c' + name, dims, draw(sizes))})")
        elif what and kind != "MatMul":
            s, v = (constant(each + name, (channels,), draw(sizes)) for each in "sv")
            t, m = (constant(each + name, (channels,), draw(shifts)) for each in "tm")
            lines.append(f"{name} = BatchNormalization ({last}, {s}, {t}, {m}, {v})")
        else:
            return
        last = name

    step("p", 3)
    lines.append(f"l = {call.format(last, bias)}")
    last = "l"
    step("q", 4)
    step("r", 4)
    lines.append(f"y = Identity ({last})")
    module = Module.parse(
        f'<ir_version: 8, opset_import: ["" : 17]>\nlayers ({x}) => (y)\n'
        f"<{', '.join(constants)}>\n{{ {'  '.join(lines)} }}"
    )
    infer_shapes(module.model)
    return module


@settings(max_examples=100, deadline=None)
@given(layers(), st.integers(0, 99))
def test_layers(module: Module, seed: int) -> None:
    (value,) = module.inputs
    shape = value.shape.numpy()
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    old, new = both(module, x)
    largest = float(np.abs(old).max())
    if not largest < 1e35:  # what overflowed between a scale up and a scale down may not any more
        return
    # A norm of numbers far from 0 has no more digits than the sum of both has.
    np.testing.assert_allclose(new, old, rtol=0, atol=4e-3 * largest + 1e-15)
