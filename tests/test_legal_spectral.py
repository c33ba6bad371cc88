"""Fourier transforms spelt by legalize give what numpy gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.passes.legal.spectral import Dft, Stft
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import apply_rules
from aigcc.runtime import OrtSession


def run(text: str, x: npt.NDArray[np.float32], opset: int = 20) -> npt.NDArray[np.float32]:
    """The output of a module of one transform, spelt."""
    made = Module.parse(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    assert apply_rules(made, [Stft(), Dft()], Context()) == 1
    return OrtSession(made, optimise=False).run({"x": x})["y"]


def parts(values: npt.NDArray[np.complex128]) -> npt.NDArray[np.float64]:
    return np.stack([values.real, values.imag], -1)


@given(
    length=st.integers(8, 40),
    width=st.integers(1, 8),
    step=st.integers(1, 5),
    form=st.sampled_from(["real", "column", "complex"]),
    one_sided=st.booleans(),
    windowed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_short_time_transforms(
    length: int, width: int, step: int, form: str, one_sided: bool, windowed: bool
) -> None:
    one_sided &= form != "complex"
    random = np.random.default_rng(0)
    shape = {"real": (2, length), "column": (2, length, 1), "complex": (2, length, 2)}[form]
    x = random.standard_normal(shape).astype(np.float32)
    window = random.standard_normal(width).astype(np.float32) if windowed else np.ones(width)
    numbers = ", ".join(f"{number:.9g}" for number in window)
    y = run(
        f"""g (float{list(shape)} x) => (y)
<int64 step = {{{step}}}, float[{width}] w = {{{numbers}}}, int64 width = {{{width}}}>
{{ y = STFT <onesided = {int(one_sided)}> (x, step, {"w" if windowed else '""'}, width) }}""",
        x,
    )
    signal = {"real": lambda: x, "column": lambda: x[..., 0]}.get(
        form, lambda: x[..., 0] + 1j * x[..., 1]
    )()
    starts = range(0, length - width + 1, step)
    frames = np.stack([signal[:, start : start + width] for start in starts], 1) * window
    right = np.fft.fft(frames.astype(np.complex128))
    right = right[..., : width // 2 + 1] if one_sided else right
    np.testing.assert_allclose(y, parts(right), 1e-4, 1e-4)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [None, 3, 9])
@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("components", [1, 2])
def test_transforms(
    opset: int, axis: int, length: int | None, inverse: int, components: int
) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, 6, components)).astype(np.float32)
    one_sided = int(not inverse and components == 1)
    attributes = f"inverse = {inverse}, onesided = {one_sided}"
    attributes += f", axis = {axis}" if opset == 17 else ""
    inputs = f"x, {'n' if length else chr(34) * 2}" + (", axis" if opset == 20 else "")
    y = run(
        f"""g (float[4,5,6,{components}] x) => (y) <int64 n = {{{length or 0}}},
 int64 axis = {{{axis}}}> {{ y = DFT <{attributes}> ({inputs}) }}""",
        x,
        opset,
    )
    values = x.astype(np.float64) @ np.array([1, 1j])[:components]
    right = (np.fft.ifft if inverse else np.fft.fft)(values, length, axis)
    if one_sided:
        right = np.take(right, range(right.shape[axis] // 2 + 1), axis)
    np.testing.assert_allclose(y, parts(right), 1e-4, 1e-4)


def test_long_transforms_keep_their_digits() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1 << 11, 1)).astype(np.float32)
    y = run("g (float[1,2048,1] x) => (y) { y = DFT <onesided = 1> (x) }", x)
    right = parts(np.fft.rfft(x[..., 0].astype(np.float64)))
    assert np.abs(y - right).max() <= 2e-6 * np.abs(right).max()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[1,n] x) => (y) <int64 s = {2}, int64 w = {4}> { y = STFT (x, s, , w) }",
            "no kn",
        ),
        ("g (float[1,9] x, int64 s) => (y) <int64 w = {4}> { y = STFT (x, s, , w) }", "not const"),
        ("g (float[1,9,2] x) => (y) { y = DFT <inverse = 1, onesided = 1> (x) }", "not spelt"),
    ],
)
def test_what_is_not_spelt_is_said(text: str, reason: str) -> None:
    made, ctx = Module.parse(f'<ir_version: 9, opset_import: ["" : 20]>\n{text}'), Context()
    assert apply_rules(made, [Stft(), Dft()], ctx) == 0
    assert reason in str(ctx.remarks)
