"""Recurrent layers spelt by legalize give what ONNX Runtime gives, whatever their attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.legal.recurrent import Unrolled
from aigcc.pipeline.context import Context
from aigcc.pipeline.rules import apply_rules
from aigcc.runtime import OrtSession

Feeds = dict[str, npt.NDArray[Any]]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = [
    "Sigmoid", "Tanh", "Relu", "LeakyRelu", "HardSigmoid", "Elu", "Softsign", "Softplus", "Affine",
    "ScaledTanh", "ThresholdedRelu",
]  # fmt: skip
WITH_ALPHA = {"LeakyRelu", "HardSigmoid", "Elu", "Affine", "ScaledTanh", "ThresholdedRelu"}
WITH_BETA = {"HardSigmoid", "Affine", "ScaledTanh"}


def layer(
    kind: str, attributes: str, shapes: dict[str, tuple[int, ...]], opset: int = 20
) -> Module:
    """A module of one layer, whose inputs are those that have a shape."""
    order = ["x", "w", "r", "b", "lengths", "h", *(["c", "p"] if kind == "LSTM" else [])]
    inputs = ", ".join(
        f"{'int32' if name == 'lengths' else 'float'}{list(shape)} {name}"
        for name, shape in shapes.items()
    )
    outputs = "y, last" + (", cell" if kind == "LSTM" else "")
    names = ", ".join(name if name in shapes else '""' for name in order)
    made = Module.parse(f"""<ir_version: 9, opset_import: ["" : {opset}]>
g ({inputs}) => ({outputs}) {{ {outputs} = {kind} <{attributes}> ({names}) }}""")
    infer_shapes(made.model)
    return made


def feeds_of(shapes: dict[str, tuple[int, ...]], steps: int) -> Feeds:
    random = np.random.default_rng(0)
    return {
        name: random.integers(1, steps + 1, shape).astype(np.int32)
        if name == "lengths"
        else random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@st.composite
def layers(draw: st.DrawFn) -> tuple[Module, Feeds]:
    kind = draw(st.sampled_from(list(GATES)))
    steps, batch, hidden = (draw(st.integers(1, 4)) for _ in range(3))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    ways = 2 if direction == "bidirectional" else 1
    wide = GATES[kind] * hidden
    attributes = [f'direction = "{direction}"', f"hidden_size = {hidden}"]
    attributes += draw(st.sampled_from([[], ["clip = 0.5"]]))
    if kind == "LSTM":
        attributes += draw(st.sampled_from([[], ["input_forget = 1"]]))
    if kind == "GRU":
        attributes += draw(st.sampled_from([[], ["linear_before_reset = 1"]]))
    if draw(st.booleans()):
        count = {"LSTM": 3, "GRU": 2, "RNN": 1}[kind] * ways
        chosen = draw(st.lists(st.sampled_from(ACTIVATIONS), min_size=count, max_size=count))
        listed = ", ".join(f'"{name}"' for name in chosen)
        attributes.append(f"activations = [{listed}]")
        for name, takers in (("alpha", WITH_ALPHA), ("beta", WITH_BETA)):
            numbers = [f"{0.2 + 0.1 * i:.1f}" for i, a in enumerate(chosen) if a in takers]
            if numbers:
                attributes.append(f"activation_{name} = [{', '.join(numbers)}]")
    shapes = {
        "x": (steps, batch, 3),
        "w": (ways, wide, 3),
        "r": (ways, wide, hidden),
        "b": (ways, 2 * wide),
        "lengths": (batch,),
        "h": (ways, batch, hidden),
        "c": (ways, batch, hidden),
        "p": (ways, 3 * hidden),
    }
    left_out = draw(st.sets(st.sampled_from(["b", "lengths", "h", "c", "p"])))
    left_out |= set() if kind == "LSTM" else {"c", "p"}
    shapes = {name: shape for name, shape in shapes.items() if name not in left_out}
    return layer(kind, ", ".join(attributes), shapes), feeds_of(shapes, steps)


@given(layers())
@settings(max_examples=80, deadline=None)
def test_all_outputs_are_equal(case: tuple[Module, Feeds]) -> None:
    made, feeds = case
    before = OrtSession(made, optimise=False).run(feeds)
    assume(all(np.isfinite(array).all() for array in before.values()))  # some activations explode
    assert apply_rules(made, [Unrolled()], Context()) == 1
    after = OrtSession(made, optimise=False).run(feeds)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, 1e-4, 1e-5, err_msg=name)


@pytest.mark.parametrize("kind", GATES)
def test_batches_come_first_where_the_layout_says_so(kind: str) -> None:
    wide = 2 * GATES[kind]
    shapes = {"x": (3, 4, 5), "w": (1, wide, 5), "r": (1, wide, 2), "h": (3, 1, 2)}
    feeds = feeds_of(shapes, 4)
    batch = layer(kind, "hidden_size = 2, layout = 1", shapes)
    assert apply_rules(batch, [Unrolled()], Context()) == 1
    turned = {"x": (4, 3, 5), "h": (1, 3, 2)}
    usual = layer(kind, "hidden_size = 2", shapes | turned)
    turn = {"x": feeds["x"].transpose(1, 0, 2), "h": feeds["h"].transpose(1, 0, 2)}
    right = OrtSession(usual, optimise=False).run(feeds | turn)
    y = OrtSession(batch, optimise=False).run(feeds)
    np.testing.assert_allclose(y["y"], right["y"].transpose(2, 0, 1, 3), 1e-5, 1e-6)
    for name in list(right)[1:]:
        np.testing.assert_allclose(y[name], right[name].transpose(1, 0, 2), 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("attributes", "x", "reason"),
    [
        ("hidden_size = 2", "float[n,1,3]", "no known length"),
        ("hidden_size = 2", "float[1000,1,3]", "1000 steps are too many"),
        ('activations = ["Affine"], hidden_size = 2', "float[2,1,3]", "no alpha or beta"),
    ],
)
def test_what_is_not_spelt_is_said(attributes: str, x: str, reason: str) -> None:
    made = Module.parse(f"""<ir_version: 9, opset_import: ["" : 20]>
g ({x} x, float[1,2,3] w, float[1,2,2] r) => (y) {{ y, h = RNN <{attributes}> (x, w, r) }}""")
    infer_shapes(made.model)
    ctx = Context()
    assert apply_rules(made, [Unrolled()], ctx) == 0
    assert reason in str(ctx.remarks)


def test_an_output_without_a_name_gives_none_to_what_takes_its_place() -> None:
    module = Module.parse("""<ir_version: 9, opset_import: ["" : 20]>
g (float[3,1,2] x, float[1,12,2] w, float[1,12,3] r) => (float[1,1,3] last) {
  "", last, cell = LSTM <hidden_size = 3> (x, w, r) }""")
    infer_shapes(module.model)
    assert apply_rules(module, [Unrolled()], Context()) == 1
    assert all(value.name != "" for node in module.nodes() for value in node.outputs)
