"""What can be wrong with samples, weights, budgets and recipes, as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from aigcc import cli
from aigcc.analysis.grids import Grid
from aigcc.analysis.recipe import Recipe
from aigcc.errors import CompileError
from aigcc.exact import open_exact
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.verify import verify
from aigcc.passes.assign_precision import AssignPrecision
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.quant import trial
from aigcc.pipeline.context import Context
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets import make_target

Array = npt.NDArray[Any]

WIDTH = 32
LARGEST = np.finfo(np.float32).max


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def aigcc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Result]:
    """Runs a command line in this process; its words are separated by two spaces."""

    def run(words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["aigcc", *words.split("  ")])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


def net(opset: int = 21, edit: Callable[[Array], Array] | None = None) -> Module:
    """Two products, the second with a weight that `edit` makes."""
    shape = f"float[{WIDTH},{WIDTH}]"
    made = Module.parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]> net (float[N,{WIDTH}] x, {shape} v, '
        f"{shape} w) => (float[N,{WIDTH}] y) {{ [one] h = MatMul (x, v) [two] y = MatMul (h, w) }}"
    )
    random = np.random.default_rng(0)
    for value in list(made.graph.inputs)[1:]:
        array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        if edit is not None and value.name == "w":
            array = edit(array)
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        made.graph.register_initializer(value)
    return made


def x(rows: int = 4, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def with_number(number: float) -> Array:
    array = x()
    array[1, 2] = number
    return array


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with a model and samples in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.setattr(trial, "_SECONDS", 0.1)
    net().save("net.onnx")
    sample(good=x())
    return tmp_path


def sample(**named: Array) -> None:
    for name, array in named.items():
        np.savez(f"{name}.npz", x=array)


def file(name: str, data: bytes | str) -> None:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def cut() -> None:
    whole = Path("good.npz").read_bytes()
    file("s.npz", whole[: len(whole) // 2])


def flipped() -> None:
    whole = bytearray(Path("good.npz").read_bytes())
    whole[200] ^= 0xFF
    file("s.npz", bytes(whole))


# What is prepared, and what the message must say.
SAMPLES: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: np.savez("s.npz"), "the input 'x' is missing"),
    "extra": (lambda: np.savez("s.npz", x=x(), z=x()), "the model has no input 'z'"),
    "misspelt": (lambda: np.savez("s.npz", xx=x()), "did you mean 'x'?"),
    "nan": (lambda: sample(s=with_number(np.nan)), "NaN or infinite, the first at [1, 2]"),
    "infinite": (lambda: sample(s=with_number(-np.inf)), "NaN or infinite, the first at [1, 2]"),
    "shape": (lambda: sample(s=x()[:, :-1]), f"takes the shape [N, {WIDTH}], not [4, 31]"),
    "rank": (lambda: sample(s=x()[0]), "add the batch axis: array[np.newaxis]"),
    "wide": (lambda: sample(s=x().astype(np.float64)), "array.astype(np.float32)"),
    "text": (lambda: sample(s=np.array(["a"])), "takes float32, not <U1 at: s.npz again"),
    "objects": (lambda: sample(s=np.array([{}], object)), "Python objects, which are never opened"),
    "pickle": (lambda: file("s.npz", pickle.dumps({"x": x()})), "it is no .npz file"),
    "cut": (cut, "File is not a zip file"),
    "flipped": (flipped, "Bad CRC-32"),
    "empty": (lambda: file("s.npz", b""), "write it again with np.savez"),
    "folder": (lambda: Path("s.npz").mkdir(), "the folder 's.npz' is empty"),
}
COMMANDS = (
    "build  net.onnx  -t  mobile  -o  out  --budget  sqnr>=30  -s  s.npz",
    "build  net.onnx  -t  mobile  -o  out  --budget  sqnr>=30  -s  good.npz  --calibration  s.npz",
    "opt  net.onnx  -p  canonicalize,insert-qdq  -o  out.onnx  -s  s.npz",
    "sensitivity  net.onnx  -s  s.npz",
    "calibrate  net.onnx  -s  s.npz",
    "compare  net.onnx  net.onnx  -s  s.npz",
)


def refused(result: Result, folder: Path, before: list[str], message: str) -> None:
    assert (result.code, "Traceback" in result.err) == (1, False), result.err
    assert message in " ".join(result.err.split())
    assert "again: aigcc" in result.err
    assert entries(folder) == before


@pytest.mark.parametrize("case", SAMPLES)
def test_samples(aigcc: Callable[[str], Result], here: Path, case: str) -> None:
    prepare, message = SAMPLES[case]
    prepare()
    before = entries(here)
    for words in COMMANDS:
        refused(aigcc(words), here, before, message)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("", "the budget has no bounds"),
        (",", "the budget has no bounds"),
        ("sqnr>=nan", "'sqnr>=nan' is no bound"),
        ("sqnr>=inf", "'sqnr>=inf' is no bound"),
        ("sqnr>=1e999", "is no bound"),
        ("sqnr>=5x", "'x' is no unit of sqnr at: sqnr>=5x hint: its units: none, dB"),
        ("size<=300", "size needs a unit"),
        ("size<=3ms", "its units: kB, MB, GB, x, %"),
        ("latency<=5MB", "'MB' is no unit of latency"),
        ("max_abs<=3dB", "'dB' is no unit of max_abs"),
        ("latency<=0x", "no model has a latency of 0"),
        ("size<=0%", "no model has a size of 0"),
        ("size<=-1MB", "'size<=-1MB' is no bound"),
        ("cosine>=2", "a cosine is at most 1"),
        ("perplexity<=1%", "write perplexity<=+1%"),
        ("perplexity<=0.5x", "less than the original's"),
        ("sqnr>=+30", "+ goes with %"),
        ("quality>=3", "there is no metric 'quality'"),
        ("sqnr<=30", "write sqnr>=30"),
    ],
)
def test_budgets_are_refused_before_anything_is_done(
    aigcc: Callable[[str], Result], here: Path, budget: str, message: str
) -> None:
    result = aigcc(f"build  missing.onnx  -t  mobile  -o  out  --budget  {budget}")
    refused(result, here, entries(here), message)


def test_a_budget_that_has_no_meaning_for_the_outputs_says_so(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    before = entries(here)
    result = aigcc("build  net.onnx  -t  mobile  -o  out  -s  good.npz  --budget  perplexity<=+1%")
    refused(result, here, before, "perplexity has no meaning here")


def test_a_budget_that_cannot_be_kept_leaves_the_best_mixture_as_a_recipe(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    left = sorted([*entries(here), "out.recipe.toml"])
    command = "build  net.onnx  -t  mobile  -o  out  -s  good.npz"
    result = aigcc(f"{command}  --budget  sqnr>=30,size<=1kB")
    refused(result, here, left, "size is")
    assert "--recipe out.recipe.toml builds the best one" in " ".join(result.err.split())
    again = aigcc(f"{command}  --recipe  out.recipe.toml")
    assert (again.code, (here / "out" / "model.onnx").is_file()) == (0, True), again.err


def test_a_budget_on_quality_needs_an_output_that_is_a_float(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    text = "g (float[N,4] x) => (int64[N,1] y) { y = ArgMax <axis = 1> (x) }"
    Module.parse(f'<ir_version: 10, opset_import: ["" : 21]> {text}').save("pick.onnx")
    before = entries(here)
    result = aigcc("build  pick.onnx  -t  mobile  -o  out  --budget  sqnr>=30")
    refused(result, here, before, "sqnr cannot be measured: no output of the model is a float")


RECIPES = {
    "[precision]\n'first' = 'w8'": "the recipe names a node 'first' that the model has not",
    "[precision]\n'on' = 'w8'": "did you mean 'one'? Or was it made for another model",
    "[precision]\n'a' = 'w8'\n'b' = 'w8'": "2 of the 2 nodes that the recipe names are not in it",
    "[precision]\n'one' = 'w9'": "there is no scheme 'w9' for mobile",
    "[precision]\n'one' = 3": "no table [precision] of node names and schemes",
    "precision = 3": "no table [precision] of node names and schemes",
    "": "no table [precision] of node names and schemes",
    "[precision": "the recipe is no TOML",
    "[precision]\n'one' = 'w8'\n'one' = 'w4'": "Cannot overwrite a value",
    "format = 9\n[precision]\n'one' = 'w8'": "the recipe has format 9",
    "measured = 3\n[precision]\n'one' = 'w8'": "[measured] of the recipe is no table",
    "\udc80": "the recipe is no TOML",
}


@pytest.mark.parametrize("text", RECIPES)
def test_recipes(aigcc: Callable[[str], Result], here: Path, text: str) -> None:
    file("r.toml", text.encode("utf-8", "surrogateescape"))
    before = entries(here)
    result = aigcc("build  net.onnx  -t  mobile  -o  out  -s  good.npz  --recipe  r.toml")
    refused(result, here, before, RECIPES[text])


@pytest.mark.parametrize(("name", "message"), [("r.toml", "No such file"), (".", "Is a directory")])
def test_recipes_that_are_no_files(
    aigcc: Callable[[str], Result], here: Path, name: str, message: str
) -> None:
    result = aigcc(f"build  missing.onnx  -t  mobile  -o  out  --recipe  {name}")
    refused(result, here, entries(here), message)
    assert "OUT/recipe.toml" in result.err


def test_a_recipe_for_another_target_is_replayed_with_a_remark(here: Path) -> None:
    Recipe({"one": "w8"}, "gpu").save("r.toml")
    ctx = Context(target=make_target("mobile"))
    AssignPrecision(recipe="r.toml").run(net(), ctx)
    said = [remark.message for remark in ctx.remarks if remark.kind == "note"]
    assert said[0] == "the recipe was made for gpu: what pays there may not pay here"


def test_float8_is_said_to_need_other_architectures(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    before = entries(here)
    passes = "canonicalize,insert-qdq(scheme=fp8)"
    result = aigcc(f"build  net.onnx  -t  gpu(emit=onnx)  -o  out  -s  good.npz  -p  {passes}")
    refused(result, here, before, "there is no scheme 'fp8' for gpu")
    assert "-t 'gpu(architectures=[sm89,sm120])'" in result.err


# Models


def quantised(module: Module, scheme: str, feeds: Array | None = None) -> Context:
    ctx = Context(samples=load_samples(lambda: [{"x": x() if feeds is None else feeds}], module))
    ctx.maker = "insert-qdq"
    InsertQdq(scheme=scheme).run(module, ctx)
    verify(module.model)
    return ctx


def typed(module: Module) -> Module:
    infer_shapes(module.model)
    return module


def test_a_module_without_types_is_to_be_inferred_first() -> None:
    with pytest.raises(CompileError, match="types of values are not known") as error:
        quantised(net(), "w8")
    assert "run infer-shapes" in str(error.value)


@pytest.mark.parametrize(("scheme", "needs"), [("w4", 21), ("w8", 13)])
@pytest.mark.parametrize("opset", [11, 18, 21])
def test_what_the_opset_does_not_have_is_declined(scheme: str, needs: int, opset: int) -> None:
    module = typed(net(opset))
    ctx = quantised(module, scheme)
    assert (module.graph.num_nodes() == 2) == (opset < needs)
    declined = [remark.message for remark in ctx.remarks if remark.kind == "declined"]
    assert (
        declined
        == ([f"{scheme} needs opset {needs}: see convert-opset"] * 2)[: 2 * (opset < needs)]
    )


def columns(*numbers: float) -> Callable[[Array], Array]:
    """Puts numbers into the first output channels."""

    def edit(array: Array) -> Array:
        array = array.copy()
        array[:, : len(numbers)] = numbers
        return array

    return edit


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "w4"])
@pytest.mark.parametrize(
    "edit",
    [
        np.zeros_like,
        columns(0, 0, 0),
        columns(1e-42, 1e-38),
        columns(1e30),
        columns(float(LARGEST)),
    ],
    ids=["zeros", "zero channels", "denormal", "huge", "largest"],
)
def test_weights_at_the_ends_of_the_range(scheme: str, edit: Callable[[Array], Array]) -> None:
    module = typed(net(edit=edit))
    feeds = {"x": x() * np.float32(1e-3)}
    exact = OrtSession(module, optimise=False).run(feeds)["y"]
    quantised(module, scheme, feeds["x"])
    found = OrtSession(module, optimise=False).run(feeds)["y"]
    assert np.isfinite(exact).all()
    error, reach = (np.abs(array).max(axis=0) for array in (found - exact, exact))
    assert (error <= 0.8 * reach + 1e-30).all()


@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN])
def test_the_largest_float_comes_back_finite(dtype: ir.DataType) -> None:
    array = np.array([[LARGEST, -LARGEST], [1, 0]], np.float32)
    grid = Grid(dtype, 0)
    scale = grid.scale(array)
    assert np.isfinite(grid.back(grid.round(array, scale), scale)).all()


@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(scheme: str, number: float) -> None:
    module = typed(net(edit=columns(number)))
    with pytest.raises(CompileError, match="'w'") as error:
        quantised(module, scheme)
    assert error.value.hint


@pytest.mark.parametrize("number", [0.0, 3.0, 1e-42, 1e30])
def test_activations_that_are_constant(number: float) -> None:
    module = typed(net())
    feeds = {"x": np.full((4, WIDTH), number, np.float32)}
    exact = OrtSession(module).run(feeds)["y"]
    quantised(module, "w8a8", feeds["x"])
    found = open_exact(module).run(feeds)["y"]
    assert np.abs(found - exact).max() <= 0.1 * np.abs(exact).max() + 1e-37


def test_samples_without_numbers_give_no_range() -> None:
    with pytest.raises(CompileError, match="no sample has a finite number here") as error:
        quantised(typed(net()), "w8a8", x(0))
    assert "no dim is 0" in str(error.value)


def test_a_model_that_overflows_is_named_with_its_node() -> None:
    with pytest.raises(CompileError, match="infinite, and nothing before it is") as error:
        quantised(typed(net()), "w8a8", np.sign(x()) * LARGEST)
    assert "node 'one' (MatMul)" in str(error.value)


# What calibrates and what judges


def test_samples_that_calibrate_and_judge_are_said_to(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    for name, seeds in (("judged", (1, 2)), ("same", (2, 3)), ("other", (4,))):
        Path(name).mkdir()
        for seed in seeds:
            np.savez(f"{name}/{seed}.npz", x=x(seed, seed))  # of several sizes
    build = "build  net.onnx  -t  mobile  --no-latency  -s  judged  -p  canonicalize,insert-qdq"
    note = "activations were calibrated on {} of these samples"
    assert note.format(2) in aigcc(f"{build}  -o  a").out
    assert note.format(1) in aigcc(f"{build}  -o  b  --calibration  same").out
    assert "calibrated on" not in aigcc(f"{build}  -o  c  --calibration  other").out
    assert "calibrated on 2 of the 2 samples" in Path("a/report.html").read_text()
    weights = build.replace("insert-qdq", "insert-qdq(scheme=w8)")
    assert "calibrated on" not in aigcc(f"{weights}  -o  d").out


# Rough edges of the command line


def test_python_code_is_no_model(aigcc: Callable[[str], Result], here: Path) -> None:
    file("mine.py", "def make(): ...\ndef feeds(): yield {}\n")
    before = entries(here)
    refused(aigcc("inspect  mine.py"), here, before, "name the function: mine:FUNCTION")


def test_a_misspelt_function_of_samples(
    aigcc: Callable[[str], Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file("feeding.py", "def feeds(): yield {}\n")
    before = entries(here)
    result = aigcc("run  net.onnx  -s  feeding:feed")
    refused(result, here, before, "did you mean 'feeds'?")


def test_the_memory_of_a_program_does_not_depend_on_the_others(
    aigcc: Callable[[str], Result], here: Path
) -> None:
    shown = json.loads(aigcc("bench  net.onnx  net.onnx  --seconds  0  --json").out)
    one, two = (row["memory_bytes"] for row in shown["programs"].values())
    assert abs(one - two) <= 1 << 20
