"""What golden cases cannot show of to-fp16: any number of rewrites is legal, weights stay lazy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.to_fp16 import ToFp16
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
model (float[N,4] x, bool c) => (float[N,4] y, float[N,4] b)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float two = {2}, int64[2] shape = {-1, 4}>
{
  m = MatMul (x, w)
  p = Pow (m, two)
  s = Sqrt (p)
  r = Reshape (s, shape)
  a = Add (r, m)
  b = If (c) <
    then_branch = yes () => (float[N,4] t) { t = Neg (a) },
    else_branch = no () => (float[N,4] f) { f = Identity (a) }
  >
  k = MatMul (a, w)
  l = LeakyRelu (k)
  y = Mul (l, m)
}"""


def make() -> Module:
    module = Module.parse(TEXT)
    infer_shapes(module.model)
    return module


@pytest.mark.parametrize("keep_io", [True, False])
def test_every_number_of_rewrites_gives_a_legal_module(keep_io: bool) -> None:
    x, c = np.array([[0.5, -1, 2, 0.25]], np.float32), np.array(True)
    expected = OrtSession(make(), optimise=False).run({"x": x, "c": c})
    whole = Context()
    PassManager([ToFp16(keep_io=keep_io)]).run(make(), whole)
    assert whole.total > 3
    for limit in range(whole.total + 1):
        module, ctx = make(), Context(limit=limit)
        PassManager([ToFp16(keep_io=keep_io)]).run(module, ctx)
        assert ctx.total == limit
        dtype = module.inputs[0].dtype
        assert dtype is not None
        feeds = {"x": x.astype(dtype.numpy()), "c": c}
        for name, array in OrtSession(module, optimise=False).run(feeds).items():
            np.testing.assert_allclose(array, expected[name], rtol=2e-3, atol=0.05)


def test_nothing_is_left_to_do() -> None:
    module = make()
    PassManager([ToFp16()]).run(module)
    before = module.text()
    casts = sum(node.op_type == "Cast" for node in module.nodes())
    PassManager([ToFp16()]).run(module)
    assert sum(node.op_type == "Cast" for node in module.nodes()) == casts, before


def test_large_weights_stay_lazy_until_they_are_saved(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 64)).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 64]))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    node = ir.Node("", "MatMul", [x, w], num_outputs=1, name="m")
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 21})
    Module(ir.Model(graph, ir_version=10)).save(tmp_path / "before.onnx")

    module = Module.load(tmp_path / "before.onnx")
    infer_shapes(module.model)
    PassManager([ToFp16()]).run(module)
    assert isinstance(module.graph.initializers["w"].const_value, ir.LazyTensor)
    module.save(tmp_path / "after.onnx")
    saved = Module.load(tmp_path / "after.onnx").graph.initializers["w"].const_value
    assert saved is not None
    np.testing.assert_array_equal(saved.numpy(), weight.astype(np.float16))
    assert (tmp_path / "after.onnx").stat().st_size < 0.6 * (
        tmp_path / "before.onnx"
    ).stat().st_size


LOUD = """<ir_version: 10, opset_import: ["" : 21]>
loud (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
{
  a = MatMul (x, w)
  b = MatMul (a, w)
  c = LayerNormalization <axis = -1> (b, s)
  y = MatMul (c, w)
}"""


@pytest.mark.parametrize("scale", [1.0, 1000.0, 30000.0])
def test_nothing_overflows_on_the_samples(scale: float) -> None:
    text = LOUD.replace("(float[N,4] y)\n<", "(float[N,4] y)\n<float[4] s = {1,1,1,1}, ")
    module = Module.parse(text)
    infer_shapes(module.model)
    feeds = {"x": np.array([[0.5, -1, 2, 0.25]], np.float32) * np.float32(scale)}
    expected = OrtSession(module, optimise=False).run(feeds)["y"]
    half = module.clone()
    ctx = Context(samples=load_samples(lambda: [feeds], module))
    PassManager([ToFp16()]).run(half, ctx)
    made = OrtSession(half, optimise=False).run(feeds)["y"]
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made, expected, rtol=2e-2, atol=0.05)
    declined = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert any("on the samples" in message for message in declined) == (scale > 1)
