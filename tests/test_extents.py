"""What a value can hold is never less than what it holds, whatever the inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.analysis.extent import ANYTHING, Extent
from aigcc.analysis.extents import Extents
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.runtime import OrtSession

INF, NAN = math.inf, math.nan
NUMBERS = [0, -0.0, 1, -1, 0.5, -2.5, 7, 1e-30, 3e4, 7e4, -7e4, 1e20, -1e30, 3e38, INF, -INF, NAN]
TABLES = [[0, 1, 2, 3], [-1, 0.5, 0.25, 1], [-3e38, 0, 0, 0], [1e20, -1e20, 1, 1], [0, -INF, 0, 0],
          [6e4, 5e4, -6e4, 1], [NAN, 0, 1, 2], [1, 2, 3, 4]]  # fmt: skip
UNARY = [
    "Abs", "Erf", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh",
    "Softmax", "Softmax <axis: int = 0>", "Transpose", "HardSigmoid",
]  # fmt: skip
CALLS = [
    "Clip ({0}, low, high)", "Pow ({0}, two)", "ReduceMean ({0}, last)", "ReduceSum ({0}, last)",
    "ReduceMax ({0}, last)", "Trilu ({0})", "LayerNormalization ({0}, t1, t7)",
    "LayerNormalization ({0}, t7)", "Gemm <alpha: float = 2.0> ({0}, {1}, t1)",
    "Pad ({0}, pads, high)",
]  # fmt: skip
BINARY = ["Add", "Sub", "Mul", "Div", "MatMul", "Max", "Min", "Sum"]


@st.composite
def graphs(draw: st.DrawFn) -> Module:
    """Square matrices of some origin, and what random operators make of them."""
    constants = [
        f"float[4] t{n} = {{{', '.join(map(repr, map(float, table)))}}}"
        for n, table in enumerate(TABLES)
    ]
    lines, values = [], ["x"]

    def node(call: str) -> str:
        values.append(f"v{len(lines)}")
        lines.append(f"{values[-1]} = {call}")
        return values[-1]

    for _ in range(2):
        node(f"Gather (t{draw(st.integers(0, len(TABLES) - 1))}, ids)")
    node("Cast <to: int = 1> (flags)")
    for _ in range(draw(st.integers(2, 8))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            narrow = node(f"Cast <to: int = {draw(st.sampled_from([10, 1, 7, 6, 9]))}> ({a})")
            values.pop()
            node(f"Cast <to: int = 1> ({narrow})")
        elif kind == 1:
            node(f"Where (flags, {a}, {b})")
        elif kind == 2:
            nan = node(f"IsNaN ({a})")
            values.pop()
            node(f"Where ({nan}, {b}, {a})")
        elif kind == 3:
            made = node(draw(st.sampled_from(CALLS)).format(a, b))
            if "Pad" in lines[-1]:
                values.pop()
                node(f"Slice ({made}, begin, end)")
            elif "Reduce" in lines[-1]:
                values.pop()
                node(f"Expand ({made}, whole)")
        elif kind == 4:
            node(f"{draw(st.sampled_from(UNARY))} ({a})")
        else:
            node(f"{draw(st.sampled_from(BINARY))} ({a}, {b})")
    shown = [value for value in values if value != "x"]
    module = Module.parse(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"random (float[4,4] x, int64[4,4] ids, bool[4,4] flags) => ({', '.join(shown)})\n"
        f"<{', '.join(constants)}, float low = {{-2.0}}, float high = {{9.0}}, float two = {{2.0}},"
        " int64[1] last = {-1}, int64[4] pads = {1, 1, 0, 0}, int64[2] begin = {0, 0},"
        " int64[2] end = {4, 4}, int64[2] whole = {4, 4}>\n{\n" + "\n".join(lines) + "\n}"
    )
    infer_shapes(module.model)
    return module


def holds(extent: Extent, array: np.ndarray) -> bool:
    """Whether bounds are those of an array, within what computing rounds."""
    numbers = array[~np.isnan(array)].astype(np.float64)
    if np.isnan(array).any() and not extent.nan:
        return False
    if (numbers == INF).any() and extent.high != INF:
        return False
    if (numbers == -INF).any() and extent.low != -INF:
        return False
    finite = numbers[np.isfinite(numbers)]
    room = 1e-3 * min(extent.reach, 1e300) + 1e-6
    return bool((finite >= extent.low - room).all() and (finite <= extent.high + room).all())


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 2**32 - 1))
def test_nothing_is_outside_of_an_extent(module: Module, seed: int) -> None:
    random = np.random.default_rng(seed)
    feeds = {
        "x": random.choice(np.array(NUMBERS, np.float32), (4, 4)),
        "ids": random.integers(0, 4, (4, 4)),
        "flags": random.random((4, 4)) > 0.5,
    }
    results = OrtSession(module, optimise=False).run(feeds)
    extents = Extents()
    for value in module.outputs:
        extent = extents.of(value)
        assert holds(extent, results[str(value.name)]), (value.name, extent)


@pytest.mark.parametrize(
    ("call", "extent"),
    [
        ("Softmax (g)", Extent(0, 1)),
        ("LayerNormalization (g, w)", Extent(-2.02, 2.02)),
        ("MatMul (g, g)", Extent(-4 * 18.18, 4 * 36.36)),
        ("Cast <to: int = 10> (ids)", Extent(-INF, INF)),
        ("Cast <to: int = 1> (flags)", Extent(0, 1)),
        ("Div (w, g)", Extent(-INF, INF, True)),
        ("Identity (x)", ANYTHING),
        ("Sigmoid (x)", Extent(0, 1, True)),
    ],
)
def test_what_is_known(call: str, extent: Extent) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[4] x, int64[4,4] ids, bool[4] flags) => (y)
<float[3] t = {{-4.0, 6.0, 0.0}}, float[4] w = {{1.0, 1.0, 0.0, 1.0}}, float d = {{-3.0}}>
{{ r = Gather (t, ids) g = Max (r, d)  y = {call} }}""")
    infer_shapes(module.model)
    found = Extents().of(module.outputs[0])
    assert found.nan == extent.nan
    np.testing.assert_allclose([found.low, found.high], [extent.low, extent.high], rtol=1e-3)


def test_branches_are_taken_together_and_loops_can_give_anything() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 20]>
g (bool c, int64 n) => (y, z) <float one = {1.0}, float[2] two = {-2.0, 3.0}> {
  y = If (c) < then_branch = a () => (float[2] s) { s = Neg (two) },
               else_branch = b () => (float[2] t) { t = Identity (two) } >
  z = Loop (n, c, one) < body = l (int64 i, bool k, float f) => (bool k2, float f2) {
    k2 = Identity (k)  f2 = Add (f, f) } >
}""")
    infer_shapes(module.model)
    y, z = (Extents().of(value) for value in module.outputs)
    assert (y, z) == (Extent(-3, 3), ANYTHING)
