"""What a target lacks is replaced by what it has, and computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.errors import PassError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.legal.norms import SummedGroupNorm
from aigcc.passes.legal.products import VectorMatMul
from aigcc.passes.legalize import Legalize
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.rules import apply_rules
from aigcc.runtime import OrtSession
from aigcc.target import Capabilities, Lowered, Problem, Requirement, Target, node_label

Draw = st.DrawFn
OPERATORS = frozenset(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == "")
DTYPES = frozenset({"float", "float16", "int64", "bool"})


@dataclasses.dataclass(frozen=True)
class Device(Target):
    """A device that lacks some operators and prefers some replacements."""

    name: ClassVar[str] = "device"
    summary: ClassVar[str] = "made up"
    lacks: frozenset[str] = frozenset()
    opset: tuple[int, int] = (7, 24)
    prefer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def can(self) -> Capabilities:
        ops = dict.fromkeys(OPERATORS - self.lacks, ())
        return Capabilities(self.opset, ops, DTYPES, {"prefer": self.prefer})

    def pipeline(self) -> str:
        return "legalize"

    def requirements(self) -> list[Requirement]:
        return []

    def lower(self, module: Module, out: Path, ctx: Context) -> Lowered:
        raise NotImplementedError

    def session(self, folder: Path, entry: str, threads: int | None = None) -> None:
        return None

    def example(self, module: Module, entry: str) -> str:
        return ""


def feeds_for(module: Module) -> dict[str, np.ndarray]:
    random, feeds = np.random.default_rng(0), {}
    for value in module.inputs:
        sizes = [d if isinstance(d, int) else 3 for d in value.shape or ()]
        array = random.standard_normal(sizes)
        if value.dtype == ir.DataType.BOOL:
            array = array > -0.5
        feeds[value.name or ""] = array.astype(value.dtype.numpy() if value.dtype else np.float32)
    return feeds


def legalised(module: Module, device: Device, tolerance: float = 1e-5) -> Module:
    """Legalise a module for a device, and check its outputs against what they were."""
    infer_shapes(module.model)
    after = module.clone()
    PassManager([Legalize()]).run(after, Context(target=device))
    assert device.check(after) == [], after.text()
    feeds = feeds_for(module)
    old, new = (OrtSession(each, optimise=False).run(feeds) for each in (module, after))
    assert list(old) == list(new)
    for name, array in old.items():
        largest = float(np.abs(array).max(initial=0))
        np.testing.assert_allclose(new[name], array, tolerance, tolerance * largest, err_msg=name)
    return after


def operators(module: Module) -> list[str]:
    return [node.op_type for node in module.nodes()]


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    "call",
    [
        "Gelu (x)",
        'Gelu <approximate = "tanh"> (x)',
        "Swish <alpha = 1.5> (x)",
        "HardSwish (x)",
        "Mish (x)",
        "LpNormalization <axis = 2, p = 1> (x)",
        "LayerNormalization (x, s, b)",
        "LayerNormalization <axis = 2, epsilon = 0.1> (x, x, x)",
        "RMSNormalization <epsilon = 0.1> (x, s)",
        "GroupNormalization <num_groups = 2> (x, g, g)",
        "InstanceNormalization (x, g, g)",
        "MeanVarianceNormalization <axes = [1]> (x)",
    ],
)
def test_operators(call: str, dtype: str) -> None:
    module = Module.parse(f"""<ir_version: 11, opset_import: ["" : 24]>
g ({dtype}[2,4,n] x, {dtype}[n] s, {dtype}[n] b, {dtype}[4] g) => (y) {{ y = {call} }}""")
    operator = call.split()[0]
    tolerance = 1e-5 if dtype == "float" else 5e-3
    after = legalised(module, Device(lacks=frozenset({operator})), tolerance)
    assert operator not in operators(after)


NORMS = {
    "LayerNormalization <axis = -1> (x, w)": (3,),
    "LayerNormalization <axis = 1> (x, wide)": (1, 2, 3),
    "InstanceNormalization (x, s, b)": (2, 3),
    "GroupNormalization <num_groups = 1> (x, s, b)": (1, 2, 3),
    "MeanVarianceNormalization (x)": (0, 2, 3),
    "MeanVarianceNormalization <axes = [0, 1, 2, 3]> (x)": (0, 1, 2, 3),
}
FIRST_OPSET = {"LayerNormalization": 17, "GroupNormalization": 21}
WITHOUT_NORMS = Device(lacks=frozenset(call.split()[0] for call in NORMS))


@pytest.mark.parametrize(
    ("call", "opset"),
    [(c, o) for c in NORMS for o in (9, 17, 20, 21) if o >= FIRST_OPSET.get(c.split()[0], 9)],
)
@pytest.mark.parametrize("mean", [0, 300, 1e3, -1e4, 1e6])
def test_norms_of_a_large_mean_keep_their_digits(call: str, opset: int, mean: float) -> None:
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[2,4,8,6] x, float[6] w, float[4,8,6] wide, float[4] s, float[4] b) => (y)
{{ y = {call} }}""")
    infer_shapes(module.model)
    PassManager([Legalize()]).run(module, Context(target=WITHOUT_NORMS))
    assert call.split()[0] not in operators(module)
    x = (mean + np.random.default_rng(0).standard_normal((2, 4, 8, 6))).astype(np.float32)
    sizes = {"w": 6, "wide": (4, 8, 6), "s": 4}
    ones = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    feeds = {"x": x, **ones, "b": np.zeros(4, np.float32)}
    y = OrtSession(module, optimise=False).run(feeds)["y"]
    centred = x.astype(np.float64) - x.mean(NORMS[call], np.float64, keepdims=True)
    variance = np.square(centred).mean(NORMS[call], keepdims=True)
    epsilon = 0 if "MeanVariance" in call else 1e-5
    np.testing.assert_allclose(y, centred / np.sqrt(variance + epsilon), atol=2e-6, rtol=0)


@pytest.mark.parametrize("shapes", [("4", "2,4,3"), ("2,3,4", "4"), ("4", "4"), ("4", "4,n")])
def test_products_of_vectors(shapes: tuple[str, str]) -> None:
    module = Module.parse(f"""<ir_version: 11, opset_import: ["" : 24]>
g (float[{shapes[0]}] x, float[{shapes[1]}] w) => (y) {{ y = MatMul (x, w) }}""")
    infer_shapes(module.model)
    feeds, after = feeds_for(module), module.clone()
    assert apply_rules(after, [VectorMatMul()], Context()) == 1
    old, new = (OrtSession(each, optimise=False).run(feeds)["y"] for each in (module, after))
    np.testing.assert_allclose(new, old, 1e-5, 1e-6)


def test_a_norm_of_zeros_is_zero() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 23]>
g (float[2,4] x) => (y)
<float zero = {0.0}>
{
  z = Mul (x, zero)
  y = LpNormalization (z)
}""")
    legalised(module, Device(lacks=frozenset({"LpNormalization"})))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-10, 1e15, np.inf, np.nan])
def test_a_norm_of_any_size(size: float, p: int) -> None:
    module = Module.parse(f"""<ir_version: 10, opset_import: ["" : 22]>
g (float[2,4] x) => (y) {{ y = LpNormalization <p = {p}> (x) }}""")
    infer_shapes(module.model)
    after = module.clone()
    target = Device(lacks=frozenset({"LpNormalization"}))
    PassManager([Legalize()]).run(after, Context(target=target))
    x = np.array([[size, 0, -size, 2], [size, 0, -size, size]], np.float32)
    old, new = (OrtSession(each, optimise=False).run({"x": x})["y"] for each in (module, after))
    np.testing.assert_allclose(new, old, rtol=1e-6)


def test_celu() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 24]>
g (float[2,4] x) => (y) { y = Celu <alpha = 0.5> (x) }""")
    legalised(module, Device(lacks=frozenset({"Celu"})))


@pytest.mark.parametrize(
    "call",
    [
        "Gelu (x)",
        "FastGelu (x, s)",
        "BiasGelu (x, s)",
        "QuickGelu <alpha = 1.5> (x)",
        "FusedMatMul <alpha = 0.5, transA = 1> (x, x)",
        "FusedMatMul <transB = 1> (x, x)",
        "SkipLayerNormalization <epsilon = 0.1> (x, x, s, s, s)",
        "SkipSimplifiedLayerNormalization <epsilon = 0.1> (x, x, s)",
        "QuickGelu (x)",
        "FusedMatMul (x, x)",
        "SkipLayerNormalization (small, small, s)",
        "SkipSimplifiedLayerNormalization (small, small, s)",
    ],
)
def test_operators_of_onnx_runtime(call: str) -> None:
    module = Module.parse(f"""<ir_version: 11, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[2,4,4] x, float[4] s) => (y) <float little = {{1e-4}}>
{{ small = Mul (x, little)  y = com.microsoft.{call} }}""")
    legalised(module, Device())


@st.composite
def attentions(draw: Draw) -> Module:
    groups, tokens, past = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    heads = groups * draw(st.integers(1, 2))
    cached, flat, symbolic = (draw(st.booleans()) for _ in range(3))
    causal = draw(st.booleans())
    keys = tokens if causal else draw(st.integers(1, 3))
    size = ["t" if symbolic and tokens == keys == 3 else n for n in (tokens, keys)]
    inputs = {}
    kinds = [("q", heads, size[0], 2), ("k", groups, size[1], 2), ("v", groups, size[1], 3)]
    for name, many, rows, width in kinds:
        dims = f"2,{rows},{many * width}" if flat else f"2,{many},{rows},{width}"
        inputs[name] = f"float[{dims}]"
    total = keys + (past if cached else 0)
    mask = draw(st.sampled_from(["", "float", "bool"]))
    if mask:
        inputs["mask"] = (
            f"{mask}[{draw(st.sampled_from(['', '2,1,', f'{heads},']))}{tokens},{total}]"
        )
    if cached:
        inputs["past_k"] = f"float[2,{groups},{past},2]"
        inputs["past_v"] = f"float[2,{groups},{past},3]"
    attributes = [f"is_causal = {int(causal)}"]
    if flat:
        attributes += [f"q_num_heads = {heads}", f"kv_num_heads = {groups}"]
    if draw(st.booleans()):
        attributes.append("scale = 0.3")
    if draw(st.booleans()):
        attributes.append("softcap = 2.0")
    names = ["q", "k", "v"]
    if mask or cached:
        names.append("mask" if mask else '""')
    names += ["past_k", "past_v"] if cached else []
    results = "y, present_k, present_v" if cached else "y"
    return Module.parse(
        '<ir_version: 11, opset_import: ["" : 23]>\n'
        f"g ({', '.join(f'{kind} {name}' for name, kind in inputs.items())}) => ({results})\n"
        f"{{ {results} = Attention <{', '.join(attributes)}> ({', '.join(names)}) }}"
    )


@settings(max_examples=60, deadline=None)
@given(attentions())
def test_attention(module: Module) -> None:
    after = legalised(module, Device(lacks=frozenset({"Attention"})))
    assert operators(after).count("Softmax") == 1


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turning", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("looked_up", [False, True])
def test_rotary(interleaved: int, turning: int, flat: bool, looked_up: bool) -> None:
    x = "2,3,16" if flat else "2,2,3,8"
    cache = f"{'5' if looked_up else '2,3'},{(turning or 8) // 2}"
    module = Module.parse(f"""<ir_version: 11, opset_import: ["" : 23]>
g (float[{x}] x, float[{cache}] cos, float[{cache}] sin) => (y)
<int64[2,3] at = {{4, 0, 1, 2, 2, 3}}>
{{
  y = RotaryEmbedding <interleaved = {interleaved}, num_heads = 2, rotary_embedding_dim = {turning}>
    (x, cos, sin{", at" if looked_up else ""})
}}""")
    legalised(module, Device(lacks=frozenset({"RotaryEmbedding"})))


def test_a_cache_alone_is_replaced_where_that_is_enough() -> None:
    class Cacheless(Device):
        def check(self, module: Module) -> list[Problem]:
            cached = [n for n in module.nodes() if n.op_type == "Attention" and len(n.outputs) > 1]
            return [Problem("no cache", node=node_label(node)) for node in cached]

    module = Module.parse("""<ir_version: 11, opset_import: ["" : 23]>
g (float[2,3,4] x, float[2,2,p,2] k, float[2,2,p,2] v) => (y, present_k, present_v)
{
  y, present_k, present_v = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x, "", k, v)
}""")
    after = legalised(module, Cacheless())
    assert operators(after).count("Attention") == 1
    assert operators(after).count("Concat") == 2


def test_preferred_replacements() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 24]>
g (float[2,8,32] x, float[1,4,3,3] i, float[4] s) => (y, z, r)
<float two = {2.0}>
{
  a = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x)
  y = Swish (a)
  z = GroupNormalization <num_groups = 2> (i, s, s)
  r = Pow (i, two)
}""")
    table = {"flash-attention": {"scores": 63}, "group-norm": {}, "square": {}, "swish": {}}
    after = PassManager([Legalize()])
    infer_shapes(module.model)
    old = OrtSession(module, optimise=False).run(feeds_for(module))
    after.run(module, Context(target=Device(prefer=table)))
    new = OrtSession(module, optimise=False).run(feeds_for(module))
    for name in old:
        np.testing.assert_allclose(new[name], old[name], 1e-5, 1e-5)
    found = operators(module)
    assert {"MultiHeadAttention", "BatchNormalization", "Sigmoid"} <= set(found)
    assert not {"Attention", "GroupNormalization", "Pow", "Swish"} & set(found)


def group_norm(dims: str, groups: int = 2, epsilon: float = 1e-5, opset: int = 24) -> Module:
    """A group norm of four channels as its preferred form."""
    made = Module.parse(f"""<ir_version: 11, opset_import: ["" : {opset}]>
g (float[{dims}] x) => (y)
<float[4] s = {{1, -2, 3, 0.5}}, float[4] b = {{0, 1, -1, 2}}>
{{ y = GroupNormalization <num_groups = {groups}, epsilon = {epsilon}> (x, s, b) }}""")
    infer_shapes(made.model)
    PassManager([Legalize()]).run(made, Context(target=Device(prefer={"group-norm": {}})))
    assert operators(made)[-1] == "BatchNormalization"
    return made


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["2,4,5,6", "n,4,7,2", "2,4,9", "n,4,2,3,5"]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, -3, 30, 1000, 10000]),
    st.floats(0.125, 10, width=16),
    st.integers(0, 99),
)
def test_group_norms_from_sums(dims: str, groups: int, mean: float, by: float, seed: int) -> None:
    module = group_norm(dims, groups)
    wanted = module.clone()
    assert apply_rules(module, [SummedGroupNorm()], Context()) == 1
    assert not {"InstanceNormalization", "BatchNormalization"} & set(operators(module))
    shape = [3 if dim == "n" else int(dim) for dim in dims.split(",")]
    x = mean + by * np.random.default_rng(seed).standard_normal(shape, np.float32)
    near = (x - np.float32(mean)).astype(np.float32)  # whose norm is the same, and easy
    old = OrtSession(wanted, optimise=False).run({"x": near})["y"]
    new = OrtSession(module, optimise=False).run({"x": x})["y"]
    np.testing.assert_allclose(new, old, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mean", [1000, 10000])
def test_group_norms_of_channels_that_are_far_apart(mean: float) -> None:
    module = group_norm("1,4,16,16")
    apply_rules(module, [SummedGroupNorm()], Context())
    x = np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)
    x += np.array([mean, mean + 5, -mean, 0], np.float32).reshape(1, 4, 1, 1)
    x[:, :, 0, 0] = 0  # a border
    rows = x.astype(np.float64).reshape(1, 2, -1)
    rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    scale, bias = (np.array(n).reshape(1, 4, 1, 1) for n in ([1, -2, 3, 0.5], [0, 1, -1, 2]))
    right = rows.reshape(x.shape) * scale + bias
    made = OrtSession(module, optimise=False).run({"x": x})["y"]
    np.testing.assert_allclose(made, right, atol=1e-3 * abs(right).max(), rtol=0)


def test_group_norms_of_constants_from_sums() -> None:
    module = group_norm("n,4,8,8")
    apply_rules(module, [SummedGroupNorm()], Context())
    for number in (0, 0.1, 1e4 / 3):
        x = np.full((2, 4, 8, 8), number, np.float32)
        y = OrtSession(module, optimise=False).run({"x": x})["y"]
        assert np.isfinite(y).all()
        if not number:
            np.testing.assert_array_equal(y[0, :, 0, 0], [0, 1, -1, 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon: float = 0.0": "epsilon: float = 0.1"},
        {"(z, s, s, zeros": "(z, s, s, s"},
        {"2,4,3,5": "2,4,3,w"},
        {"{0, 2, -1}": "{1, 2, -1}"},
        {"{0, 2, -1}": "{0, 3, -1}", "[2] one = {1, 1}": "[3] one = {1, 1, 1}"},
    ],
)
def test_other_norms_are_not_made_of_sums(changes: dict[str, str]) -> None:
    text = """<ir_version: 9, opset_import: ["" : 24]>
g (float[2,4,3,5] x) => (y)
<float[2] one = {1, 1}, float[2] zero = {0, 0}, float[4] ones = {1, 1, 1, 1},
 float[4] zeros = {0, 0, 0, 0}, float[4] s = {1, 2, 3, 4}, int64[3] rows = {0, 2, -1},
 int64[4] shape = {0, 4, 3, 5}>
{
  r = Reshape (x, rows)
  n = InstanceNormalization (r, one, zero)
  z = Reshape (n, shape)
  y = BatchNormalization <epsilon: float = 0.0> (z, s, s, zeros, ones)
}"""
    other = text
    for old, new in changes.items():
        assert old in other
        other = other.replace(old, new)
    made = [Module.parse(each) for each in (text, other)]
    for module in made:
        infer_shapes(module.model)
    assert [apply_rules(module, [SummedGroupNorm()], Context()) for module in made] == [1, 0]
    for elements, times, opset in ((60, 1, 24), (60, 1, 17), (61, 0, 24)):
        module = Module.parse(text.replace("24", str(opset)))
        infer_shapes(module.model)
        assert apply_rules(module, [SummedGroupNorm(elements)], Context()) == times


def test_short_attention_stays() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 23]>
g (float[2,8,32] x) => (y) { y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x) }""")
    infer_shapes(module.model)
    device = Device(prefer={"flash-attention": {"scores": 65}})
    PassManager([Legalize()]).run(module, Context(target=device))
    assert operators(module) == ["Attention"]


def with_weights(text: str, opset: int = 23) -> Module:
    """A module whose inputs named w and b are constants."""
    module = Module.parse(f'<ir_version: 11, opset_import: ["" : {opset}]>\n{text}')
    feeds = feeds_for(module)
    for value in [value for value in module.inputs if value.name in ("w", "b")]:
        module.graph.inputs.remove(value)
        value.const_value = ir.tensor(feeds[value.name])
        module.graph.register_initializer(value)
    return module


def resized(
    nearest: str = "asymmetric, floor", scale: str = "2", conv: str = "", b: str = ", b"
) -> Module:
    coordinates, rounding = nearest.split(", ")
    return with_weights(f"""g (float[n,3,4,w] x, float[5,3,3,3] w, float[5] b) => (y)
<float[4] scales = {{1, 1, 2, {scale}}}>
{{
  u = Resize <mode = "nearest", coordinate_transformation_mode = "{coordinates}",
    nearest_mode = "{rounding}"> (x, "", scales)
  y = Conv <pads = [1, 1, 1, 1]{conv}> (u, w{b})
}}""")


@pytest.mark.parametrize(
    "nearest",
    ["asymmetric, floor", "half_pixel, round_prefer_floor", "half_pixel, round_prefer_ceil"],
)
@pytest.mark.parametrize("b", ["", ", b"])
def test_upsampled_conv(nearest: str, b: str) -> None:
    module = resized(nearest, b=b)
    after = legalised(module, Device(prefer={"upsample-conv": {}}))
    assert operators(after) == [*["Conv"] * 4, "Concat", "DepthToSpace"]


def test_upsampled_conv_by_sizes() -> None:
    module = with_weights("""g (float[2,3,4,5] x, float[5,3,3,3] w) => (y)
<int64[4] sizes = {2, 3, 8, 10}>
{
  u = Resize <mode = "nearest"> (x, "", "", sizes)
  y = Conv <auto_pad = "SAME_UPPER"> (u, w)
}""")
    after = legalised(module, Device(prefer={"upsample-conv": {}}))
    assert operators(after) == [*["Conv"] * 4, "Concat", "DepthToSpace"]


@pytest.mark.parametrize(
    "changed",
    [
        {"nearest": "half_pixel, floor"},
        {"nearest": "asymmetric, ceil"},
        {"scale": "3"},
        {"conv": ", strides = [2, 2]"},
        {"conv": ", dilations = [1, 2]"},
    ],
)
def test_other_upsampled_convs_stay(changed: dict[str, str]) -> None:
    after = legalised(resized(**changed), Device(prefer={"upsample-conv": {}}))
    assert operators(after) == ["Resize", "Conv"]


def test_an_upsampled_conv_of_few_channels_stays() -> None:
    after = legalised(resized(), Device(prefer={"upsample-conv": {"channels": 4}}))
    assert operators(after) == ["Resize", "Conv"]


def test_a_norm_of_a_sum() -> None:
    module = with_weights("""g (float[2,n,8] x, float[2,n,8] z, float[8] w, float[8] b) => (y)
{
  a = Add (x, z)
  y = LayerNormalization <epsilon = 0.1> (a, w, b)
}""")
    after = legalised(module, Device(prefer={"skip-norm": {}}))
    assert operators(after) == ["Sum", "LayerNormalization"]


def test_an_unknown_preference_is_refused() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 23]>
g (float[2] x) => (y) { y = Relu (x) }""")
    with pytest.raises(PassError, match="swsh"):
        PassManager([Legalize()]).run(module, Context(target=Device(prefer={"swsh": {}})))


def test_newer_operators_go_before_the_opset_is_lowered() -> None:
    module = Module.parse("""<ir_version: 11, opset_import: ["" : 24]>
g (float[2,3,4] x, float[4] s) => (y)
{
  a = Swish (x)
  b = RMSNormalization (a, s)
  c = Attention <q_num_heads = 2, kv_num_heads = 2> (b, b, b)
  y = Gelu (c)
}""")
    after = legalised(module, Device(opset=(13, 17)))
    assert after.opset == 17


def test_a_low_opset_is_raised() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3] x) => (y) { y = ReduceMean <axes = [1]> (x) }""")
    assert legalised(module, Device(opset=(18, 20))).opset == 18
