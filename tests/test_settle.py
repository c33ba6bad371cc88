"""Synthetic sizes follow ranges, relations, strides and tables, or samples are asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigcc.dims import dynamic_dims, sample_sizes
from aigcc.errors import ModelError, SampleError
from aigcc.ir.module import Module
from aigcc.ranges import Range, declare, declared, invert, may_be_empty, resolve, solve
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.sizes import compare_elsewhere
from aigcc.synthetic import choose_dims

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

# Patches of 4 by 4, whose positions are cropped from the middle of a table of 4 by 4.
CROPPED = """g (float[batch,1,h,w] x) => (float[batch,1,a,b] y)
<ones[1,1,4,4] kernel, ones[1,1,4,4] table, int64[4] rest = {0, 0, 4, 4}, int64[1] two = {2},
 int64[1] four = {4}, int64[2] axes = {2, 3}> {
  p = Conv <strides = [4, 4]> (x, kernel)
  size = Shape <start = 2, end = 4> (p)
  left = Sub (four, size)
  start = Div (left, two)
  end = Add (start, size)
  crop = Slice (table, start, end, axes)
  y = Add (p, crop)
}"""
# A class token before 16 patches of 14 by 14.
CLASSED = """g (float[batch,1,h,w] x) => (float[batch,17,1] y)
<ones[1,1,14,14] kernel, ones[1,17,1] table, ones[1,1,1] token, int64[3] flat = {0, 1, -1}> {
  p = Conv <strides = [14, 14]> (x, kernel)
  f = Reshape (p, flat)
  t = Transpose <perm = [0, 2, 1]> (f)
  c = Concat <axis = 1> (token, t)
  y = Add (c, table)
}"""
# Two strides of 2, and positions for 15 frames: 57 to 60 columns.
FRAMES = """g (float[1,2,t] x) => (float[1,2,15] y)
<ones[2,2,3] kernel, ones[1,2,15] table> {
  p = Conv <strides = [2], pads = [1, 1]> (x, kernel)
  q = Conv <strides = [2], pads = [1, 1]> (p, kernel)
  y = Add (q, table)
}"""
# 3 channels of a picture of 20 by 20 that is halved, flattened.
FLAT = """g (float[batch,3,h,w] x) => (float[batch,1] y) <ones[300,1] table> {
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  f = Flatten (p)
  y = MatMul (f, table)
}"""
# Heads of 24 columns; the batch is a pair, of which only a run says that it is one.
SPLIT = """g (float[batch,length] x, int64[batch] k) => (float[1,n,24] y)
<int64[3] shape = {1, -1, 24}, int64[1] one = {1}> {
  s = Shape <start = 0, end = 1> (x)
  h = Reshape (x, shape)
  z = Sub (s, one)
  m = Gather (k, one)
  y = Identity (h)
}"""


def filled(text: str) -> Module:
    """A module in which `ones[2,3] name` is a weight."""

    def weight(found: re.Match[str]) -> str:
        ones = ", ".join("1" * math.prod(map(int, found[1].split(","))))
        return f"float[{found[1]}] {found[2]} = {{{ones}}}"

    return Module.parse(HEAD + re.sub(r"ones\[([\d,]+)\] (\w+)", weight, text))


@pytest.mark.parametrize("text", [CROPPED, CLASSED, FRAMES, FLAT, SPLIT])
def test_sizes_are_chosen_by_strides_and_tables(text: str) -> None:
    module = filled(text)
    feeds = next(iter(load_samples(None, module)))
    OrtSession(module, optimise=False).run(feeds)
    assert choose_dims(module) == sample_sizes(module, feeds)


def test_what_was_found_stays_in_text_and_files(tmp_path: Path) -> None:
    module = filled(FRAMES)
    load_samples(None, module)
    module.save(tmp_path / "module.onnx")
    for again in (Module.load(tmp_path / "module.onnx"), module.clone()):
        assert choose_dims(again) == choose_dims(module) != {"t": 8}


def test_without_fitting_sizes_samples_are_asked_for() -> None:
    text = """g (float[1,n] x) => (float[1,1] y) <ones[5003,1] table> { y = MatMul (x, table) }"""
    with pytest.raises(SampleError, match="no sizes were found") as caught:
        load_samples(None, filled(text))
    assert "'n' is axis 1 of 'x'" in str(caught.value)
    assert "--samples" in (caught.value.hint or "")


def test_declared_ranges_bound_the_guess() -> None:
    text = "g (float[batch,2*th] x, float[past,seq] z) => (float[batch,2*th] y) { y = Neg (x) }"
    module = Module.parse(HEAD + text.replace("2*th", '"2*th"'))
    declare(module, {"th": Range(5, 7), "past": Range(0, 3, 2), "seq": Range(40)})
    assert choose_dims(module) == {"batch": 1, "th": 5, "past": 3, "seq": 40}
    assert declared(Module.parse(module.text())) == declared(module)
    assert next(iter(load_samples(None, module)))["x"].shape == (1, 10)


@pytest.mark.parametrize(("size", "fault"), [(9, "cannot be 9"), (16, "is 8, .* for 5 to 7")])
def test_samples_outside_of_ranges_and_relations_are_refused(size: int, fault: str) -> None:
    module = Module.parse(HEAD + 'g (float["2*th"] x) => (float["2*th"] y) { y = Neg (x) }')
    declare(module, {"th": Range(5, 7)})
    with pytest.raises(SampleError, match=fault):
        load_samples({"x": np.ones(size, np.float32)}, module)
    load_samples({"x": np.ones(14, np.float32)}, module)


def test_samples_fit_dims_that_shrink() -> None:
    module = Module.parse(HEAD + 'g (float["9 - n"] x) => (float["9 - n"] y) { y = Neg (x) }')
    load_samples({"x": np.ones(5, np.float32)}, module)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '{"a": [3, 2, null]}', '{"a": ["x"]}'])
def test_damaged_ranges_are_an_error(text: str) -> None:
    module = Module.parse(HEAD + "g (float[a] x) => (float[a] y) { y = Neg (x) }")
    module.model.metadata_props["aigcc.dims"] = text
    with pytest.raises(ModelError, match="damaged"):
        declared(module)


def test_other_sizes_keep_relations_and_reach_an_empty_cache() -> None:
    text = """g (float["past + seq"] mask, float[past] cache, float[seq] x) => (float[t] y) {
      t = Concat <axis = 0> (cache, x)  y = Mul (mask, t) }"""
    module = Module.parse(HEAD + text)
    session = OrtSession(module, optimise=False)
    feeds = {name: np.ones(n, np.float32) for name, n in (("mask", 7), ("cache", 3), ("x", 4))}
    ranges = {"past": Range(0, 9), "seq": Range(3, 9)}
    found = compare_elsewhere(module.inputs, feeds, session.run, session, ranges)
    assert {other.sizes for other in found} == {"past = 1, seq = 3", "past = 0, seq = 4"}
    for other in found:
        other.refuse(0, "here")


def test_batches_that_torch_lets_be_empty_are_not_caches() -> None:
    dims = [ir.SymbolicDim(text) for text in ("batch", "a + b", "batch", "2*c")]
    ranges = {name: Range() for name in ("batch", "a", "c", "past")} | {"b": Range(1)}
    assert may_be_empty(dims, ranges) == {"a", "past"}


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 99))
def test_what_is_solved_is_what_was_put_in(times: int, more: int, size: int) -> None:
    dim = ir.SymbolicDim(f"{times}*x + {more}")
    whole = resolve(dim, {"x": size})
    assert whole == times * size + more
    assert solve([(dim, whole)]) == {"x": size} == {"x": invert(dim, "x", whole, {})}
    other = ir.SymbolicDim("x + y")
    assert solve([(other, size + 3), (dim, whole)]) == {"x": size, "y": 3}


# A window is 48 wide; half of it is reflected at the end. The state has a row a batch.
REFLECTED = """g (float[DIMS] x, float[STATE] state) => (float[b,o] y)
<ones[1,1,48] kernel, int64[1] zero = {0}, int64[1] one = {1}, int64[1] amount = {24},
 int64[3] before = {0, 0, 0}> {
  PADS
  p = Pad <mode = "reflect"> (x, pads)
  u = Unsqueeze (p, one)
  q = Conv <strides = [24]> (u, kernel)
  f = Flatten (q)
  h = Squeeze (state, zero)
  y = Concat <axis = 1> (f, h)
}"""
FOLDED = "pads = Constant <value_ints = [0, 0, 0, 24]> ()"
UNFOLDED = "pads = Concat <axis = 0> (before, amount)"


@pytest.mark.parametrize("pads", [FOLDED, UNFOLDED])
@pytest.mark.parametrize(("dims", "state"), [("batch,t", "1,batch,4"), ("?,?", "1,?,4")])
def test_what_is_reflected_is_longer_than_its_ends(pads: str, dims: str, state: str) -> None:
    text = REFLECTED.replace("DIMS", dims).replace("STATE", state).replace("PADS", pads)
    made = filled(text)
    feeds = next(iter(load_samples(None, made)))
    batch, length = feeds["x"].shape
    assert feeds["state"].shape[1] == batch
    assert length > 24


def test_pictures_are_larger_than_what_is_reflected() -> None:
    made = filled("""g (float[?,1,?,?] x) => (float[n,1,h,w] y) {
  pads = Constant <value_ints = [0, 0, 40, 40, 0, 0, 40, 40]> ()
  y = Pad <mode = "reflect"> (x, pads)
}""")
    assert min(next(iter(load_samples(None, made)))["x"].shape[2:]) > 40


def test_dims_without_names_are_called_after_their_places() -> None:
    made = filled("g (float[?,2,n] x) => (float[a,b,c] y) { y = Relu (x) }")
    assert dynamic_dims(made) == {"x.0": "axis 0 of 'x'", "n": "axis 2 of 'x'"}
