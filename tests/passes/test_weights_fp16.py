"""What weights-fp16 promises: bounded errors, half the bytes, weights left on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aigcc.ir.module import Module
from aigcc.passes.weights_fp16 import WeightsFp16
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager


def with_weights(**weights: np.ndarray) -> Module:
    """A module that adds each of the weights to its input."""
    x = ir.val("x", ir.DataType.FLOAT, ["n"])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g")
    for name, array in weights.items():
        weight = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(weight)
        node = ir.node("Add", [x, weight])
        graph.append(node)
        node.outputs[0].name = f"{name}_sum"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(node.outputs[0])
    return Module(ir.Model(graph, ir_version=10))


FLOATS = st.floats(-1e6, 1e6, width=32) | st.floats(-(2**-20), 2**-20, width=32)


@given(arrays.arrays(np.float32, 300, elements=FLOATS), st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_no_weight_is_off_by_more_than_the_tolerance(array: np.ndarray, tolerance: float) -> None:
    module = with_weights(w=array)
    ctx = Context()
    PassManager([WeightsFp16(tolerance=tolerance)]).run(module, ctx)
    ((name, stored),) = module.graph.initializers.items()
    assert stored.const_value is not None
    kept = stored.const_value.numpy()
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    bound = tolerance * np.abs(array).max()
    fits = np.isfinite(rounded).all() and np.abs(array - rounded.astype(np.float32)).max() <= bound
    assert kept.dtype == (np.float16 if fits else np.float32)
    np.testing.assert_array_equal(kept, rounded if fits else array)
    assert (name == "w_fp16") == fits
    assert len([remark for remark in ctx.remarks if remark.kind == "declined"]) == (not fits)


def test_the_file_is_half_as_large_and_weights_stay_mapped(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 4096)).astype(np.float32)
    with_weights(a=weights[0], b=weights[1]).save(tmp_path / "wide.onnx")
    module = Module.load(tmp_path / "wide.onnx")
    PassManager([WeightsFp16()]).run(module)
    assert all(
        isinstance(value.const_value, ir.LazyTensor) for value in module.graph.initializers.values()
    )
    module.save(tmp_path / "half.onnx")
    wide, half = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("wide", "half"))
    assert half < 0.55 * wide
    stored = Module.load(tmp_path / "half.onnx").graph.initializers["a_fp16"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), weights[0].astype(np.float16))


def test_the_limit_stops_it() -> None:
    module = with_weights(a=np.ones(300, np.float32), b=np.ones(300, np.float32))
    PassManager([WeightsFp16()]).run(module, Context(limit=1))
    assert sorted(module.graph.initializers) == ["a_fp16", "b"]
