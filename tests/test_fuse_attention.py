"""Attention and rotary embeddings in random spellings: they are fused, and the outputs stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.eliminate_dead import EliminateDead
from aigcc.passes.fuse_attention import FuseAttention
from aigcc.passes.fuse_rotary import FuseRotary
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.runtime import OrtSession

EXAMPLES = settings(max_examples=60, deadline=None)
Draw = st.DrawFn
LOWEST = -3.4028235e38


@dataclasses.dataclass
class Writer:
    """Writes a graph as text, one node a line; constants become initializers."""

    draw: Draw
    lines: list[str] = dataclasses.field(default_factory=list)
    constants: list[str] = dataclasses.field(default_factory=list)

    def node(self, call: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        return name

    def either_way(self, operator: str, a: str, b: str) -> str:
        if self.draw(st.booleans()):
            a, b = b, a
        return self.node(f"{operator} ({a}, {b})")

    def constant(self, array: np.ndarray | float) -> str:
        array = np.asarray(array)
        dtype = {"f": "float", "i": "int64", "b": "bool"}[array.dtype.kind]
        dims = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
        items = (str(int(x)) if dtype != "float" else f"{x:.9g}" for x in array.ravel().tolist())
        name = f"c{len(self.constants)}"
        self.constants.append(f"{dtype}{dims} {name} = {{{', '.join(items)}}}")
        return name

    def module(self, inputs: dict[str, Sequence[int]], output: str) -> Module:
        given = ", ".join(f"float[{','.join(map(str, d))}] {name}" for name, d in inputs.items())
        return Module.parse(
            f'<ir_version: 11, opset_import: ["" : 23]>\nrandom ({given}) => ({output})\n'
            f"<{', '.join(self.constants)}>\n{{\n" + "\n".join(self.lines) + "\n}"
        )


def fused(module: Module, *passes: Pass) -> Module:
    """Run passes on a module, and check its outputs against what they were."""
    infer_shapes(module.model)
    after = module.clone()
    PassManager([*passes, EliminateDead()]).run(after)
    random = np.random.default_rng(0)
    feeds = {
        value.name or "": random.standard_normal(tuple(value.shape or ())).astype(np.float32)
        for value in module.inputs
    }
    (old,), (new,) = (
        OrtSession(each, optimise=False).run(feeds).values() for each in (module, after)
    )
    np.testing.assert_allclose(new, old, 1e-4, 1e-4 * float(np.abs(old).max()))
    return after


@dataclasses.dataclass
class Sizes:
    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    depth: int


@st.composite
def sizes(draw: Draw) -> Sizes:
    groups, queries = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    keys = draw(st.sampled_from([queries, 5]))
    heads = groups * draw(st.sampled_from([1, 2, 3]))
    batch, width, depth = (draw(st.integers(low, high)) for low, high in [(1, 2), (1, 3), (1, 3)])
    return Sizes(batch, heads, groups, queries, keys, width, depth)


def heads_of(write: Writer, name: str, dims: tuple[int, int, int, int], rows: bool) -> str:
    """[batch, heads, tokens, width] as it is, or split from rows."""
    if not rows:
        return name
    batch, heads, tokens, width = dims
    split = write.constant(np.array([batch, tokens, heads, width]))
    return write.node(
        f"Transpose <perm = [0, 2, 1, 3]> ({write.node(f'Reshape ({name}, {split})')})"
    )


def repeated(write: Writer, x: str, size: Sizes, width: int) -> str:
    if size.heads == size.groups:
        return x
    times, tokens = size.heads // size.groups, size.keys
    more = write.constant(np.array([size.batch, size.groups, times, tokens, width]))
    many = write.constant(np.array([size.batch, size.heads, tokens, width]))
    column = write.node(f"Unsqueeze ({x}, {write.constant(np.array([2]))})")
    return write.node(f"Reshape ({write.node(f'Expand ({column}, {more})')}, {many})")


def swapped(write: Writer, k: str, size: Sizes) -> str:
    if write.draw(st.booleans()):
        return write.node(f"Transpose <perm = [0, 1, 3, 2]> ({k})")
    flat = write.constant(np.array([-1, size.keys, size.width]))
    back = write.constant(np.array([size.batch, size.heads, size.width, size.keys]))
    turned = write.node(f"Transpose <perm = [0, 2, 1]> ({write.node(f'Reshape ({k}, {flat})')})")
    return write.node(f"Reshape ({turned}, {back})")


def scaled(write: Writer, x: str) -> str:
    way = write.draw(st.sampled_from(["not", "Mul", "Div"]))
    number = write.constant(np.full(write.draw(st.sampled_from([(), (1,)])), 0.7))
    if way == "not":
        return x
    return (
        write.either_way("Mul", x, number) if way == "Mul" else write.node(f"Div ({x}, {number})")
    )


def masked(write: Writer, scores: str, size: Sizes) -> tuple[str, bool]:
    """Scores with a mask, and whether a row may be masked whole with -inf."""
    draw = write.draw
    dims = draw(
        st.sampled_from([
            (size.queries, size.keys),
            (1, 1, 1, size.keys),
            (size.batch, 1, size.queries, size.keys),
            (size.heads, 1, size.keys),
        ])
    )  # fmt: skip
    way = draw(st.sampled_from(["none", "bias", "triangle", "added", "chosen", "dropped"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if way == "none":
        return scores, False
    if way == "bias":
        return write.either_way("Add", scores, write.constant(random.standard_normal(dims))), False
    fill = draw(st.sampled_from([-np.inf, LOWEST, -1e9]))
    if way == "triangle":
        offset = draw(st.sampled_from([-1, 0, 1]))
        keep = np.tri(size.queries, size.keys, offset, dtype=bool)
        added = write.constant(np.where(keep, 0, fill))
        return write.either_way("Add", scores, added), fill == -np.inf and offset < 0
    keep = random.random(dims) > 0.4
    if way == "added":
        flags, zero = write.constant(keep), write.constant(0.0)
        added = write.node(f"Where ({flags}, {zero}, {write.constant(float(fill))})")
        return write.either_way("Add", scores, added), fill == -np.inf
    flags, low = write.constant(keep if way == "chosen" else ~keep), write.constant(float(fill))
    pair = (scores, low) if way == "chosen" else (low, scores)
    return write.node(f"Where ({flags}, {', '.join(pair)})"), fill == -np.inf


@st.composite
def attentions(draw: Draw) -> Module:
    write, size = Writer(draw), draw(sizes())
    rows = draw(st.booleans())
    inputs: dict[str, Sequence[int]] = {}
    values = []
    for name, heads, tokens, width in (
        ("q", size.heads, size.queries, size.width),
        ("k", size.groups, size.keys, size.width),
        ("v", size.groups, size.keys, size.depth),
    ):
        dims = (size.batch, heads, tokens, width)
        inputs[name] = (size.batch, tokens, heads * width) if rows else dims
        values.append(heads_of(write, name, dims, rows))
    q, k, v = values
    k, v = repeated(write, k, size, size.width), repeated(write, v, size, size.depth)
    product = write.node(f"MatMul ({scaled(write, q)}, {scaled(write, swapped(write, k, size))})")
    scores = scaled(write, product)
    if draw(st.booleans()):
        cap = write.constant(5.0)
        tanh = write.node(f"Tanh ({write.node(f'Div ({scores}, {cap})')})")
        scores = write.either_way("Mul", tanh, cap)
    scores, empty = masked(write, scores, size)
    shares = write.node(f"Softmax <axis = {draw(st.sampled_from([-1, 3]))}> ({scores})")
    if empty or draw(st.booleans()):
        nan, zero = write.node(f"IsNaN ({shares})"), write.constant(0.0)
        shares = write.node(f"Where ({nan}, {zero}, {shares})")
    y = write.node(f"MatMul ({shares}, {v})")
    if rows and draw(st.booleans()):
        joined = write.constant(np.array([size.batch, size.queries, size.heads * size.depth]))
        y = write.node(
            f"Reshape ({write.node(f'Transpose <perm = [0, 2, 1, 3]> ({y})')}, {joined})"
        )
    return write.module(inputs, y)


@EXAMPLES
@given(attentions())
def test_attention(module: Module) -> None:
    operators = [node.op_type for node in fused(module, FuseAttention()).nodes()]
    assert operators.count("Attention") == 1
    assert not {"Softmax", "MatMul", "IsNaN", "Tanh"} & set(operators)


@st.composite
def near_attentions(draw: Draw) -> Module:
    """Two products around a softmax that are not, or need not be, an Attention."""
    write = Writer(draw)
    scale = write.constant(draw(st.sampled_from([-1.0, 0.0, 0.5])))
    perm = draw(st.sampled_from([[0, 1, 3, 2], [0, 2, 3, 1], [1, 0, 3, 2]]))
    kt = write.node(f"Transpose <perm = {perm}> (k)")
    scores = write.node(f"Mul ({write.node(f'MatMul (q, {kt})')}, {scale})")
    if draw(st.booleans()):
        keep = np.random.default_rng(draw(st.integers(0, 9))).random((3, 3)) > 0.5
        fill = write.constant(draw(st.sampled_from([-1.0, -100.0, 1e9])))
        scores = write.node(f"Where ({write.constant(keep)}, {scores}, {fill})")
    shares = write.node(f"Softmax <axis = {draw(st.sampled_from([1, 2, 3]))}> ({scores})")
    if draw(st.booleans()):
        other = write.constant(draw(st.sampled_from([0.0, 1.0])))
        shares = write.node(f"Where ({write.node(f'IsNaN ({shares})')}, {other}, {shares})")
    batch = draw(st.sampled_from([1, 3]))
    y = write.node(f"MatMul ({shares}, v)")
    return write.module({"q": (3, 3, 3, 3), "k": (3, 3, 3, 3), "v": (batch, 3, 3, 3)}, y)


@EXAMPLES
@given(near_attentions())
def test_near_misses_keep_their_meaning(module: Module) -> None:
    fused(module, FuseAttention())


@st.composite
def rotations(draw: Draw) -> Module:
    write = Writer(draw)
    batch, heads, tokens, half = (draw(st.integers(1, 3)) for _ in range(4))
    tokens_first, pairs = draw(st.booleans()), draw(st.booleans())
    dims = [batch, tokens, heads, 2 * half] if tokens_first else [batch, heads, tokens, 2 * half]
    rows = [draw(st.sampled_from([1, batch])), *([tokens, 1] if tokens_first else [1, tokens])]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    angles = random.standard_normal((*rows, half))
    join = draw(st.booleans())
    caches = []
    for name, wave in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        if join:
            part = write.constant(wave)
            caches.append(part)
        elif pairs:
            caches.append(write.constant(np.repeat(wave, 2, axis=-1)))
        elif draw(st.booleans()):
            caches.append(write.constant(np.concatenate([wave, wave], -1)))
        else:
            part = write.node(f"{name.capitalize()} ({write.constant(angles)})")
            caches.append(write.node(f"Concat <axis = -1> ({part}, {part})"))
    cos, sin = caches
    a, b = cut_pairs(write, dims) if pairs else cut_halves(write, half)
    last = write.constant(np.array([-1]))

    def put(first: str, second: str) -> str:
        if not pairs:
            return write.node(f"Concat <axis = 3> ({first}, {second})")
        columns = [write.node(f"Unsqueeze ({part}, {last})") for part in (first, second)]
        stacked = write.node(f"Concat <axis = -1> ({', '.join(columns)})")
        return write.node(f"Reshape ({stacked}, {write.constant(np.array(dims))})")

    if join:
        real = write.node(
            f"Sub ({write.either_way('Mul', a, cos)}, {write.either_way('Mul', b, sin)})"
        )
        other = write.either_way("Mul", b, cos), write.either_way("Mul", a, sin)
        y = put(real, write.either_way("Add", *other))
    else:
        turned = put(write.node(f"Neg ({b})"), a)
        products = write.either_way("Mul", "x", cos), write.either_way("Mul", turned, sin)
        y = write.either_way("Add", *products)
    return write.module({"x": dims}, y)


def cut_halves(write: Writer, half: int) -> list[str]:
    if write.draw(st.booleans()):
        write.lines.append("low, high = Split <axis = -1, num_outputs = 2> (x)")
        return ["low", "high"]
    zero, middle, end, last = (write.constant(np.array([n])) for n in (0, half, 1 << 60, 3))
    ranges = [f"{zero}, {middle}", f"{middle}, {end}"]
    return [write.node(f"Slice (x, {part}, {last})") for part in ranges]


def cut_pairs(write: Writer, dims: Sequence[int]) -> list[str]:
    shape = write.constant(np.array([*dims[:3], dims[3] // 2, 2]))
    pairs = write.node(f"Reshape (x, {shape})")
    if write.draw(st.booleans()):
        places = [write.constant(np.array(n)) for n in (0, 1)]
        return [write.node(f"Gather <axis = 4> ({pairs}, {place})") for place in places]
    zero, one, two, last = (write.constant(np.array([n])) for n in (0, 1, 2, -1))
    cuts = [f"Slice ({pairs}, {part}, {last})" for part in (f"{zero}, {one}", f"{one}, {two}")]
    return [write.node(f"Squeeze ({write.node(cut)}, {last})") for cut in cuts]


@EXAMPLES
@given(rotations())
def test_rotary(module: Module) -> None:
    operators = [node.op_type for node in fused(module, FuseRotary()).nodes()]
    assert operators.count("RotaryEmbedding") == 1
    assert not {"Neg", "Mul", "Concat"} & set(operators)


def test_a_part_of_a_part_turns_no_more_than_it_did() -> None:
    module = Module.parse("""<ir_version: 10, opset_import: ["" : 23]>
g (float[1,2,3,8] x, float[1,3,1] c, float[1,3,1] s) => (float[1,2,3,8] y)
<int64[2] sizes = {4, 4}>
{
  a, b = Split <axis = -1> (x, sizes)
  t = RotaryEmbedding <rotary_embedding_dim = 2> (a, c, s)
  y = Concat <axis = -1> (t, b)
}""")
    (node,) = fused(module, FuseRotary()).graph
    assert node.attributes["rotary_embedding_dim"].as_int() == 2


def test_a_cache_stays_outside_of_a_window() -> None:
    module = Module.parse("""<ir_version: 13, opset_import: ["" : 25]>
g (float[1,2,3,4] q, float[1,2,2,4] pk, float[1,2,3,4] k, float[1,2,2,4] pv, float[1,2,3,4] v)
=> (float[1,2,3,4] y, float[1,2,5,4] keys, float[1,2,5,4] values)
{
  keys = Concat <axis = 2> (pk, k)
  values = Concat <axis = 2> (pv, v)
  y = Attention <left_window_size = 1> (q, keys, values)
}""")
    infer_shapes(module.model)
    PassManager([FuseAttention()]).run(module)
    assert [node.op_type for node in module.graph] == ["Concat", "Concat", "Attention"]
