"""Several sizes of a dim for jetson: which program runs, that padding changes nothing, refusals."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import aigcc
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.reference import Reference
from aigcc.samples import load_samples
from aigcc.targets import make_target
from aigcc.targets.jetson import INSTALL, Jetson
from aigcc.targets.jetson.buckets import Buckets
from aigcc.targets.jetson.padding import cropped, padded, size_of

needs_tvm = pytest.mark.skipif(
    importlib.util.find_spec("tvm") is None, reason=f"needs Apache TVM: {INSTALL}"
)

Feeds = dict[str, np.ndarray]
random = np.random.default_rng(0)


def module(text: str) -> Module:
    made = Module.parse(f'<ir_version: 9, opset_import: ["" : 20]>\n{text}')
    infer_shapes(made.model)
    return made


def weight(name: str, *shape: int) -> str:
    numbers = np.random.default_rng(len(name) + shape[0]).standard_normal(shape).ravel()
    sizes = ",".join(map(str, shape))
    return f"float[{sizes}] {name} = {{{','.join(f'{x:.3f}' for x in numbers)}}}"


def attention(mask: str, score: str) -> Module:
    """Two layers of attention over tokens; `score` adds a mask's part `m` to the scores `s`."""
    layer = """{x}t = Transpose <perm = [0,2,1]> ({x}) {x}s = MatMul ({x}, {x}t)
  {x}m = Add ({x}s, m) {x}p = Softmax ({x}m) {y} = MatMul ({x}p, {x})"""
    return module(f"""attention (float[1,tokens,4] x, {mask}) => (float[1,tokens,4] y)
<float low = {{-1e9}}, float none = {{0}}, int64[1] one = {{1}}, int64 n = {{0}}>
{{ {score} {layer.format(x="x", y="h")} {layer.format(x="h", y="y")} }}""")


MASKS = {
    "keep": ("bool[1,tokens] mask", "k = Where (mask, none, low) m = Unsqueeze (k, one)"),
    "hide": ("bool[1,tokens] mask", "k = Where (mask, low, none) m = Unsqueeze (k, one)"),
    "whole": (
        "int64[1,tokens] mask",
        "b = Cast <to = 9> (mask) k = Where (b, none, low) m = Unsqueeze (k, one)",
    ),
    "add": ("float[1,1,tokens] mask", "m = Identity (mask)"),
    "square": ("float[1,tokens,tokens] mask", "m = Identity (mask)"),
}


def mask_of(kind: str, size: int, hidden: int = 0) -> np.ndarray:
    """A mask that hides the last numbers."""
    kept = np.arange(size) < size - hidden
    if kind == "square":
        return np.broadcast_to(np.where(kept, 0, -1e9), (1, size, size)).astype(np.float32)
    made = {"keep": kept, "hide": ~kept, "whole": kept.astype(np.int64)}
    return made[kind][None] if kind in made else np.where(kept, 0, -1e9)[None, None].astype("f")


def sample(kind: str, size: int, hidden: int = 0) -> Feeds:
    x = random.standard_normal((1, size, 4)).astype(np.float32)
    return {"x": x, "mask": mask_of(kind, size, hidden)}


def prepared(made: Module, feeds: list[Feeds] | None, dims: str = "tokens:4|8|16") -> Buckets:
    ctx = Context(samples=load_samples(feeds, made))
    found = Buckets.read(Jetson(board="host", dims=(dims,)).prepare(made, ctx))
    assert found is not None
    return found


@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize(
    ("kind", "fills"),
    [
        ("keep", [0]),
        ("hide", [1]),
        ("whole", [0]),
        ("add", [-1e9, float(np.finfo(np.float32).min)]),
        ("square", [-1e9, float(np.finfo(np.float32).min)]),
    ],
)
def test_masks_are_filled_with_what_hides(kind: str, fills: list[float], hidden: int) -> None:
    made = attention(*MASKS[kind])
    feeds = [sample(kind, size, hidden) for size in (3, 6, 8, 16)]
    found = prepared(made, feeds)
    assert found.pads["mask"] in [pytest.approx(fill) for fill in fills]
    reference = Reference(made)
    for given in feeds[:3]:
        size = size_of(given, found.inputs)
        assert size == given["x"].shape[1]
        long = padded(given, found.inputs, 16, found.pads)
        assert long["x"].shape == (1, 16, 4) and not long["x"][0, size:].any()
        outputs = cropped(reference.run(long), found.outputs, size)
        np.testing.assert_allclose(outputs["y"], reference.run(given)["y"], atol=1e-5)


@needs_tvm
@pytest.mark.parametrize("kind", ["hide", "square"])
def test_each_input_runs_in_the_smallest_program_that_holds_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = attention(*MASKS[kind])
    feeds = [sample(kind, size, 1) for size in (3, 4, 6, 8)]
    out = tmp_path / "out"
    built = aigcc.build(made, "jetson(board=host,dims=[tokens:4|8])", out, samples=feeds)
    manifest = built.artifact.manifest
    assert manifest["quality"]["is_lowered"] and manifest["quality"]["count"] == 4
    assert manifest["facts"]["buckets"]["tokens"] == [4, 8]
    assert {"4/model.so", "8/model.so", "buckets.json"} < set(manifest["device_files"])
    assert manifest["inputs"][0]["shape"] == [1, "tokens", 4]

    target = make_target(manifest["target"])
    session = target.session(out, built.artifact.entry)
    assert session is not None
    reference = Reference(made)
    for size in (1, 2, 4, 5, 8):
        given = sample(kind, size)
        actual, expected = session.run(given)["y"], reference.run(given)["y"]
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    with pytest.raises(TargetError, match="no size of 'tokens' up to 8"):
        session.run(sample(kind, 9))
    with pytest.raises(TargetError, match="no value for the input 'mask'"):
        session.run({"x": sample(kind, 4)["x"]})
    with pytest.raises(TargetError, match="agree on no size"):
        session.run({"x": sample(kind, 4)["x"], "mask": mask_of(kind, 3)})

    signature = built.artifact.signature()
    (first, *_) = load_samples(None, signature)  # as `aigcc run` makes them up
    assert session.run(first)["y"].shape == first["x"].shape

    given = sample(kind, 5)
    arguments = [f"{name}={tmp_path / name}.npy" for name in given]
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    monkeypatch.setattr(sys, "argv", ["example.py", *arguments])
    runpy.run_path(str(out / "example.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "y (1, 5, 4)" in printed
    number = float(printed.split("[")[1].split()[0])
    assert number == pytest.approx(float(reference.run(given)["y"].ravel()[0]), abs=1e-4)
    np.save(tmp_path / "x.npy", sample(kind, 9)["x"])
    with pytest.raises(SystemExit, match="no size of 'tokens' up to 8"):
        runpy.run_path(str(out / "example.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["example.py"])
    runpy.run_path(str(out / "example.py"), run_name="__main__")
    assert "y (1, 4, 4)" in capsys.readouterr().out


CONV = f"""conv (float[1,2,frames] x) => (float[1,2,frames] y)
<{weight("k", 2, 2, 3)}, float[2] b = {{0.5, -0.7}}>
{{ a = Conv <pads = [1,1]> (x, k, b) y = Conv <pads = [1,1]> (a, k, b) }}"""

MEAN = """mean (float[1,2,frames] x) => (float[1,2,1] y)
<int64[1] last = {2}> { y = ReduceMean (x, last) }"""


@pytest.mark.parametrize("text", [CONV, MEAN], ids=["conv", "mean"])
@pytest.mark.parametrize("sizes", [None, (3, 5), (4, 8)])
def test_a_model_that_no_mask_hides_padding_from_is_refused(
    text: str, sizes: tuple[int, ...] | None
) -> None:
    feeds = sizes and [{"x": random.standard_normal((1, 2, n)).astype(np.float32)} for n in sizes]
    words = r"in sample 0 padding it from \d to 4 changes the output 'y' by a relative error of .*"
    with pytest.raises(TargetError, match=words) as error:
        prepared(module(text), feeds or None, "frames:4|8")
    assert "dims=[frames:SIZE]" in str(error.value) and "mask" in str(error.value)


LENGTHS = f"""text (int64[1,tokens] ids, int64[1] lengths)
 => (float[1,"2*tokens",3] y, float[1,3] m)
<{weight("table", 10, 3)}, int64 start = {{0}}, int64 step = {{1}}, int64[1] one = {{1}},
 int64[1] two = {{2}}>
{{
  e = Gather (table, ids)
  shape = Shape (ids)
  i = Constant <value_int = 1> ()
  count = Gather (shape, i)
  places = Range (start, count, step)
  keep = Less (places, lengths)
  keepf = Cast <to = 1> (keep)
  mask = Unsqueeze (keepf, one)
  h = Mul (e, mask)
  sum = ReduceSum <keepdims = 0> (h, one)
  n = Cast <to = 1> (lengths)
  m = Div (sum, n)
  pair = Unsqueeze (h, two)
  pairs = Concat <axis = 2> (pair, pair)
  flat = Constant <value_ints = [1,-1,3]> ()
  y = Reshape (pairs, flat)
}}"""


@needs_tvm
def test_lengths_keep_their_value_and_outputs_follow_expressions(tmp_path: Path) -> None:
    made = module(LENGTHS)
    feeds = [
        {"ids": random.integers(1, 10, (1, size)), "lengths": np.array([length])}
        for size, length in ((3, 2), (4, 4), (7, 5), (8, 8))
    ]
    target = "jetson(board=host,dims=[tokens:4|8])"
    built = aigcc.build(made, target, tmp_path / "out", samples=feeds)
    session = make_target(built.artifact.manifest["target"]).session(
        tmp_path / "out", built.artifact.entry
    )
    assert session is not None
    reference = Reference(made)
    for given in feeds:
        actual, expected = session.run(given), reference.run(given)
        assert actual["y"].shape == (1, 2 * given["ids"].shape[1], 3)
        for name, array in expected.items():
            np.testing.assert_allclose(actual[name], array, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    made = attention(*MASKS["keep"])
    with pytest.raises(TargetError, match=r"'tokens' is 17 in sample 1, and 16 at most") as error:
        prepared(made, [sample("keep", 3), sample("keep", 17)])
    assert "dims=[tokens:4|8|16|17]" in str(error.value)
    feeds = [sample("keep", size) for size in (3, 9, 5, 5)]
    with pytest.raises(TargetError, match=r"3 in sample 0, and 9 in sample 1") as error:
        Jetson().prepare(made, Context(samples=load_samples(feeds, made)))
    assert "-t 'jetson(dims=[tokens:3|5|9])'" in str(error.value)
    feeds = [sample("keep", size) for size in range(1, 41)]
    with pytest.raises(TargetError, match="40 sizes from 1 to 40") as error:
        Jetson().prepare(made, Context(samples=load_samples(feeds, made)))
    assert "-t 'jetson(dims=[tokens:10|20|30|40])'" in str(error.value)
    with pytest.raises(TargetError, match="the form is"):
        prepared(made, None, "tokens:4|many")
    with pytest.raises(TargetError, match="the form is"):
        prepared(made, None, "tokens:4|")
    two = module("g (float[a,b] x) => (float[a,b] y) { y = Neg (x) }")
    with pytest.raises(TargetError, match="'a' and 'b' have several sizes each"):
        Jetson(dims=("a:1|2", "b:3|4")).prepare(two, Context())
    unnamed = module("g (float[1,?] x) => (float[1,?] y) { y = Neg (x) }")
    with pytest.raises(TargetError, match="has no name in the model"):
        Jetson(dims=("x.1:3|4",)).prepare(unnamed, Context())


def test_synthetic_samples_reach_each_bucket() -> None:
    made = attention(*MASKS["keep"])
    ctx = Context(samples=load_samples(None, made))
    fixed = Jetson(dims=("tokens:4|8|16|32|64",)).prepare(made, ctx)
    assert ctx.samples is not None
    samples = ctx.samples.fitted(fixed)
    assert [feeds["x"].shape[1] for feeds in samples] == [2, 6, 12, 24, 48]
    assert samples.source == "5 synthetic samples"
    assert not ctx.remarks


def test_a_size_that_no_sample_needs_is_said() -> None:
    made = attention(*MASKS["keep"])
    ctx = Context(samples=load_samples([sample("keep", 3)], made))
    Jetson(dims=("tokens:4|8",)).prepare(made, ctx)
    assert "no sample needs the program for tokens = 8" in ctx.remarks[0].message
