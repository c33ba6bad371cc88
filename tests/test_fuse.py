"""Fusions on random graphs: whatever the constants, shapes and orders, the outputs stay."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.fuse import Fuse
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.synthetic import synthetic_feeds
from aigcc.target import Capabilities, Target
from aigcc.targets.mobile import Mobile

EXAMPLES = settings(max_examples=30, deadline=None)
Draw = st.DrawFn


@dataclasses.dataclass
class Writer:
    """Writes a graph with one input `x` as text, one node a line."""

    draw: Draw
    shape: tuple[int, ...]
    opset: int = 20
    lines: list[str] = dataclasses.field(default_factory=list)
    constants: list[str] = dataclasses.field(default_factory=list)
    last: str = "x"

    def node(self, call: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        self.last = name
        return name

    def binary(self, operator: str, a: str, b: str) -> str:
        """A node whose operands may be in either order, where that means the same."""
        if operator in ("Add", "Mul") and self.draw(st.booleans()):
            a, b = b, a
        return self.node(f"{operator} ({a}, {b})")

    def constant(self, shape: Sequence[int], numbers: Sequence[float] | None = None) -> str:
        """A float constant; by default of numbers from 1/2 to 2 and their negatives."""
        if numbers is None:
            random = np.random.default_rng(self.draw(st.integers(0, 999)))
            numbers = random.choice([-1, 1], shape) * random.uniform(0.5, 2.0, shape)
        return self._add("float", shape, [f"{x:.7g}" for x in np.ravel(np.asarray(numbers))])

    def integers(self, *numbers: int) -> str:
        return self._add("int64", (len(numbers),), map(str, numbers))

    def _add(self, dtype: str, shape: Sequence[int], items: object) -> str:
        name = f"c{len(self.constants)}"
        dims = f"[{','.join(map(str, shape))}]" if len(shape) else ""
        self.constants.append(f"{dtype}{dims} {name} = {{{', '.join(items)}}}")  # type: ignore[call-overload]
        return name

    def module(self) -> Module:
        dims = ",".join(map(str, self.shape))
        return Module.parse(
            f'<ir_version: 10, opset_import: ["" : {self.opset}]>\n'
            f"random (float[{dims}] x) => ({self.last})\n<{', '.join(self.constants)}>\n"
            "{\n" + "\n".join(self.lines) + "\n}"
        )


def fused(module: Module, tolerance: float = 1e-4, target: Target | None = None) -> list[str]:
    """Fuse a module, check its outputs against what they were, and return its operators."""
    infer_shapes(module.model)
    after = module.clone()
    PassManager([Fuse()]).run(after, Context(target=target))
    feeds = next(synthetic_feeds(module, count=1))
    (old,), (new,) = (
        OrtSession(each, optimise=False).run(feeds).values() for each in (module, after)
    )
    np.testing.assert_allclose(new, old, tolerance, tolerance * float(np.abs(old).max()))
    return [node.op_type for node in after.nodes()]


@st.composite
def norms(draw: Draw) -> tuple[Module, str]:
    """A layer or root-mean-square norm, spelled out in one of many ways."""
    shape = tuple(draw(st.lists(st.integers(2, 4), min_size=2, max_size=4)))
    write = Writer(draw, shape)
    first = draw(st.integers(1, len(shape) - 1))
    axes = [axis - draw(st.sampled_from([0, len(shape)])) for axis in range(first, len(shape))]
    last, eps = write.integers(*axes), write.constant((), [draw(st.sampled_from([1e-5, 0.1]))])
    kind = draw(st.sampled_from(["LayerNormalization", "RMSNormalization"]))
    d = "x" if kind[0] == "R" else write.node(f"Sub (x, {write.node(f'ReduceMean (x, {last})')})")
    square = write.node(
        f"Mul ({d}, {d})" if draw(st.booleans()) else f"Pow ({d}, {write.constant((), [2])})"
    )
    spread = write.binary("Add", write.node(f"ReduceMean ({square}, {last})"), eps)
    way = draw(st.sampled_from(["divide", "reciprocal", "over", "power"]))
    if way == "power":
        write.binary("Mul", d, write.node(f"Pow ({spread}, {write.constant((), [-0.5])})"))
    else:
        root = write.node(f"Sqrt ({spread})")
        one = write.constant((), [1])
        if way == "divide":
            write.node(f"Div ({d}, {root})")
        else:
            inverse = f"Reciprocal ({root})" if way == "reciprocal" else f"Div ({one}, {root})"
            write.binary("Mul", d, write.node(inverse))
    for operator in draw(st.sampled_from([[], ["Mul"], ["Add"], ["Mul", "Add"], ["Mul", "Mul"]])):
        dims = draw(st.sampled_from([shape[first:], shape[-1:], (1, *shape[first:])]))
        write.binary(operator, write.last, write.constant(dims))
    return write.module(), kind


@EXAMPLES
@given(norms())
def test_norms(case: tuple[Module, str]) -> None:
    module, kind = case
    operators = fused(module)
    assert kind in operators and "Sqrt" not in operators and "Pow" not in operators


@st.composite
def activations(draw: Draw) -> tuple[Module, str]:
    """An activation, spelled out in one of many ways."""
    write = Writer(draw, tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))))

    def number(value: float) -> str:
        return write.constant(draw(st.sampled_from([(), (1,)])), [value])

    def halved(curve: str) -> None:
        half, one_more = number(0.5), write.binary("Add", curve, number(1))
        first, second, third = draw(st.permutations(["x", one_more, half]))
        write.binary("Mul", write.binary("Mul", first, second), third)

    kind = draw(st.sampled_from(["Gelu", "tanh", "Swish", "HardSwish", "Mish"]))
    if kind == "Gelu":
        root = write.binary("Mul", "x", number(np.sqrt(0.5)))
        halved(write.node(f"Erf ({root})"))
    elif kind == "tanh":
        cube = write.node(f"Pow (x, {number(3)})")
        inside = write.binary("Add", "x", write.binary("Mul", cube, number(0.044715)))
        halved(write.node(f"Tanh ({write.binary('Mul', inside, number(np.sqrt(2 / np.pi)))})"))
    elif kind == "Swish":
        write.opset = 24  # to which no model is raised for it
        inside = draw(st.sampled_from(["x", write.binary("Mul", "x", number(1.702))]))
        write.binary("Mul", "x", write.node(f"Sigmoid ({inside})"))
    elif kind == "HardSwish":
        clip = f"Clip ({write.binary('Add', 'x', number(3))}, {write.constant((), [0])}"
        clipped = write.node(f"{clip}, {write.constant((), [6])})")
        if draw(st.booleans()):
            write.node(f"Div ({write.binary('Mul', 'x', clipped)}, {number(6)})")
        else:
            write.binary("Mul", "x", write.node(f"Div ({clipped}, {number(6)})"))
    else:
        write.binary("Mul", "x", write.node(f"Tanh ({write.node('Softplus (x)')})"))
    return write.module(), kind


@EXAMPLES
@given(activations())
def test_activations(case: tuple[Module, str]) -> None:
    module, kind = case
    assert fused(module) == ["Gelu" if kind == "tanh" else kind]


@st.composite
def chains(draw: Draw) -> Module:
    """Layers with scales, shifts, BatchNormalization and padding by constants between them."""
    channels, width = draw(st.sampled_from([2, 4])), 6
    write = Writer(draw, (2, channels, width, width))

    def layer(operator: str) -> None:
        group = draw(st.sampled_from([1, 2]))
        pads = draw(st.sampled_from([[0, 0, 0, 0], [1, 0, 0, 1]]))
        kernel = draw(st.sampled_from([(1, 1), (2, 2)]))
        weight = write.constant((channels, channels // group, *kernel))
        bias = f", {write.constant((channels,))}" if draw(st.booleans()) else ""
        attributes = f"<group = {group}, pads = {pads}>"
        write.node(f"{operator} {attributes} ({write.last}, {weight}{bias})")

    def arithmetic(operator: str) -> None:
        dims = st.sampled_from([(), (1,), (channels, 1, 1), (1, channels, 1, 1), (1, 1, 1)])
        write.binary(operator, write.last, write.constant(draw(dims)))

    kinds = ["Conv", "ConvTranspose", "Add", "Sub", "Mul", "Div", "norm", "pad", "Relu"]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=6)):
        if kind.startswith("Conv"):
            layer(kind)
        elif kind == "norm":
            numbers = [write.constant((channels,)) for _ in range(3)]
            variance = write.constant((channels,), np.linspace(0.5, 2, channels))
            parameters = ", ".join([*numbers, variance])
            write.node(f"BatchNormalization ({write.last}, {parameters})")
        elif kind == "pad":
            write.node(f"Pad ({write.last}, {write.integers(0, 0, 1, 0, 0, 0, 0, 1)})")
        elif kind == "Relu":
            write.node(f"Relu ({write.last})")
        else:
            arithmetic(kind)
    return write.module()


@EXAMPLES
@given(chains())
def test_affine_chains(module: Module) -> None:
    before = sum(1 for _ in module.nodes())
    assert len(fused(module)) <= before


@st.composite
def linears(draw: Draw) -> Module:
    """A Gemm or MatMul with reshapes, transposes, scales and shifts around it."""
    rows, inner, columns = (draw(st.integers(1, 4)) for _ in range(3))
    batch = tuple(draw(st.lists(st.integers(2, 3), max_size=2)))
    write = Writer(draw, (*batch, rows, inner))
    x = "x"
    if draw(st.booleans()):
        dims = draw(st.sampled_from([(), (inner,), (1, 1)]))
        x = write.binary(draw(st.sampled_from(["Mul", "Add"])), x, write.constant(dims))
    bias = write.constant(draw(st.sampled_from([(), (1,), (columns,), (1, columns)])))
    if draw(st.booleans()):
        weight = write.constant((inner, columns))
        if draw(st.booleans()):
            weight = write.node(f"Transpose ({write.constant((columns, inner))})")
        product = write.node(f"MatMul ({x}, {weight})")
        write.binary("Add", product, bias)
    else:
        flat = write.node(f"Reshape ({x}, {write.integers(-1, inner)})")
        transposed = draw(st.integers(0, 1))
        weight = write.constant((columns, inner) if transposed else (inner, columns))
        alpha, beta = (draw(st.sampled_from([0.5, 1.0])) for _ in range(2))
        attributes = f"<transB = {transposed}, alpha = {alpha}, beta = {beta}>"
        product = write.node(f"Gemm {attributes} ({flat}, {weight}, {bias})")
        shapes = [(*batch, rows, columns), (*reversed(batch), rows, columns)]
        write.node(f"Reshape ({product}, {write.integers(*draw(st.sampled_from(shapes)))})")
    if draw(st.booleans()):
        write.binary("Mul", write.last, write.constant(draw(st.sampled_from([(), (columns,)]))))
    return write.module()


@EXAMPLES
@given(linears())
def test_linears(module: Module) -> None:
    before = sum(1 for _ in module.nodes())
    # Without a Reshape less, MatMul and Add are two nodes for one Gemm.
    assert len(fused(module)) <= before + 1


@st.composite
def groups(draw: Draw) -> tuple[Module, bool]:
    """A group norm as torch exports it, or nearly so; and whether it is one."""
    channels, groups, size = 6, draw(st.sampled_from([1, 2, 3, 6])), draw(st.integers(1, 3))
    write = Writer(draw, (2, channels, size, 2))
    across = draw(st.integers(0, 9)) == 0
    grouped = write.integers(1, 2 * groups, -1) if across else write.integers(0, groups, -1)
    count = 2 * groups if across else groups
    numbers = draw(st.sampled_from([([1.0] * count, [0.0] * count), (None, None)]))
    s, b = (write.constant((count,), given) for given in numbers)
    flat = write.node(f"Reshape (x, {grouped})")
    norm = write.node(f"InstanceNormalization ({flat}, {s}, {b})")
    full = write.integers(2, channels, size, 2)
    write.node(f"Reshape ({norm}, {full if draw(st.booleans()) else write.node('Shape (x)')})")
    for operator in ("Mul", "Add"):
        dims = draw(st.sampled_from([(channels, 1, 1), (1, channels, 1, 1), (1,), (2,)]))
        write.binary(operator, write.last, write.constant(dims))
    return write.module(), not across


@EXAMPLES
@given(groups())
def test_group_norms(case: tuple[Module, bool]) -> None:
    module, is_one = case
    assert ("GroupNormalization" in fused(module, target=Mobile())) == is_one
    assert "GroupNormalization" not in fused(module)


GELU = """<ir_version: 8, opset_import: ["" : 13]>
gelu (float[2] x) => (float[2] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}>
{ d = Div (x, root)  e = Erf (d)  p = Add (e, one)  m = Mul (x, p)  y = Mul (m, half) }
"""


def test_the_opset_is_raised_for_what_needs_it() -> None:
    module = Module.parse(GELU)
    PassManager([Fuse()]).run(module)
    assert module.opset == 20 and [node.op_type for node in module.graph] == ["Gelu"]


def test_the_opset_can_be_kept() -> None:
    module, ctx = Module.parse(GELU), Context()
    PassManager([Fuse(opset=0)]).run(module, ctx)
    assert module.opset == 13 and len(module.graph) == 5
    assert any("needs opset 20" in str(remark) for remark in ctx.remarks)


def test_the_opset_is_raised_no_further_than_the_target_goes() -> None:
    module, ctx = Module.parse(GELU), Context(target=Old())
    PassManager([Fuse()]).run(module, ctx)
    assert module.opset == 13
    assert any("needs opset 20" in str(remark) for remark in ctx.remarks)


class Old(Mobile):
    """A target that knows no newer opset than 19."""

    @property
    def can(self) -> Capabilities:
        return dataclasses.replace(super().can, opset=(7, 19))


def test_families_can_be_left_out() -> None:
    for name in ("norm", "activation", "linear", "rotary", "attention", "affine"):
        module = Module.parse(GELU)
        PassManager([Fuse(**{name: False})]).run(module)
        assert (len(module.graph) == 1) == (name != "activation")


def test_fusing_twice_changes_nothing_more() -> None:
    module, ctx = Module.parse(GELU), Context()
    PassManager([Fuse()]).run(module)
    PassManager([Fuse()]).run(module, ctx)
    assert ctx.total == 0


def test_a_run_stops_anywhere_with_a_working_module() -> None:
    text = GELU.replace("y = Mul (m, half)", "h = Mul (m, half)  s = Sigmoid (h)  y = Mul (h, s)")
    before = Module.parse(text)
    feeds = next(synthetic_feeds(before, count=1))
    (old,) = OrtSession(before, optimise=False).run(feeds).values()
    for limit in itertools.count():
        module, ctx = Module.parse(text), Context(limit=limit)
        PassManager([Fuse()]).run(module, ctx)
        (new,) = OrtSession(module, optimise=False).run(feeds).values()
        np.testing.assert_allclose(new, old, 1e-5, 1e-6)
        if ctx.total < limit:
            break
    assert limit > 2
