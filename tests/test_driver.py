"""Building from Python: what comes out, what is refused, and what is said about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import aigcc
from aigcc.artifact import Artifact
from aigcc.errors import CompileError, ModelError, PassError, SampleError, TargetError
from aigcc.passes import PASSES
from aigcc.passes.assign_precision import AssignPrecision
from aigcc.pipeline.bisect import find_first_wrong
from aigcc.samples import load_samples
from aigcc.target import Lowered, Session
from aigcc.targets.mobile import Mobile

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
TINY = HEAD + "tiny (float[2] x) => (float[2] y) { [a] h = Identity (x)  [b] y = Relu (h) }"


@dataclasses.dataclass(frozen=True)
class Change(aigcc.Pass):
    """Does whatever a test asks for to every Relu."""

    name: ClassVar[str] = "change"
    act: Callable[[aigcc.Module, ir.Node], object]
    counted: bool = True

    def run(self, module: aigcc.Module, ctx: aigcc.Context) -> None:
        for node in list(module.nodes()):
            if node.op_type == "Relu" and (not self.counted or ctx.rewrite(node, "change it")):
                self.act(module, node)


def become(op_type: str) -> Callable[[aigcc.Module, ir.Node], None]:
    def act(module: aigcc.Module, node: ir.Node) -> None:
        node.op_type = op_type

    return act


negate = become("Neg")


def become_shape(module: aigcc.Module, node: ir.Node) -> None:
    node.op_type = "Shape"
    node.outputs[0].dtype = ir.DataType.INT64


def fail(module: aigcc.Module, node: ir.Node) -> None:
    raise KeyError("no such key")


@dataclasses.dataclass(frozen=True)
class Quick(Mobile):
    """The mobile target, but that it does not ask ONNX Runtime which operators it will use."""

    def lower(self, module: aigcc.Module, out: Path, ctx: aigcc.Context) -> Lowered:
        module.save(out / "model.onnx")
        return Lowered(("model.onnx",), "model.onnx")


def build(tmp_path: Path, *passes: aigcc.Pass, text: str = TINY, **options: Any) -> aigcc.Build:
    made = [*aigcc.parse("simplify"), *passes]
    return aigcc.build(aigcc.Module.parse(text), Quick(), tmp_path / "out", passes=made, **options)


def test_a_build_returns_what_it_did(tmp_path: Path) -> None:
    made = build(tmp_path)
    assert [node.op_type for node in made.original.nodes()] == ["Identity", "Relu"]
    assert [node.op_type for node in made.module.nodes()] == ["Relu"]
    assert [(run.name, run.rewrites) for run in made.runs] == [("simplify", 1)]
    facts = made.artifact.manifest
    assert facts["nodes"] == {"before": 2, "after": 1}
    assert facts["pipeline"] == "simplify"
    assert facts["inputs"] == [{"name": "x", "dtype": "float", "shape": [2]}]
    (row,) = facts["quality"]["outputs"]
    assert (row["name"], row["relative"], row["not_finite"]) == ("y", 0, 0)
    assert facts["quality"]["synthetic"]
    assert Artifact.load(tmp_path / "out").manifest == facts


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    manifests = [build(tmp_path / name).artifact.manifest for name in "ab"]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    ("passes", "error", "what", "where"),
    [
        ([Change(negate)], TargetError, "output 'y' is wrong", "rewrite 2 of 2, [change] b"),
        ([Change(become("Log"))], TargetError, "values are NaN", "rewrite 2 of 2, [change] b"),
        ([Change(become_shape)], TargetError, "different shapes", "rewrite 2 of 2, [change] b"),
        (
            [Change(negate, counted=False)],
            TargetError,
            "output 'y' is wrong",
            "changes the module without asking ctx.rewrite",
        ),
        ([Change(become("Rely"))], PassError, "left a broken module", "pass 2 of 2, change"),
        (
            [Change(become("Rely"), counted=False)],
            PassError,
            "left a broken module",
            "pass 2 of 2, change",
        ),
        ([Change(fail)], PassError, "change raised KeyError: 'no such key'", f"{__file__}:"),
    ],
)
def test_a_pass_that_breaks_the_model_is_named(
    tmp_path: Path, passes: list[aigcc.Pass], error: type[CompileError], what: str, where: str
) -> None:
    with pytest.raises(error) as caught:
        build(tmp_path, *passes)
    assert what in caught.value.what
    assert where in (caught.value.at or "")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_build_says_how_to_find_out_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Negate(Change):
        name: ClassVar[str] = "negate"
        act: Callable[[aigcc.Module, ir.Node], object] = negate

    monkeypatch.setattr("aigcc.passes.PASSES", PASSES | {"negate": Negate})
    model = tmp_path / "my model.onnx"
    aigcc.Module.parse(TINY).save(model)
    with pytest.raises(TargetError) as caught:
        aigcc.build(model, Quick(), tmp_path / "out", passes="simplify,negate", roots=[tmp_path])
    command = f"aigcc bisect '{model}' -p simplify,negate -t mobile --tolerance 0.0001 --data-root"
    assert command in str(caught.value)


def test_a_fault_of_lowering_is_not_put_on_a_pass(tmp_path: Path) -> None:
    class Wrong:
        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            return {"y": feeds["x"] - 1}

    @dataclasses.dataclass(frozen=True)
    class Buggy(Quick):
        """Runs something else."""

        def session(self, folder: Path, entry: str, threads: int | None = None) -> Session:
            return Wrong()

    with pytest.raises(TargetError, match="lowering for mobile: the passes are right"):
        aigcc.build(aigcc.Module.parse(TINY), Buggy(), tmp_path / "out", passes="simplify")


def test_what_rounding_alone_makes_wrong_is_said_and_not_refused(tmp_path: Path) -> None:
    # ONNX Runtime turns the first half into the second: their difference is rounding.
    text = HEAD + (
        "gelu (float[64] x) => (float[64] y)"
        "<float root = {1.4142135}, float one = {1}, float half = {0.5}>"
        "{ u = Div (x, root)  e = Erf (u)  a = Add (e, one)  m = Mul (x, a)  g = Mul (m, half)"
        "  h = Gelu (x)  y = Sub (g, h) }"
    )
    (row,) = build(tmp_path, text=text).artifact.manifest["quality"]["outputs"]
    assert row["relative"] > 1e-4
    assert row["rounding"] > 1e-4


@pytest.mark.parametrize(("rounding", "is_refused"), [(0.02, True), (0.3, False)])
def test_an_output_that_follows_rounding_anywhere_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: float, is_refused: bool
) -> None:
    # as sines of sums that were quantised at run time do: 0.3 here is 1.5 in another program
    monkeypatch.setattr("aigcc.quality.rounding_of", lambda *_: rounding)
    if is_refused:
        with pytest.raises(TargetError, match="is wrong"):
            build(tmp_path, Change(negate))
        return
    (row,) = build(tmp_path, Change(negate)).artifact.manifest["quality"]["outputs"]
    assert row["rounding"] == rounding


@pytest.mark.parametrize("verify", ["off", "structure"])
def test_less_can_be_checked(tmp_path: Path, verify: Any) -> None:
    made = build(tmp_path, Change(negate), verify=verify)
    assert made.artifact.manifest["quality"] is None


def test_a_level_of_checks_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="verify cannot be 'none'"):
        build(tmp_path, verify="none")


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    made = build(tmp_path, text=TINY.replace("Relu", "Log"), samples=lambda: [two(-1, 1)])
    (row,) = made.artifact.manifest["quality"]["outputs"]
    assert (row["not_finite"], row["broken"], made.artifact.manifest["quality"]["count"]) == (
        1,
        0,
        1,
    )


def two(a: float, b: float) -> dict[str, np.ndarray]:
    return {"x": np.array([a, b], np.float32)}


def test_the_worst_sample_counts_and_is_bisected_on(tmp_path: Path) -> None:
    def samples() -> Iterator[dict[str, np.ndarray]]:
        yield two(1, 2)
        yield two(-1, 2)

    with pytest.raises(TargetError, match=r"rewrite 2 of 2, \[change\] b: change it"):
        build(tmp_path, Change(become("Identity")), samples=samples)


def test_a_bound_that_nobody_gave_is_not_called_a_budget(tmp_path: Path) -> None:
    quantise = aigcc.parse("insert-qdq")
    own = "breaks the sqnr>=10 that insert-qdq asks of itself, as no budget was given: sqnr is -6"
    with pytest.raises(TargetError, match=own) as error:
        build(tmp_path, *quantise, Change(negate), samples=[two(1, 2)])
    assert "--budget" in str(error.value.hint)
    given = [AssignPrecision(budget="sqnr>=40"), *quantise, Change(negate)]
    with pytest.raises(TargetError, match="breaks the budget sqnr>=40: sqnr is -6"):
        build(tmp_path, *given, samples=[two(1, 2)])


EMPTY = {"x": np.zeros((0, 4), np.float32)}


def test_outputs_without_a_number_prove_nothing(tmp_path: Path) -> None:
    text = HEAD + "rows (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
    for samples in ([EMPTY], [EMPTY, EMPTY]):
        with pytest.raises(SampleError, match="all outputs of the model are empty"):
            build(tmp_path, text=text, samples=samples)
    module = aigcc.Module.parse(text)
    with pytest.raises(SampleError, match="all outputs of the model are empty"):
        find_first_wrong(module, [], load_samples([EMPTY], module), tolerance=1e-4)
    assert not list(tmp_path.iterdir())


def test_an_empty_sample_hides_no_other(tmp_path: Path) -> None:
    text = HEAD + "rows (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
    samples = [EMPTY, {"x": np.full((1, 4), 2, np.float32)}]
    with pytest.raises(TargetError, match="output 'y' is wrong: its relative error is 2"):
        build(tmp_path, Change(negate), text=text, samples=samples)
    made = build(tmp_path, text=text, samples=samples)
    assert made.artifact.manifest["quality"]["outputs"][0]["elements"] == 4


def test_the_original_stays_as_it_was(tmp_path: Path) -> None:
    module = aigcc.Module.parse(TINY)
    before = module.text()
    with pytest.raises(TargetError):
        aigcc.build(module, Quick(), tmp_path / "out", passes=[Change(become_shape)])
    assert module.text() == before


def test_overwriting_replaces_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "out" / "notes.txt").write_text("years of work")
    aigcc.build(
        aigcc.Module.parse(TINY),
        "mobile(format=ort)",
        tmp_path / "out",
        passes="simplify",
        overwrite=True,
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"notes.txt", "model.ort"} <= names
    assert "model.onnx" not in names


def test_a_failure_keeps_the_artifact_that_was_there(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(TargetError):
        build(tmp_path, Change(negate), overwrite=True)
    Artifact.load(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_given_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    build(tmp_path)
    assert (tmp_path / "out").is_symlink()
    assert Artifact.load(tmp_path / "real").entry == "model.onnx"


def test_what_cannot_be_lowered_is_listed(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "my" : 1]>\n' + (
        "tiny (float[2] x) => (float[2] y) { [first] h = my.Odd (x)  [second] y = my.Odder (h) }"
    )
    with pytest.raises(TargetError, match="mobile cannot run this model: 2 problems") as caught:
        build(tmp_path, text=text)
    assert "first: no kernel for my::Odd\n" in (caught.value.at or "")


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TINY)
    for node in proto.graph.node:
        node.name = "twin"
    (tmp_path / "twins.onnx").write_bytes(proto.SerializeToString())
    module = aigcc.load(tmp_path / "twins.onnx")
    assert [node.name for node in module.nodes()] == ["twin", "twin_2"]
    aigcc.build(tmp_path / "twins.onnx", Quick(), tmp_path / "out", passes="")


def test_an_illegal_module_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    module = aigcc.Module.parse(TINY)
    next(module.nodes()).op_type = "Rely"
    with pytest.raises(ModelError, match="ONNX has no op 'Rely'"):
        aigcc.build(module, "mobile", tmp_path / "out", verify="off")


def test_torch_code_is_named_where_it_fails(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return self.missing(x)

    with pytest.raises(ModelError, match="has no attribute 'missing'") as caught:
        aigcc.build(Net(), "mobile", tmp_path / "out", inputs=(torch.ones(2),))
    assert f"{__file__}:" in (caught.value.at or "")
    with pytest.raises(ModelError, match="this is no torch model: int"):
        aigcc.load(3)  # type: ignore[arg-type]


def first_wrong(*passes: aigcc.Pass) -> Any:
    module = aigcc.Module.parse(TINY)
    samples = load_samples(lambda: [two(-1, 1)], module)
    made = [*aigcc.parse("simplify"), *passes]
    return find_first_wrong(module, made, samples, tolerance=1e-4)


def test_bisection_finds_the_first_wrong_rewrite() -> None:
    found = first_wrong(Change(negate), Change(become("Abs")))
    assert (found.number, found.rewrites, found.remark.maker) == (2, 2, "change")
    assert (found.before, found.error, found.failure) == (0, 2, "")


def test_bisection_finds_what_no_longer_runs() -> None:
    found = first_wrong(Change(become("Rely")))
    assert (found.number, found.remark.maker) == (2, "change")
    assert "ONNX has no op 'Rely'" in found.failure


def test_bisection_finds_a_pass_that_does_not_count() -> None:
    found = first_wrong(Change(negate, counted=False), *aigcc.parse("eliminate-dead"))
    assert (found.number, found.remark.maker) == (0, "change")


def test_bisection_of_what_is_right_blames_nothing() -> None:
    assert first_wrong().remark is None
