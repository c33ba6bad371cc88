"""What passes write is what the module's own opset has, from opset 7 to 26."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.verify import verify
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

X = np.array([[3, -1, 2, 5], [0.5, 4, -2, 1]], np.float32)
# Before and after each change of a form.
OPSETS = (7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 23, 24, 26)

Made = Callable[[Builder, ir.Value], ir.Value]

# What a rule writes, and what it means.
WRITTEN: dict[str, tuple[int, Made, Any]] = {
    "Clip": (
        7,
        lambda op, x: op.Clip(x, np.array(0, np.float32), np.array(3, np.float32)),
        X.clip(0, 3),
    ),
    "Clip above": (7, lambda op, x: op.Clip(x, None, np.array(3, np.float32)), X.clip(None, 3)),
    "Pad": (7, lambda op, x: op.Pad(x, [0, 1, 0, 0]), np.pad(X, ((0, 0), (1, 0)))),
    "Pad with a value": (
        7,
        lambda op, x: op.Pad(x, [0, 1, 0, 0], np.array(2, np.float32)),
        np.pad(X, ((0, 0), (1, 0)), constant_values=2),
    ),
    "Slice": (7, lambda op, x: op.Slice(x, [1], [3], [1]), X[:, 1:3]),
    "Slice with steps": (10, lambda op, x: op.Slice(x, [0], [4], [1], [2]), X[:, ::2]),
    "Split": (7, lambda op, x: op.Split(x, [1, 3], axis=1, _outputs=2)[1], X[:, 1:]),
    "Split in halves": (7, lambda op, x: op.Split(x, axis=1, _outputs=2)[0], X[:, :2]),
    "Squeeze": (7, lambda op, x: op.Squeeze(op.Slice(x, [1], [2], [0]), [0]), X[1]),
    "TopK": (7, lambda op, x: op.TopK(x, [2], axis=1, _outputs=2)[0], -np.sort(-X)[:, :2]),
    "Unsqueeze": (7, lambda op, x: op.Unsqueeze(x, [1]), X[:, None]),
    "Shape of a part": (15, lambda op, x: op.Shape(x, start=1), np.array([4])),
    "ReduceSum": (7, lambda op, x: op.ReduceSum(x, [1], keepdims=0), X.sum(1)),
    "ReduceMean": (7, lambda op, x: op.ReduceMean(x, [1]), X.mean(1, keepdims=True)),
    "ReduceL2": (7, lambda op, x: op.ReduceL2(x, [0]), np.sqrt((X * X).sum(0, keepdims=True))),
    "Gelu": (20, lambda op, x: op.Gelu(x, approximate="tanh"), None),
    "Swish": (24, lambda op, x: op.Swish(x), None),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", WRITTEN)
def test_a_builder_writes_the_form_of_its_opset(case: str, opset: int) -> None:
    since, make, expected = WRITTEN[case]
    module = Module.parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[2,4] x) => (float[2,4] x) {{ }}'
    )
    builder = Builder(module.graph, Names(module), "made", "test", opset)
    if opset < since:
        with pytest.raises(NoMatch, match=str(opset)):
            make(builder, module.graph.inputs[0])
        return
    result = make(builder, module.graph.inputs[0])
    module.graph.extend(builder.made)
    module.graph.outputs[0] = result
    verify(module.model)
    if expected is not None:
        (given,) = OrtSession(module, optimise=False).run({"x": X}).values()
        np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_a_builder_declines_what_was_an_attribute_and_is_computed() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 11]>
g (float[2,4] x, int64[1] axes) => (float[2,4] x) { }""")
    builder = Builder(module.graph, Names(module), "made", "test", 11)
    with pytest.raises(NoMatch, match="needs opset 13"):
        builder.Unsqueeze(*module.graph.inputs)


SEQUENCES = {
    "one at a place": (
        "s = SplitToSequence <axis = 0> (x) y = SequenceAt (s, one)",
        X[1:],
    ),
    "without the axis": (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x) y = SequenceAt (s, last)",
        X[:, 3],
    ),
    "of given sizes": (
        "s = SplitToSequence <axis = -1> (x, sizes) y = SequenceAt (s, one)",
        X[:, 1:],
    ),
    "of one size": (
        "s = SplitToSequence <axis = 1> (x, three) y = SequenceAt (s, one)",
        X[:, 3:],
    ),
    "side by side": (
        "s = SequenceConstruct (x, x) y = ConcatFromSequence <axis = 1> (s)",
        np.concatenate([X, X], 1),
    ),
    "on a new axis": (
        "s = SequenceConstruct (x, x) y = ConcatFromSequence <axis = -1, new_axis = 1> (s)",
        np.stack([X, X], -1),
    ),
}


@pytest.mark.parametrize("opset", [opset for opset in OPSETS if opset >= 11])
@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences_are_unpacked_in_every_opset(case: str, opset: int) -> None:
    body, expected = SEQUENCES[case]
    module = Module.parse(f"""<ir_version: 7, opset_import: ["" : {opset}]>
g (float[2,4] x) => (float[] y)
<int64 one = {{1}}, int64 three = {{3}}, int64 last = {{-1}}, int64[2] sizes = {{1, 3}}>
{{ {body} }}""")
    infer_shapes(module.model)
    PassManager(parse("unpack-sequences")).run(module, Context())
    assert not [node for node in module.nodes() if "Sequence" in node.op_type]
    (given,) = OrtSession(module, optimise=False).run({"x": X}).values()
    np.testing.assert_array_equal(given, expected)


def test_sequences_are_unpacked_in_the_opset_of_their_function() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
g (float[2,4] x) => (float[] y) { y = own.f (x) }
<domain: "own", opset_import: ["" : 11]>
f (x) => (y) { s = SequenceConstruct (x, x) y = ConcatFromSequence <axis = 0, new_axis = 1> (s) }
""")
    PassManager(parse("unpack-sequences")).run(module, Context())
    verify(module.model)
    (function,) = module.model.functions.values()
    assert [node.op_type for node in function] == ["Unsqueeze", "Unsqueeze", "Concat"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = SplitToSequence (x) y = SequenceAt (s, three)", "does not have"),
        ("s = SplitToSequence (x) y = SequenceAt (s, place)", "known places"),
    ],
)
def test_sequences_that_stay(body: str, reason: str) -> None:
    module = Module.parse(f"""<ir_version: 7, opset_import: ["" : 12]>
g (float[2,4] x, int64 place) => (float[] y)
<int64 three = {{3}}> {{ {body} }}""")
    infer_shapes(module.model)
    before, ctx = module.text(), Context()
    PassManager(parse("unpack-sequences")).run(module, ctx)
    assert module.text() == before
    assert any(reason in remark.message for remark in ctx.remarks)


@pytest.mark.parametrize("opset", [7, 8, 9, 13])
def test_functions_get_no_constants_that_their_opset_lacks(opset: int) -> None:
    module = Module.parse(f"""<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]>
g (float[2,4] x) => (float[8] y) {{ y = own.f (x) }}
<domain: "own", opset_import: ["" : {opset}]>
f (x) => (y) {{ s = Shape (x) k = Shape (s) c = Concat <axis = 0> (k, k) p = ReduceProd
  <keepdims = 1> (s) y = Reshape (x, p) }}""")
    PassManager(parse("canonicalize,fuse")).run(module, Context())
    verify(module.model)
    (y,) = OrtSession(module, optimise=False).run({"x": X}).values()
    np.testing.assert_array_equal(y, X.reshape(8))


def test_functions_are_folded_by_their_own_opset() -> None:
    module = Module.parse("""<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
g (float[2,4] x) => (y) { y = own.f (x) }
<domain: "own", opset_import: ["" : 11]>
f (x) => (y) {
  w = Constant <value = float[2,4] {1, 2, 3, 4, 5, 6, 7, 8}> ()
  s = ReduceSum <axes = [0], keepdims = 0> (w)
  y = Mul (x, s)
}""")
    PassManager(parse("canonicalize")).run(module, Context())
    (function,) = module.model.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Mul"]
