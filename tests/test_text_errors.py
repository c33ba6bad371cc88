"""Errors of the text form: they point at the place, and at what may be meant."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from aigcc.errors import ModelError
from aigcc.ir.text.parser import parse_model
from aigcc.ir.text.printer import print_model, read_text

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
ESCAPE = (
    HEADER
    + """escape (float[2,4] x, float[4,2] w, float[2] b) => (float[2,2] y, float[2,2] m)
{
  m = MatMul (x, w)  # float[2,2]
  y = Add (m, b)     # float[2,2]
}
"""
)


def parse_body(body: str) -> ir.Model:
    return parse_model(f"{HEADER}g (float[2] x) => (y)\n{{\n{body}\n}}\n")


def _error(text: str) -> str:
    with pytest.raises(ModelError) as raised:
        parse_model(text, filename="m.onnxtxt")
    return str(raised.value)


def test_an_error_shows_the_place_and_what_may_be_meant() -> None:
    assert _error(ESCAPE.replace("float[4,2] w", "flaot[4,2] w")) == (
        "there is no type 'flaot'\n"
        "  at: m.onnxtxt:2:23\n"
        "    escape (float[2,4] x, flaot[4,2] w, float[2] b) => (float[2,2] y, float[2,2] m)\n"
        "                          ^\n"
        "  hint: did you mean 'float'?"
    )


@pytest.mark.parametrize(
    ("old", "new", "what", "line"),
    [
        ("(m, b)", "(m, bb)", "nothing defines 'bb'", 5),
        ("y = Add", "m = Add", "'m' is defined twice", 5),
        ("=> (float[2,2] y,", "=> (float[2,2] z,", "nothing defines 'z'", 2),
        ("(x, w)  # float[2,2]", "(x, w)  # flaot[2,2]", "there is no type 'flaot'", 4),
        ("(x, w)  # float[2,2]", "(x, w)  # float[2,3]", "'m' is float[2,2] here and", 2),
        ("(x, w)  # float[2,2]", "(x, w)  # float, float", "2 types here and 1 outputs", 4),
        ("(x, w)  # float[2,2]", "(x, w)  # float[2,2] by me", "expected ';'", 4),
        ("(x, w)  # float[2,2]", "(x, w)  # by: a; by: b", "say 'by' twice", 4),
        ("{\n", "{  # float[2]\n", "only the facts of a node have types", 3),
        ("(x, w)  # float[2,2]", "(x, w)  # @00000000", "has no @00000000", 4),
        ("(x, w)  # float[2,2]", '(x, w)  # {"a": 1}', "expected a string", 4),
        ("(x, w)  # float[2,2]", '(x, w)  # {"a": ', "this JSON is wrong", 5),
        ("MatMul (x, w)", "MatMul <axis: imt = 1> (x, w)", "no attribute has the type 'imt'", 4),
        ("MatMul (x, w)", "MatMul <axis: int = 1.5> (x, w)", "is declared int and is float", 4),
        ("MatMul (x, w)", "MatMul <a = []> (x, w)", "an empty list needs a type", 4),
        ("MatMul (x, w)", 'MatMul <a = [1, "b"]> (x, w)', "different types", 4),
        ("MatMul (x, w)", "MatMul <a = 1, a = 2> (x, w)", "'a' is given twice", 4),
        ("MatMul (x, w)", "MatMul <a = int4[2] {18}> (x, w)", "takes 2 numbers, and here are 1", 4),
        ("MatMul (x, w)", "MatMul <a = int4[2] {18, 1}> (x, w)", "18 does not fit int4", 4),
        ("MatMul (x, w)", "MatMul <a = float[1] {1e39}> (x, w)", "1e39 does not fit float32", 4),
        ("MatMul (x, w)", "MatMul <a = int8[1] {0.5}> (x, w)", "'0.5' is not a whole number", 4),
        ("MatMul (x, w)", "MatMul <a = float[N] {1}> (x, w)", "needs a type and a size", 4),
        ("MatMul (x, w)", "MatMul [x, w]", "expected '('", 4),
        ("MatMul (x, w)", 'MatMul ("x, w)', "this string does not end", 4),
        ("MatMul (x, w)", "MatMul (x; w)", "expected ')'", 4),
        ("MatMul (x, w)", "MatMul (x, w) $", "'$' means nothing here", 4),
        ("ir_version: 10", "ir_versoin: 10", "a header has no 'ir_versoin'", 1),
        ("ir_version: 10, ", "", "does not say ir_version", 1),
        ("ir_version: 10", f"ir_version: {10**30}", "does not fit 64 bits", 1),
        ('["" : 21]', '["" : 21, "" : 20]', "imported twice", 1),
        ("}\n", "", "this body is not closed", 3),
        ("}\n", "}\nf (x) => (y) { y = Neg (z) }", "nothing defines 'z'", 7),
        ("float[2] b", "map(int64, float) b", "map types are not supported", 2),
        ("float[2] b", "seq(" * 40 + "float" + ")" * 40 + " b", "nested deeper", 2),
    ],
)  # fmt: skip
def test_errors(old: str, new: str, what: str, line: int) -> None:
    message = _error(ESCAPE.replace(old, new, 1))
    assert what in message
    assert f"m.onnxtxt:{line}:" in message


def test_text_that_would_read_back_differently_is_not_printed() -> None:
    model = parse_body("  a = Neg (x)\n  y = Neg (a)")
    model.graph[0].outputs[0].name = "x"
    with pytest.raises(ModelError, match="two values are called 'x'"):
        print_model(model)
    model = parse_body("  y = If (x) <then_branch = t () => (z) { a = Neg (x)  z = Neg (x) }>")
    inner = model.graph[0].attributes["then_branch"].as_graph()
    inner[0].outputs[0].name = "x"
    with pytest.raises(ModelError, match="uses the hidden one"):
        print_model(model)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "m.onnxtxt").write_bytes(b"\x08\x0a\xff\xfe")
    with pytest.raises(ModelError, match="this is not text"):
        read_text(tmp_path / "m.onnxtxt")
    with pytest.raises(ModelError, match="cannot be read"):
        read_text(tmp_path / "missing.onnxtxt")
    (tmp_path / "bom.onnxtxt").write_text("\ufeff" + ESCAPE.replace("\n", "\r\n"), "utf-8")
    assert print_model(read_text(tmp_path / "bom.onnxtxt")) == print_model(parse_model(ESCAPE))
