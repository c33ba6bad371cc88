"""What passes do to NaN, infinities, hidden rows and empty dims is seen without any samples."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

import aigcc
from aigcc import Module, Rule, RulePass, cli
from aigcc.analysis.steering import steering_inputs
from aigcc.edge_check import EdgeCheck
from aigcc.edge_parts import EdgeJudge
from aigcc.errors import CompileError
from aigcc.passes import PASSES
from aigcc.pipeline.parts import Parts
from aigcc.pipeline.pattern import Apply, PatternBuilder
from aigcc.pipeline.rules import Builder, Match
from aigcc.samples import load_samples
from aigcc.synthetic import synthetic_feeds

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\n'


class DropGuard(Rule):
    """Where(IsNaN(s), c, s) -> s"""

    name = "drop-guard"

    def pattern(self, op: PatternBuilder, s: Any, c: Any) -> Apply:
        return op.Where(op.IsNaN(s), c, s)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return match.s


class HideRows(Rule):
    """Softmax(t) -> Where(t > -inf, Exp(LogSoftmax(t)), 0), which is 0 where it was NaN"""

    name = "hide-rows"

    def pattern(self, op: PatternBuilder, t: Any) -> Apply:
        return op.Softmax(t)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        seen = op.Greater(match.t, np.array(-np.inf, np.float32))
        return op.Where(seen, op.Exp(op.LogSoftmax(match.t, axis=-1)), np.array(0, np.float32))


class DivideLast(Rule):
    """Mul(Div(x, a), b) -> Div(Mul(x, b), a)"""

    name = "divide-last"

    def pattern(self, op: PatternBuilder, x: Any, a: Any, b: Any) -> Apply:
        return op.Mul(op.Div(x, a), b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return op.Div(op.Mul(match.x, match.b), match.a)


class FlattenByZero(Rule):
    """Flatten(x) -> Reshape(x, [0, -1]), which has no answer where the first dim is 0"""

    name = "flatten-by-zero"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Flatten(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return op.Reshape(match.x, [0, -1])


class DropSecond(Rule):
    """Op(x, y) -> x"""

    name = "drop-second"

    def pattern(self, op: PatternBuilder, x: Any, y: Any) -> Apply:
        return op.Min(x, y, _or=("And", "BitwiseAnd"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return match.x


class DropChoice(Rule):
    """Where(keep, x, c) -> x"""

    name = "drop-choice"

    def pattern(self, op: PatternBuilder, keep: Any, x: Any, c: Any) -> Apply:
        return op.Where(keep, x, c)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return match.x


class Nothing(Rule):
    """Sub(x, x) -> Mul(0, Erf(x)), which is 0 for an infinity"""

    name = "nothing"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Sub(x, x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return op.Mul(op.Erf(match.x), np.array(0, np.float32))


class Negated(Rule):
    """Sub(0, x) -> Neg(x), which has another zero"""

    name = "negated"

    def pattern(self, op: PatternBuilder, z: Any, x: Any) -> Apply:
        return op.Sub(z, x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return op.Neg(match.x)


def planted(rule: Rule) -> RulePass:
    """A pass with a rule that is wrong at an edge alone."""

    @dataclasses.dataclass(frozen=True)
    class Planted(RulePass):
        """Does what the rule says."""

        name: ClassVar[str] = "planted"
        rules: ClassVar[tuple[Rule, ...]] = (rule,)

    return Planted()


FAULTS: dict[str, tuple[Rule, str, str]] = {
    "a NaN guard goes": (
        DropGuard(),
        "g (float[2,3] x, float[2,3] mask) => (float[2,3] y) <float zero = {0.0}> "
        "{ a = Add (x, mask)  s = Softmax (a)  n = IsNaN (s)  y = Where (n, zero, s) }",
        "a mask that hides a row with -inf",
    ),
    "a NaN guard goes behind a mask of another name": (
        DropGuard(),
        "g (float[2,3] x, float[2,3] u) => (float[2,3] y) <float zero = {0.0}> "
        "{ a = Add (x, u)  s = Softmax (a)  n = IsNaN (s)  y = Where (n, zero, s) }",
        "a mask that hides a row with -inf",
    ),
    "NaN becomes a number": (
        HideRows(),
        "h (float[2,3] q, float[2,3] mask) => (float[2,3] y) { a = Add (q, mask)  "
        "y = Softmax (a) }",
        "a mask that hides a row with -inf",
    ),
    "large numbers overflow": (
        DivideLast(),
        "f (float[2,3] x) => (float[2,3] y) <float a = {1e20}, float b = {1e20}> "
        "{ u = Div (x, a)  y = Mul (u, b) }",
        "huge numbers",
    ),
    "no rows": (
        FlattenByZero(),
        "r (float[N,3] x) => (float[N,3] y) { u = Flatten (x)  y = Neg (u) }",
        "N = 0",
    ),
    "a bound goes": (
        DropSecond(),
        "b (float[2,3] x) => (float[2,3] y) <float top = {65504}> "
        "{ u = Min (x, top)  y = Neg (u) }",
        "large numbers",
    ),
    "bits go": (
        DropSecond(),
        "b (int32[2,3] x) => (int32[2,3] y) <int32 low = {255}> "
        "{ u = BitwiseAnd (x, low)  y = Neg (u) }",
        "the highest integers",
    ),
    "what is not kept": (
        DropChoice(),
        "k (float[2,3] x, bool[2,3] keep) => (float[2,3] y) <float zero = {0.0}> "
        "{ u = Where (keep, x, zero)  y = Neg (u) }",
        "a mask that hides a row",
    ),
    "infinity less itself": (
        Nothing(),
        "n (float[2,3] x) => (float[2,3] y) { u = Sub (x, x)  y = Neg (u) }",
        "an infinity",
    ),
    "the other zero": (
        Negated(),
        "z (float[2,3] x) => (float[2,3] y) <float zero = {0.0}> "
        "{ u = Sub (zero, x)  y = Reciprocal (u) }",
        "zeros",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_an_edge_is_refused_without_samples(name: str, tmp_path: Path) -> None:
    rule, text, edge = FAULTS[name]
    passes = [planted(rule)]
    with pytest.raises(CompileError) as caught:
        aigcc.build(Module.parse(HEAD + text), "mobile", tmp_path / "out", passes=passes)
    assert caught.value.what.startswith(f"with {edge} "), caught.value
    assert f"rewrite 1 of 1, [planted/{rule.name}]" in str(caught.value.at)
    assert not (tmp_path / "out").exists()


def test_what_checks_the_structure_alone_does_not_look_at_edges(tmp_path: Path) -> None:
    rule, text, _ = FAULTS["bits go"]
    made = aigcc.build(
        Module.parse(HEAD + text),
        "mobile",
        tmp_path / "out",
        passes=[planted(rule)],
        verify="structure",
    )
    assert made.artifact.manifest["edges"] is None


@pytest.mark.parametrize("name", FAULTS)
def test_what_canonicalize_and_fuse_make_is_right_at_edges(name: str, tmp_path: Path) -> None:
    _, text, edge = FAULTS[name]
    module = Module.parse(HEAD + text)
    check = EdgeCheck(module, next(synthetic_feeds(module)), 1e-4)
    after = module.clone()
    aigcc.PassManager(aigcc.parse("canonicalize,fuse")).run(after)
    report = check.compare(after)
    assert not report.faults
    assert edge in report.same
    assert not report.left_out


GUARD = HEAD + FAULTS["a NaN guard goes"][1]


def test_opt_refuses_and_bisect_names_the_rewrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aigcc.passes.PASSES", PASSES | {"planted": type(planted(DropGuard()))})
    Path("g.onnxtxt").write_text(GUARD)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aigcc", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, _, error = run("opt", "g.onnxtxt", "-p", "planted", "-o", "out.onnx")
    assert code == 1
    assert "with a mask that hides a row with -inf output 'y' is wrong: 3 of 6 values" in error
    assert "rewrite 1 of 1, [planted/drop-guard]" in error
    assert "aigcc bisect g.onnxtxt -p planted --tolerance 0.0001" in error
    assert not Path("out.onnx").exists()
    code, shown, _ = run("bisect", "g.onnxtxt", "-p", "planted", "--tolerance", "0.0001")
    assert code == 0
    assert "rewrite 1 of 1 is the first wrong one: [planted/drop-guard]" in shown
    code, shown, _ = run(
        "opt", "g.onnxtxt", "-p", "planted", "-o", "out.onnx", "--verify=structure"
    )
    assert code == 0
    assert "edge inputs" not in shown
    code, shown, _ = run("opt", "g.onnxtxt", "-p", "canonicalize,fuse", "-o", "same.onnx")
    assert code == 0


def test_passes_behind_one_that_rounds_are_judged_on_their_own() -> None:
    weight = "<float[3,3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}, "
    module = Module.parse(
        GUARD.replace("<float", f"{weight}float", 1).replace(
            "{ a = Add (x,", "{ r = MatMul (x, w)  a = Add (r,"
        )
    )
    parts, made = Parts(), module.clone()
    passes = [*aigcc.parse("canonicalize,to-fp16(measure=0)"), planted(DropGuard())]
    aigcc.PassManager(passes, observers=[parts]).run(made)
    (part,) = parts.found(made)
    assert [str(each) for each in part.passes] == ["planted"]
    judge = EdgeJudge(load_samples(None, module), 1e-2)
    with pytest.raises(CompileError, match="a mask that hides a row with -inf"):
        judge.refuse([part], "nothing")


def test_given_samples_are_what_edges_are_made_of(tmp_path: Path) -> None:
    text = HEAD + (
        "t (int64[B,2] ids, float[B,1] x) => (float[B,2] y) <float[3,1] table = {1, 2, 3}> "
        "{ e = Gather (table, ids)  s = Squeeze (e, m)  u = Add (s, x)  w = Mul (u, one) "
        " y = Neg (w) }"
    ).replace("table = {1, 2, 3}", "table = {1, 2, 3}, int64[1] m = {-1}, float one = {1}")
    feeds = {"ids": np.array([[2, 0]]), "x": np.ones((1, 1), np.float32)}
    made = aigcc.build(Module.parse(text), "mobile", tmp_path / "out", samples=[feeds])
    facts = made.artifact.manifest["edges"]
    assert "a NaN" in facts["same"]
    assert "B = 0" in facts["same"]
    assert not any("integers" in name for kind in facts for name in facts[kind])


@pytest.mark.parametrize(
    ("text", "steering"),
    [
        ("r (float s, float[2] x) => (y) <float one = {1}> { a = Range (x0, s, one) "
         " y = Add (a, x0) }".replace("x0", "one"), {"s"}),
        ("t (float[2] x, int64[1] n) => (y) { y = Expand (x, n) }", {"n"}),
        ("t (float[2] x, int64[1] n) => (y) { c = Cast <to = 7> (x)  y = Div (c, n) }", {"x", "n"}),
        ("d (float[2] x, float[2] z) => (y) { y = Div (x, z) }", set()),
        ("s (float[2] x, float[2,2] z) => (y) { n = Shape (x)  y = ConstantOfShape (n) }", set()),
        ("a (float[2] x, float[4] t) => (y) { i = ArgMax (x)  y = Gather (t, i) }", set()),
        ("l (float x, float z) => (y) <int64 n = {9}, bool c = {1}> { y = Loop (n, c, x) <body = b "
         "(int64 i, bool k, float f) => (bool k2, float f2) { f2 = Mul (f, f)  "
         "k2 = Less (f2, z) }> }", {"x", "z"}),
    ],
)  # fmt: skip
def test_inputs_that_decide_sizes_places_or_rounds_steer(text: str, steering: set[str]) -> None:
    assert steering_inputs(Module.parse(HEAD + text)) == steering


def test_a_slow_model_is_left_out_and_that_is_said() -> None:
    module = Module.parse(GUARD)
    parts, made = Parts(), module.clone()
    aigcc.PassManager([planted(DropGuard())], observers=[parts]).run(made)
    judge = EdgeJudge(load_samples(None, module), 1e-4, seconds=5.0)
    facts = judge.refuse(parts.found(made), "nothing")
    assert facts is not None
    assert facts["left_out"] == "a run takes 5.00 s"
    assert facts["same"] == []
