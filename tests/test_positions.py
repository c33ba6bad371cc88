"""Whatever form is found for a value, the value has it at every index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigcc.analysis.positions import Affine, Choice, Form, Positions, is_causal
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.runtime import OrtSession

Draw = st.DrawFn
ROWS, COLUMNS = 3, 4
COMPARE = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]


def as_array(form: Form, shape: tuple[int, ...]) -> np.ndarray:
    affine = form if isinstance(form, Affine) else form.test
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    values = affine.start + sum(s * a for s, a in zip(affine.slopes, axes, strict=True))
    values = np.broadcast_to(values, shape)
    return np.where(values >= 0, form.then, form.otherwise) if isinstance(form, Choice) else values


class Writer:
    """Writes integers and booleans that broadcast to [ROWS, COLUMNS], one a line."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.numbers = ["one", "two"]
        self.flags: list[str] = []
        rows = self.add("Range (zero, rows, one)", [])
        self.rows = self.add(f"Unsqueeze ({rows}, last)", self.numbers)
        self.columns = self.add("Range (zero, columns, one)", self.numbers)

    def add(self, call: str, into: list[str]) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        into.append(name)
        return name

    def number(self) -> str:
        return self.draw(st.sampled_from(self.numbers))

    def flag(self) -> str:
        return self.draw(st.sampled_from(self.flags))

    def arithmetic(self) -> None:
        operator = self.draw(st.sampled_from(["Add", "Sub", "Mul"]))
        self.add(f"{operator} ({self.number()}, {self.number()})", self.numbers)

    def expand(self) -> None:
        self.add(f"Expand ({self.number()}, whole)", self.numbers)

    def shift(self) -> None:
        """The columns behind another number, cut to their length again."""
        before = self.draw(st.sampled_from(["minus", "three"]))
        longer = self.add(f"Concat <axis = -1> ({before}, {self.columns})", [])
        start, end = self.draw(st.sampled_from([("first", "fourth"), ("second", "end")]))
        self.add(f"Slice ({longer}, {start}, {end}, last)", self.numbers)

    def look_up(self) -> None:
        index = self.draw(st.sampled_from(["one", self.rows, self.columns]))
        self.add(f"Gather <axis = 0> ({self.columns}, {index})", self.numbers)

    def compare(self) -> None:
        operator = self.draw(st.sampled_from(COMPARE))
        self.add(f"{operator} ({self.number()}, {self.number()})", self.flags)

    def logic(self) -> None:
        if self.flags:
            operator = self.draw(st.sampled_from(["And", "Or"]))
            self.add(f"{operator} ({self.flag()}, {self.flag()})", self.flags)
            self.add(f"Not ({self.flag()})", self.flags)
            self.add(f"Where ({self.flag()}, {self.number()}, {self.number()})", self.numbers)
            self.add(f"Cast <to = 7> ({self.flag()})", self.numbers)


STEPS = [
    getattr(Writer, s) for s in ("arithmetic", "expand", "shift", "look_up", "compare", "logic")
]


@st.composite
def positional_modules(draw: Draw) -> Module:
    write = Writer(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=8)):
        step(write)
    made = [name for name in [*write.numbers, *write.flags] if name.startswith("v")]
    return Module.parse(
        '<ir_version: 11, opset_import: ["" : 23]>\n'
        f"g (float x) => ({', '.join(made)})\n"
        "<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] last = {-1}, "
        "int64[1] minus = {-1}, int64[1] three = {3}, int64[1] first = {0}, int64[1] second = {1}, "
        "int64[1] fourth = {4}, int64[1] end = {5}, "
        f"int64 rows = {{{ROWS}}}, int64 columns = {{{COLUMNS}}}, "
        f"int64[2] whole = {{{ROWS}, {COLUMNS}}}>\n{{\n" + "\n".join(write.lines) + "\n}"
    )


@settings(max_examples=60, deadline=None)
@given(positional_modules())
def test_forms_are_true(module: Module) -> None:
    infer_shapes(module.model)
    values = OrtSession(module, optimise=False).run({"x": np.array(0, np.float32)})
    positions = Positions()
    for output in module.outputs:
        form, array = positions.of(output), values[output.name or ""]
        if form is not None:
            np.testing.assert_array_equal(as_array(form, array.shape), array, str(output))


def mask(text: str, more: str = "") -> bool:
    module = Module.parse(
        '<ir_version: 11, opset_import: ["" : 23]>\n'
        f"g (float[b,s] x) => (mask)\n"
        f"<int64[1] last = {{-1}}, int64 zero = {{0}}, int64 one = {{1}}{more}>\n"
        "{\n shape = Shape <start = 1, end = 2> (x)\n size = Squeeze (shape)\n"
        f" at = Range (zero, size, one)\n rows = Unsqueeze (at, last)\n{text}\n}}"
    )
    infer_shapes(module.model)
    return is_causal(module.outputs[0])


@pytest.mark.parametrize(
    ("text", "causal"),
    [
        ("mask = LessOrEqual (at, rows)", True),
        ("mask = GreaterOrEqual (rows, at)", True),
        ("b = Greater (at, rows)\n mask = Not (b)", True),
        ("mask = Less (at, rows)", False),
        ("mask = LessOrEqual (rows, at)", False),
        ("mask = GreaterOrEqual (at, rows)", False),
    ],
)
def test_causal_comparisons(text: str, causal: bool) -> None:
    assert mask(text) == causal


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [-1, 0, 1])
def test_causal_triangles(upper: int, diagonal: int) -> None:
    """Trilu of ones, or of -inf above the diagonal."""
    kept = (
        "square = Concat <axis = 0> (shape, shape)\n"
        "full = ConstantOfShape <value = float[1] {%s}> (square)\n"
        f"t = Trilu <upper = {upper}> (full, k)\n"
    )
    more = f", int64 k = {{{diagonal}}}"
    ones = kept % 1 + "mask = Cast <to = 9> (t)"
    assert mask(ones, more) == (upper == 0 and diagonal == 0)
    hidden = kept % "-inf" + "mask = Identity (t)"
    assert mask(hidden, more) == (upper == 1 and diagonal == 1)
