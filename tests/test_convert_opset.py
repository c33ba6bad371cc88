"""Conversions between opsets keep what models compute: from opset 1 on, up and down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import aigcc
from aigcc.errors import PassError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.targets import make_target

X = np.random.default_rng(0).standard_normal((2, 4, 3, 6)).astype(np.float32)
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


def convert(module: Module, version: int, target: str | None = None) -> Context:
    infer_shapes(module.model)
    ctx = Context(target=None if target is None else make_target(target))
    PassManager(parse(f"convert-opset(version={version})")).run(module, ctx)
    return ctx


def module_of(opset: int, body: str, given: str = "") -> Module:
    return Module.parse(f"""<ir_version: 8, opset_import: ["" : {opset}]>
g (float[2,4,3,6] x) => (y) <{given}> {{ {body} }}""")


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """As up to opset 12: over all axes from `axis` on."""
    rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
    power = np.exp(rows - rows.max(1, keepdims=True))
    return (power / power.sum(1, keepdims=True)).reshape(x.shape)


def group_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """With a scale and a bias for each of two groups."""
    rows = x.reshape(2, 2, -1).astype(np.float64)
    centred = rows - rows.mean(2, keepdims=True)
    normed = centred / np.sqrt(centred.var(2, keepdims=True) + 1e-5)
    return (normed * scale[:, None] + bias[:, None]).reshape(x.shape)


# Opset, body, initializers, what it means.
OLD: dict[str, tuple[int, str, str, np.ndarray]] = {
    "Add along an axis": (
        6,
        "y = Add <broadcast = 1, axis = 1> (x, c)",
        "float[4,3] c = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}",
        X + np.arange(1, 13, dtype=np.float32).reshape(4, 3, 1),
    ),
    "Mul along the first axis": (
        1,
        "y = Mul <broadcast = 1, axis = 0, consumed_inputs = [0, 0]> (x, c)",
        "float[2] c = {3, 5}",
        X * np.array([3, 5], np.float32).reshape(2, 1, 1, 1),
    ),
    "Sub from the end": (
        6,
        "y = Sub <broadcast = 1> (x, c)",
        "float[6] c = {1, 2, 3, 4, 5, 6}",
        X - np.arange(1, 7, dtype=np.float32),
    ),
    "Div along a negative axis": (
        6,
        "y = Div <broadcast = 1, axis = -2> (x, c)",
        "float[3] c = {1, 2, 4}",
        X / np.array([1, 2, 4], np.float32).reshape(3, 1),
    ),
    "Greater along an axis": (
        6,
        "y = Greater <broadcast = 1, axis = 1> (x, c)",
        "float[4] c = {0, 1, -1, 0.5}",
        np.array([0, 1, -1, 0.5], np.float32).reshape(4, 1, 1) < X,
    ),
    "PRelu of channels": (
        6,
        "y = PRelu (x, c)",
        "float[4] c = {0.5, 0.1, 0, 2}",
        np.where(X < 0, X * np.array([0.5, 0.1, 0, 2], np.float32).reshape(4, 1, 1), X),
    ),
    "BatchNormalization": (
        6,
        "y = BatchNormalization <is_test = 1, epsilon = 0.5> (x, c, c, c, c)",
        "float[4] c = {1, 2, 3, 4}",
        (X - (c := np.arange(1, 5).reshape(4, 1, 1))) / np.sqrt(c + 0.5) * c + c,
    ),
    "Dropout": (6, "y = Dropout <is_test = 1> (x)", "", X),
    "Cast to a name": (1, 'y = Cast <to = "INT32"> (x)', "", X.astype(np.int32)),
    "Concat without an axis": (1, "y = Concat (x, x)", "", np.concatenate([X, X], 1)),
    "Reshape by an attribute": (1, "y = Reshape <shape = [0, -1]> (x)", "", X.reshape(2, -1)),
    "Pad by paddings": (
        1,
        "y = Pad <paddings = [0, 0, 1, 0, 0, 0, 0, 2]> (x)",
        "",
        np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2))),
    ),
    "Tile along an axis": (
        1,
        "y = Tile (x, times, axis)",
        "float[1] times = {2}, float[1] axis = {3}",
        np.tile(X, (1, 1, 1, 2)),
    ),
    "Split by an input": (
        1,
        "a, y = Split <axis = 1> (x, sizes)",
        "float[2] sizes = {1, 3}",
        X[:, 1:],
    ),
    "Selu of fewer digits": (
        1,
        "y = Selu (x)",
        "",
        1.0507 * np.where(X > 0, X, 1.6732 * (np.exp(X) - 1)),
    ),
    "Upsample by height and width": (
        1,
        "y = Upsample <height_scale = 2.0, width_scale = 3.0> (x)",
        "",
        X.repeat(2, 2).repeat(3, 3),
    ),
    "Upsample by an attribute": (
        7,
        "y = Upsample <scales = [1.0, 1.0, 2.0, 1.0]> (x)",
        "",
        X.repeat(2, 2),
    ),
    "Upsample by an input": (
        9,
        "y = Upsample (x, scales)",
        "float[4] scales = {1, 1, 2, 2}",
        X.repeat(2, 2).repeat(2, 3),
    ),
    "Slice by attributes": (
        9,
        "y = Slice <starts = [1, 0], ends = [3, 2], axes = [1, 3]> (x)",
        "",
        X[:, 1:3, :, :2],
    ),
    "TopK by an attribute": (9, "y, i = TopK <k = 2, axis = 3> (x)", "", -np.sort(-X)[..., :2]),
    "Clip by attributes": (10, "y = Clip <min = -0.5> (x)", "", X.clip(-0.5)),
    "Clip without bounds": (6, "y = Clip (x)", "", X),
    "Pad by attributes": (
        10,
        "y = Pad <pads = [0, 0, 0, 1, 0, 0, 0, 1], value = 2.0> (x)",
        "",
        np.pad(X, ((0, 0), (0, 0), (0, 0), (1, 1)), constant_values=2),
    ),
    "Resize as it was": (
        10,
        "y = Resize (x, scales)",
        "float[4] scales = {1, 1, 1, 2}",
        X.repeat(2, 3),
    ),
    "Softmax of a matrix": (12, "y = Softmax (x)", "", softmax(X, 1)),
    "Softmax of the last two": (11, "y = Softmax <axis = 2> (x)", "", softmax(X, 2)),
    "LogSoftmax": (8, "y = LogSoftmax <axis = -2> (x)", "", np.log(softmax(X, 2))),
    "Hardmax": (
        11,
        "y = Hardmax <axis = 2> (x)",
        "",
        np.eye(18, dtype=np.float32)[X.reshape(8, 18).argmax(1)].reshape(X.shape),
    ),
    "ReduceSum": (11, "y = ReduceSum <axes = [1, -1]> (x)", "", X.sum((1, 3), keepdims=True)),
    "ReduceMax": (13, "y = ReduceMax <axes = [2], keepdims = 0> (x)", "", X.max(2)),
    "ReduceMean of all": (17, "y = ReduceMean (x)", "", X.mean(keepdims=True)),
    "Squeeze": (
        12,
        "a = Unsqueeze <axes = [0, 2]> (x) y = Squeeze <axes = [0]> (a)",
        "",
        X[:, None],
    ),
    "Split by an attribute": (12, "a, y = Split <axis = 1, split = [3, 1]> (x)", "", X[:, 3:]),
    "Split in halves": (17, "y, b = Split <axis = 3> (x)", "", X[..., :3]),
    "GroupNormalization": (
        18,
        "y = GroupNormalization <num_groups = 2> (x, s, b)",
        "float[2] s = {1, 3}, float[2] b = {0, -2}",
        group_norm(X, np.array([1, 3]), np.array([0, -2])),
    ),
    "GridSample": (
        16,
        "g = Slice (x, z, t, l) h = Slice (g, z, t, o) k = Transpose <perm = [0, 2, 1, 3]> (h) "
        'y = GridSample <mode = "bilinear", align_corners = 1> (x, w)',
        "int64[1] z = {0}, int64[1] t = {2}, int64[1] l = {3}, int64[1] o = {1}, "
        "float[2,1,1,2] w = {-1, -1, 1, 1}",
        np.stack([X[0, :, :1, :1], X[1, :, -1:, -1:]]),
    ),
    "DFT": (
        17,
        "a = Slice (x, z, t, l) y = DFT <axis = 2> (a)",
        "int64[1] z = {0}, int64[1] t = {1}, int64[1] l = {3}",
        np.stack([(f := np.fft.fft(X[..., 0], axis=2)).real, f.imag], -1),
    ),
}


@pytest.mark.parametrize("version", [13, 18, 21, 26])
@pytest.mark.parametrize("case", OLD)
def test_old_forms_mean_the_same_in_newer_opsets(case: str, version: int) -> None:
    opset, body, given, expected = OLD[case]
    if version <= opset:
        pytest.skip("it is this opset")
    module = module_of(opset, body, given)
    ctx = convert(module, version)
    assert module.opset == version, [str(remark) for remark in ctx.remarks]
    result = OrtSession(module, optimise=False).run({"x": X})["y"]
    np.testing.assert_allclose(result, expected, rtol=2e-4, atol=2e-5)


def test_groups_of_channels_that_vary() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 18]>
g (float[N,C,L] x, float[2] s, float[2] b) => (y)
{ y = GroupNormalization <num_groups = 2> (x, s, b) }""")
    x, s, b = X.reshape(2, 4, 18), np.array([1, 3], np.float32), np.array([0, -2], np.float32)
    before = OrtSession(module, optimise=False).run({"x": x, "s": s, "b": b})
    convert(module, 21)
    after = OrtSession(module, optimise=False).run({"x": x, "s": s, "b": b})
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-4, atol=1e-5)


# Opset, to which, body, initializers, why not.
IN_THE_WAY = {
    "a mask of zeros": (11, 21, "y, m = Dropout (x) z = Cast <to = 1> (m)", "", "another one"),
    "training": (9, 14, "y, m, v, a, b = BatchNormalization (x, c, c, c, c)", "", "for training"),
    "maybe training": (6, 9, "y = BatchNormalization (x, c, c, c, c)", "", "not training"),
    "noise": (6, 9, "y = Dropout (x)", "", "not training"),
    "computed sizes": (
        10,
        13,
        "s = Shape (x) f = Cast <to = 1> (s) y = Resize (x, f)",
        "",
        "must be an attribute",
    ),
    "another way of nearest": (
        11,
        13,
        'y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, q)',
        "float[0] r, float[4] q = {1, 1, 2, 2}",
        "TensorFlow",
    ),
    "a scale for each channel": (
        21,
        20,
        "y = GroupNormalization <num_groups = 2> (x, c, c)",
        "",
        "for each channel",
    ),
    "wrapped": (19, 18, 'y = Pad <mode = "wrap"> (x, p)', "int64[8] p = {0}", "wraps"),
    "newer": (20, 19, "y = Gelu (x)", "", "does not exist"),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_another_opset_cannot_say_is_named(case: str) -> None:
    opset, version, body, given, reason = IN_THE_WAY[case]
    given = ", ".join(filter(None, ["float[4] c = {1, 2, 3, 4}", given]))
    given = given.replace("int64[8] p = {0}", "int64[8] p = {0, 0, 0, 1, 0, 0, 0, 1}")
    module = module_of(opset, body, given.replace("float[0] r", "float[0] r = {}"))
    ctx = convert(module, version)
    assert module.opset == opset
    (remark,) = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert reason in remark and f"opset {version} is not reached" in remark


def test_a_mask_that_nobody_uses_is_not_in_the_way() -> None:
    module = module_of(7, "y, m = Dropout (x)")
    convert(module, 26)
    assert module.opset == 26


def test_operators_without_a_kernel_are_in_the_way_where_there_is_a_target() -> None:
    for target, reached in ((None, 24), ("mobile", 17)):
        module = module_of(17, "r = RandomNormalLike (x) y = Add (r, x)")
        convert(module, 24, target)
        assert module.opset == reached


@pytest.mark.parametrize(("opset", "version", "least"), [(17, 12, 13), (17, 29, 1), (6, 0, 13)])
def test_versions_that_there_are_not(opset: int, version: int, least: int) -> None:
    with pytest.raises(PassError, match=f"opset {opset} to opset {version}") as caught:
        convert(module_of(opset, "y = Relu (x)"), version)
    assert caught.value.hint == f"give a version from {least} to 28"


def test_scan_of_opset_8_is_in_the_way() -> None:
    module = Module.parse("""<ir_version: 3, opset_import: ["" : 8]>
g (float[1,3,2] x) => (float[1,3,2] y) {
  y = Scan <num_scan_inputs = 1, body = b (float[2] i) => (float[2] o) { o = Neg (i) }> (, x)
}""")
    ctx = convert(module, 13)
    assert any("Scan of opset 8 has a batch" in remark.message for remark in ctx.remarks)


def stored(folder: Path, kind: str) -> list[np.ndarray]:
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    tensors = [onnx.TensorProto.FromString(path.read_bytes()) for path in paths]
    return [numpy_helper.to_array(tensor) for tensor in tensors]


OPSET_6 = sorted(DATA.glob("pytorch-*/*/model.onnx"))


@pytest.mark.parametrize("path", OPSET_6[::3], ids=lambda path: path.parent.name)
def test_models_of_opset_6_give_what_is_stored_with_them(path: Path) -> None:
    module = Module.load(path)
    PassManager(parse("lift-constants,infer-shapes,convert-opset(version=21)")).run(
        module, Context()
    )
    assert module.opset == 21
    inputs, outputs = (stored(path.parent / "test_data_set_0", k) for k in ("input", "output"))
    feeds = {str(value.name): array for value, array in zip(module.inputs, inputs, strict=True)}
    results = OrtSession(module, optimise=False).run(feeds)
    for result, expected in zip(results.values(), outputs, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


def test_only_the_default_domain_has_an_opset() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["ai.onnx.ml" : 3]>
g (float[2,4] x) => (float[2,4] y) { y = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x) }""")
    assert make_target("mobile").check(module) == []
    PassManager(parse(make_target("mobile").pipeline())).run(
        module, Context(target=make_target("mobile"))
    )
    x = np.ones((2, 4), np.float32)
    (y,) = OrtSession(module, optimise=False).run({"x": x}).values()
    np.testing.assert_array_equal(y, x * 0)


def test_the_newest_opset_is_lowered() -> None:
    module = module_of(28, "y = Relu (x)")
    run = make_target("mobile")
    PassManager(parse(run.pipeline())).run(module, Context(target=run))
    assert module.opset == 26 and run.check(module) == []


@pytest.mark.parametrize("target", ["mobile", "cpu"])
def test_a_model_of_opset_6_is_built_and_compared(target: str, tmp_path: Path) -> None:
    path = DATA / "pytorch-converted" / "test_BatchNorm2d_eval" / "model.onnx"
    made = aigcc.build(path, target, tmp_path / "out")
    assert made.original.opset == 6 and made.module.opset == 7
    outputs = made.artifact.manifest["quality"]["outputs"]
    assert max(row["relative"] for row in outputs) < 1e-5


def test_a_newer_ir_version_than_runtimes_read_is_run() -> None:
    module = Module.parse("""<ir_version: 14, opset_import: ["" : 28]>
g (float[2] x) => (y) { y = Relu (x) }""")
    (y,) = OrtSession(module).run({"x": np.array([-1, 2], np.float32)}).values()
    np.testing.assert_array_equal(y, [0, 2])
    assert module.opset == 28


def test_a_function_of_an_old_opset_that_needs_whole_numbers_is_left_alone() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 6, "own" : 1]>
        g (float[2,3,4] x, float[3] s) => (float[2,3,4] y) { y = own.whole (x, s) }
        <domain: "own", opset_import: ["" : 6]>
        whole (x, s) => (y) { y = PRelu (x, s) }
    """
    module = Module.parse(text)
    ctx = Context()
    PassManager(parse("infer-shapes,convert-opset(version=7)")).run(module, ctx)
    assert module.opset == 6
    assert any("whole numbers" in remark.message for remark in ctx.remarks)
