"""What is dequantised and moved is right at every level of the runtime's optimisations."""

from __future__ import annotations

import numpy as np
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

MOVES = {
    "transpose": "t = Transpose <perm = [0, 1, 3, 2]> (d)",
    "reshape": "t = Reshape (d, shape)",
    "slice": "t = Slice (d, start, end)",
    "unsqueeze": "u = Unsqueeze (d, first)  t = Squeeze (u, first)",
    "pool": "t = MaxPool <kernel_shape = [2, 2]> (d)",
    "two": "u = Transpose <perm = [0, 1, 3, 2]> (d)  t = Reshape (u, shape)",
    "both": "u = Transpose <perm = [0, 1, 3, 2]> (d)  t = Add (u, d)",
}
USES = {
    "dynamic": "q, s2, z2 = DynamicQuantizeLinear (t)  y = DequantizeLinear (q, s2, z2)",
    "relu": "y = Relu (t)",
    "output": "y = Identity (t)",
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("zero", ["", ", z"], ids=["symmetric", "shifted"])
@pytest.mark.parametrize("opset", [17, 21, 23])
@pytest.mark.parametrize("move", MOVES)
def test_every_level_gives_the_same(move: str, opset: int, zero: str, use: str) -> None:
    module = Module.parse(f"""<ir_version: 9, opset_import: ["" : {opset}]>
g (int8[1,2,4,4] x) => (y)
<float s = {{0.5}}, int8 z = {{3}}, int64[4] shape = {{1, 4, 2, 4}}, int64[1] start = {{0}},
 int64[1] end = {{1}}, int64[1] first = {{0}}>
{{ d = DequantizeLinear (x, s{zero})  {MOVES[move]}  {USES[use]} }}""")
    infer_shapes(module.model)
    x = np.random.default_rng(0).integers(-128, 128, (1, 2, 4, 4)).astype(np.int8)
    wanted = OrtSession(module, optimise=False).run({"x": x})["y"]
    after = module.clone()
    PassManager(parse("canonicalize,fuse")).run(after, Context())
    for optimise in (False, True):
        found = OrtSession(after, optimise=optimise).run({"x": x})["y"]
        np.testing.assert_array_equal(found, wanted)
