"""Resize spelt by legalize gives what ONNX Runtime gives, whatever its attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.legal.resize import SpelledResize
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import apply_rules
from aigcc.runtime import OrtSession

MODES = [
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "half_pixel_symmetric",
]
ROI = "float[8] roi = {0, 0, 0.1, -0.2, 1, 1, 0.8, 0.9}, float[4] part = {0.1, -0.2, 0.8, 0.9}"


def check(call: str, x: str = "float[1,2,5,7]", data: str = "", opset: int = 19) -> None:
    """Compare the two forms on random numbers."""
    made = Module.parse(f"""<ir_version: 9, opset_import: ["" : {opset}]>
g ({x} x) => (y) <{ROI}, {data}> {{ y = {call} }}""")
    infer_shapes(made.model)
    assert made.inputs[0].shape is not None
    sizes = [size if isinstance(size, int) else 2 for size in made.inputs[0].shape]
    feeds = {"x": np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
    before = OrtSession(made, optimise=False).run(feeds)["y"]
    ctx = Context()
    assert apply_rules(made, [SpelledResize()], ctx) == 1, ctx.remarks
    after = OrtSession(made, optimise=False).run(feeds)["y"]
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, 1e-4, 1e-4)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, str]:
    """A call of Resize, its input's type, and its constants."""
    kind = draw(st.sampled_from(["linear", "cubic"]))
    mode = draw(st.sampled_from(MODES))
    attributes = [f'mode = "{kind}"', f'coordinate_transformation_mode = "{mode}"']
    if draw(st.booleans()):
        attributes.append("antialias = 1")
    if kind == "cubic" and draw(st.booleans()):
        attributes += ["exclude_outside = 1", "cubic_coeff_a = -0.5"]
    by_axes = draw(st.booleans())
    attributes += ["axes = [2, 3]"] if by_axes else []
    roi, first = '""', "" if by_axes else "1, 2, "
    if mode == "tf_crop_and_resize":
        roi = "part" if by_axes else "roi"
        attributes.append("extrapolation_value = 7.0")
    count = 2 if by_axes else 4
    if draw(st.booleans()):
        scales = st.sampled_from([0.3, 0.5, 1, 1.3, 2, 2.5])
        first = first.replace("2", "1")
        data = f"float[{count}] s = {{{first}{draw(scales)}, {draw(scales)}}}"
        inputs = f"x, {roi}, s"
    else:
        size = st.integers(1, 12)
        if by_axes and draw(st.booleans()):
            policy = draw(st.sampled_from(["not_larger", "not_smaller"]))
            attributes.append(f'keep_aspect_ratio_policy = "{policy}"')
        data = f"int64[{count}] s = {{{first}{draw(size)}, {draw(size)}}}"
        inputs = f'x, {roi}, "", s'
    shape = f"float[1,2,{draw(st.integers(1, 9))},{draw(st.integers(1, 9))}]"
    return f"Resize <{', '.join(attributes)}> ({inputs})", shape, data


@given(calls())
@settings(max_examples=80, deadline=None)
def test_linear_and_cubic(case: tuple[str, str, str]) -> None:
    check(*case)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_nearest(rounding: str, mode: str, scale: float) -> None:
    check(
        f'Resize <nearest_mode = "{rounding}", coordinate_transformation_mode = "{mode}"> (x, , s)',
        "float[1,2,4,6]",
        f"float[4] s = {{1, 1, {scale}, {scale}}}",
    )


@pytest.mark.parametrize(
    ("call", "x", "data", "opset"),
    [
        ('Resize <mode = "linear"> (x, , , s)', "float[2,2,4]", "int64[3] s = {2, 2, 9}", 13),
        ('Resize <mode = "linear"> (x, s)', "float[1,2,4,4]", "float[4] s = {1, 1, 2, 1.5}", 10),
        ('Resize <mode = "nearest"> (x, , s)', "float[2,4]", "float[2] s = {3, 0.5}", 18),
        ("Resize <axes = [1]> (x, , , s)", "float[n,4,h]", "int64[1] s = {8}", 18),
        (
            'Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , s)',
            "float[1,2,5,7]",
            "int64[4] s = {1, 2, 1, 1}",
            18,
        ),
        ("Resize (x, , s)", "float[1,2,5]", "float[3] s = {1, 1, 1}", 18),
    ],
)
def test_forms(call: str, x: str, data: str, opset: int) -> None:
    check(call, x, data, opset)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("(float[1,2,h,4] x) => (y) <float[4] s = {1, 1, 2, 2}>", "not of known size"),
        ("(float[1,2,4,4] x, float[4] s) => (y)", "not constant"),
    ],
)
def test_what_is_not_known_is_said(head: str, reason: str) -> None:
    made = Module.parse(f"""<ir_version: 9, opset_import: ["" : 19]>
g {head} {{ y = Resize <mode = "linear"> (x, , s) }}""")
    ctx = Context()
    assert apply_rules(made, [SpelledResize()], ctx) == 0
    assert reason in str(ctx.remarks)
