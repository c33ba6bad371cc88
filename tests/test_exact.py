"""Schemes and references that are exact on every processor, with kernels that clip planted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from aigcc import exact as exact_module
from aigcc import kernels, quality, reference
from aigcc.analysis.calibration.calibrate import calibrate
from aigcc.analysis.grids import Grid
from aigcc.exact import exact, open_exact
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.kernels import Product
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import exact as schemes_here
from aigcc.passes.quant.candidates import candidates
from aigcc.passes.quant.exact import fault, inexact, offered
from aigcc.passes.quant.placement import schemes
from aigcc.pipeline import bisect
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.target import Target
from aigcc.targets import make_target
from aigcc.testing import assert_same_outputs

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
CLIPPED = frozenset(
    Product(op, first, second, 8)
    for op, first, second in [
        *((op, "uint8", "int8") for op in ("MatMulInteger", "QLinearMatMul", "QLinearConv")),
        *((op, "uint8", "int8") for op in ("QGemm", "MatMulIntegerToFloat", "MatMul")),
        ("ConvInteger", "int8", "uint8"),
        ("MatMul", "int8", "int8"),
    ]
)


@pytest.fixture
def clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose kernels for uint8 by int8 would clip."""
    monkeypatch.setattr(kernels, "inexact", lambda *, optimise=False: CLIPPED)


NODES = {
    "zero": "y = MatMulInteger (x, w, z, o)",
    "no zero": "y = MatMulInteger (x, w)",
    "a zero for each column": "y = MatMulInteger (x, w, z, o2)",
    "computed": "v = Identity (w)  p = Identity (o)  y = MatMulInteger (x, v, z, p)",
    "linear": "y = QLinearMatMul (x, s, z, w, s, o, t, z)",
    "gemm": "y = com.microsoft.QGemm (x, s, z, w, s, o)",
    "float": "y = com.microsoft.MatMulIntegerToFloat (x, w, s, s, z, o)",
    "in a branch": "y = If (c) <then_branch = t () => (a) { a = MatMulInteger (x, w, z, o) }, "
    "else_branch = e () => (b) { b = MatMulInteger (x, w) }>",
}


@pytest.mark.usefixtures("clipping")
@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_copy_reads_weights_as_unsigned_and_computes_the_same(node: str) -> None:
    module = Module.parse(f"""{HEAD} g (uint8[2,4] x, bool c) => (y)
        <uint8 z = {{7}}, int8 o = {{-3}}, int8[2] o2 = {{-3, 9}}, float s = {{0.5}},
         float t = {{9}}, int8[4,2] w = {{127, -128, 127, 3, -5, 90, 100, -100}}>
        {{ {node} }}""")
    infer_shapes(module.model)
    made = exact(module)
    assert made is not module
    wrong = {n.op_type for n in kernels.inexact_nodes(made)}
    assert not wrong
    x = np.array([[1, 2, 3, 4], [9, 8, 0, 6]], np.uint8)  # too small to be clipped anywhere
    feeds = {"x": x, "c": np.array(True)}
    old, new = (OrtSession(m, optimise=False).run(feeds)["y"] for m in (module, made))
    np.testing.assert_array_equal(old, new)


@pytest.mark.usefixtures("clipping")
def test_a_convolution_of_signed_by_unsigned_reads_its_activation_otherwise() -> None:
    module = Module.parse(f"""{HEAD} g (int8[1,2,1,3] x) => (int32[1,1,1,3] y)
        <int8 z = {{-2}}, uint8 o = {{5}}, uint8[1,2,1,1] w = {{200, 7}}>
        {{ y = ConvInteger (x, w, z, o) }}""")
    made = exact(module)
    assert not kernels.inexact_nodes(made)
    x = np.array([[[[1, 2, -3]], [[4, -5, 6]]]], np.int8)
    right = ((x.astype(int) + 2) * np.array([195, 2]).reshape(1, 2, 1, 1)).sum(1, keepdims=True)
    np.testing.assert_array_equal(OrtSession(made, optimise=False).run({"x": x})["y"], right)


def test_a_module_that_is_exact_is_its_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "inexact", lambda *, optimise=False: frozenset())
    module = Module.parse(f"""{HEAD} g (uint8[2,4] x) => (int32[2,1] y)
        <int8[4,1] w = {{127, 127, 127, 127}}> {{ y = MatMulInteger (x, w) }}""")
    assert exact(module) is module


@pytest.mark.usefixtures("clipping")
def test_products_between_qdq_stay_float_where_integers_would_be_clipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(exact_module, "OrtSession", lambda *_, **more: asked.append(more))
    module = Module.parse(f"""{HEAD} g (float[2,2] x) => (float[2,2] y)
        <float s = {{0.1}}, int8 z = {{0}}, int8[2,2] w = {{127, 127, 2, 3}}> {{
          q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
          e = DequantizeLinear (w, s, z)  y = MatMul (d, e)
        }}""")
    open_exact(module, integers=True)
    assert asked == [{"integers": False, "threads": None}]


# --- schemes


def test_7_bits_are_from_minus_64_to_64() -> None:
    array = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)
    grid = Grid(ir.DataType.INT8, 0, bits=7)
    for clip in ("max", "mse"):
        numbers = grid.round(array, grid.scale(array, clip))
        assert (np.abs(numbers.astype(int)).max(axis=1) == 64).all()


@pytest.mark.parametrize("target", ["mobile", "cpu"])
def test_what_is_offered_is_exact_on_this_machine(target: str) -> None:
    made = make_target(target)
    stands_in = {name for name, scheme in schemes(made).items() if scheme.instead_of}
    assert not {name for name, _ in inexact(made)} & stands_in
    for name, scheme in offered(made).items():
        assert not {(name, op) for op in scheme.kernels} & inexact(made)
    names = {scheme.instead_of or name for name, scheme in offered(made).items()}
    assert {"w8a8", "w8"} <= names


NET = f"""{HEAD} g (float[64,64] x) => (float[64,64] y)
    <float[64,64] w = {{{", ".join(str((7 * n) % 13 - 6) for n in range(4096))}}}>
    {{ y = MatMul (x, w) }}"""


@pytest.fixture
def half_exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A target whose kernels for weights of 8 bits are wrong here."""
    target = make_target("mobile")
    wrong = {("w8a8", "MatMul"), ("w8a8-dynamic", "MatMul"), ("w8a16", "MatMul")}
    monkeypatch.setattr(schemes_here, "inexact", lambda _: frozenset(wrong))
    yield target


def test_what_is_wrong_here_is_not_tried_and_another_is(
    half_exact: Target, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path))
    module = Module.parse(NET)
    ctx = Context(target=half_exact, samples=load_samples(None, module), threads=1)
    (choice,) = candidates(module, ctx, by_size=True).choices
    names = {scheme.name for scheme in choice.schemes}
    assert names >= {"w7a8", "w7a8-dynamic", "w8a8-unsigned", "w16a16"}
    assert not names & {"w8a8", "w8a8-dynamic", "w8a16"}
    said = "\n".join(map(str, ctx.remarks))
    assert "w8a8 is not tried: this CPU clips sums" in said
    assert "w7a8 and w8a8-unsigned are exact" in said


def test_stand_ins_are_for_the_operators_that_need_them(half_exact: Target) -> None:
    known = offered(half_exact)
    assert set(known["w8a8"].kernels) == {"Conv", "Gemm"}
    assert set(known["w7a8"].kernels) == {"MatMul"}
    assert "w16a16" in known


def test_a_scheme_by_hand_is_written_as_asked_and_its_fault_said(half_exact: Target) -> None:
    module = Module.parse(NET)
    infer_shapes(module.model)
    ctx = Context(target=half_exact)
    PassManager([InsertQdq(scheme="w8a8-dynamic")]).run(module, ctx)
    assert "MatMulInteger" in [node.op_type for node in module.graph]
    assert fault(schemes(half_exact)["w8a8-dynamic"], half_exact) in "\n".join(
        map(str, ctx.remarks)
    )


@pytest.mark.parametrize(
    ("op", "scheme"),
    [
        *((op, "w7a8") for op in ("Conv", "Gemm", "MatMul")),
        ("MatMul", "w8a8-unsigned"),
        ("Gemm", "w8a8-unsigned"),
        ("MatMul", "w7a8-dynamic"),
    ],
)
def test_a_stand_in_runs_as_integers_and_as_exactly_as_in_floats(op: str, scheme: str) -> None:
    generator = np.random.default_rng(0)
    image = op == "Conv"
    weight = generator.standard_normal(32 * 32)
    shape, sample = ("[32,32,1,1]", "[1,32,4,4]") if image else ("[32,32]", "[4,32]")
    module = Module.parse(f"""{HEAD} g (float{sample} x) => (float{sample} y)
        <float{shape} w = {{{", ".join(f"{n:.6f}" for n in weight)}}},
         float[32] b = {{{", ".join(f"{n / 32:.6f}" for n in range(32))}}}>
        {{ {f"y = {op} (x, w, b)" if op != "MatMul" else "y = MatMul (x, w)"} }}""")
    infer_shapes(module.model)
    before, target = module.clone(), make_target("mobile")
    ctx = Context(target=target, samples=load_samples(None, module))
    PassManager([InsertQdq(scheme=scheme)]).run(module, ctx)
    assert_same_outputs(before, module, tolerance=0.05)
    for feeds in ctx.samples:
        deployed = target.open(module, 1).run(feeds)["y"]
        floats = OrtSession(exact(module), optimise=False).run(feeds)["y"]
        step = np.abs(floats).max() / 100  # an output of 8 bits may be rounded the other way
        np.testing.assert_allclose(deployed, floats, atol=step if image else step / 1000)


def test_activations_behind_integers_are_calibrated_exactly() -> None:
    """Sums that uint8 by int8 kernels of old processors would clip."""
    module = Module.parse(f"""{HEAD} g (uint8[1,4] x) => (float[1,1] y)
        <int8[4,1] w = {{127, 127, 127, 127}}>
        {{ i = MatMulInteger (x, w)  y = Cast <to = 1> (i) }}""")
    infer_shapes(module.model)
    feeds = {"x": np.full((1, 4), 255, np.uint8)}
    samples = load_samples(lambda: [feeds], module)
    found = calibrate(module, samples, {"y": None}).tensors["y"]
    assert found.high == 255 * 127 * 4


@pytest.mark.usefixtures("clipping")
def test_the_reference_of_a_program_is_what_the_model_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever compares runs the copy that is exact, not the kernels that clip."""
    module = Module.parse(f"""{HEAD} g (uint8[1,4] x) => (int32[1,1] y)
        <int8[4,1] w = {{127, 127, 127, 127}}> {{ y = MatMulInteger (x, w) }}""")
    opened: list[Module] = []

    def session(source: Module, **more: object) -> OrtSession:
        opened.append(source)
        return OrtSession(source, **more)  # type: ignore[arg-type]

    samples = load_samples(lambda: [{"x": np.full((1, 4), 255, np.uint8)}], module)
    monkeypatch.setattr(reference, "OrtSession", session)
    program = OrtSession(exact(module), optimise=False)
    measured = quality.measure(module, program, samples)
    assert measured.worst["y"].relative == 0
    bisect.find_first_wrong(module, [], samples, tolerance=1e-4)
    assert len(opened) == 3
    assert not any(kernels.inexact_nodes(each) for each in opened)
