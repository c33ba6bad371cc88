"""The command line, used as people use it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from aigcc import cli
from aigcc.cli.app import app
from aigcc.cli.stages import Stages
from aigcc.ir.module import Module
from aigcc.passes.simplify import Simplify
from aigcc.pipeline.context import Context

COMMANDS = [
    "build",
    "opt",
    "bisect",
    "run",
    "bench",
    "compare",
    "sensitivity",
    "calibrate",
    "inspect",
    "passes",
    "targets",
    "explain",
    "doctor",
]

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
TINY = HEAD + "tiny (float[N,4] x) => (float[N,4] y) { [a] h = Identity (x)  [b] y = Relu (h) }"
WORDS = (
    HEAD
    + "words (int64[sequence] tokens) => (float[sequence,2] y)"
    + "<float[3,2] table = {1, 2, 3, 4, 5, 6}> { y = Gather (table, tokens) }"
)
USER = """
import sys
import numpy as np

def raises(): return 1 / 0
def leaves(): sys.exit(3)
def nothing(): return None
def needs(): import not_installed_at_all
def path(): print("user code may print"); return "tiny.onnx"

def stops():
    yield {"x": np.ones((1, 4), np.float32)}
    raise KeyError("boom")
def good(): yield {"x": np.ones((1, 4), np.float32)}
def named(): yield {"z": np.ones((1, 4), np.float32)}
def typed(): yield {"x": np.ones((1, 4))}
def shaped(): yield {"x": np.ones((1, 5), np.float32)}
def nan(): yield {"x": np.full((1, 4), np.nan, np.float32)}
def empty(): return []
def no_rows(): yield {"x": np.ones((0, 4), np.float32)}
def endless():
    while True: yield {"x": np.ones((1, 4), np.float32)}
"""


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def aigcc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs a command line in this process."""

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["aigcc", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with a model, a text and a module of user code in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("user", "wrong_syntax", "wrong_import"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    Module.parse(TINY).save("tiny.onnx")
    Path("tiny.onnxtxt").write_text(TINY)
    Path("user.py").write_text(USER)
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `tiny.onnx` and `words.onnx`, and an artifact of each."""
    from aigcc import build

    folder = tmp_path_factory.mktemp("built")
    for name, text in (("tiny", TINY), ("words", WORDS)):
        Module.parse(text).save(folder / f"{name}.onnx")
        build(folder / f"{name}.onnx", "mobile", folder / name, passes="canonicalize")
    return folder


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_and_gives_an_example(aigcc: Callable[..., Result], command: str) -> None:
    result = aigcc(command, "--help")
    assert result.code == 0
    assert f"aigcc {command}" in result.out.partition("Example:")[2]


def test_every_command_is_tested() -> None:
    assert {command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)


def test_build_writes_an_artifact_and_says_what_changed(
    aigcc: Callable[..., Result], here: Path
) -> None:
    result = aigcc("build", "tiny.onnx", "-t", "mobile", "-o", "out", "--dump-ir", "-j", 1)
    assert result.code == 0
    for text in ("nodes", "latency", "4 synthetic samples", "wrote out\nrun it: python out/exam"):
        assert text in result.out
    assert {"artifact.json", "example.py", "model.onnx"} <= set(entries(here / "out"))
    assert entries(here / "out-ir")[:2] == ["00-input.onnxtxt", "01-canonicalize.onnxtxt"]
    again = aigcc("build", "tiny.onnx", "-t", "mobile", "-o", "out", "--overwrite", "--no-latency")
    assert again.code == 0
    assert "latency" not in again.out


def test_an_example_runs_from_any_folder(built: Path, tmp_path: Path) -> None:
    command = [sys.executable, built / "words" / "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("y ")


def test_long_names_are_not_wrapped_where_there_is_no_terminal(
    aigcc: Callable[..., Result], here: Path
) -> None:
    out = "a folder with a name so long that it does not fit into a line of eighty columns of text"
    result = aigcc("build", "tiny.onnx", "-t", "mobile", "-o", out, "--no-latency")
    assert f"wrote '{out}'\n" in result.out
    assert all(line == line.rstrip() for line in result.out.splitlines())


def test_opt_reads_its_own_dumps(aigcc: Callable[..., Result], here: Path) -> None:
    assert aigcc("opt", "tiny.onnx", "-p", "simplify", "-o", "a.onnxtxt", "--dump-ir=d").code == 0
    assert entries(here / "d") == ["00-input.onnxtxt", "01-simplify.onnxtxt"]
    result = aigcc("opt", "d/00-input.onnxtxt", "-p", "simplify", "--limit", 0, "-o", "b.onnx")
    assert result.code == 0
    assert [node.op_type for node in onnx.load("b.onnx").graph.node] == ["Identity", "Relu"]
    assert [node.op_type for node in Module.load("a.onnxtxt").nodes()] == ["Relu"]


def test_opt_compares_without_being_asked(
    aigcc: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negate(self: Simplify, module: Module, ctx: Context) -> None:
        for node in module.graph:
            if node.op_type == "Relu" and ctx.rewrite(node, "turned"):
                node.op_type = "Neg"

    assert "synthetic" in aigcc("opt", "tiny.onnx", "-p", "simplify", "-o", "same.onnx").out
    monkeypatch.setattr(Simplify, "run", negate)
    words = ("opt", "tiny.onnx", "-p", "simplify", "-o", "wrong.onnx")
    result = aigcc(*words)
    assert result.code == 1
    assert "output 'y' is wrong after these passes" in result.err
    assert "aigcc bisect tiny.onnx -p simplify --tolerance 0.0001 names the rewrite" in result.err
    assert not Path("wrong.onnx").exists()
    assert aigcc(*words, "--verify", "structure").code == 0
    assert Path("wrong.onnx").exists()


def test_opt_says_that_a_model_does_not_run(aigcc: Callable[..., Result], here: Path) -> None:
    text = HEAD.replace('"" : 20', '"" : 20, "own" : 1')
    body = "own (float[2] x) => (float[2] y) { i = Identity (x)  y = own.Unknown (i) }"
    file("own.onnxtxt", text + body)
    result = aigcc("opt", "own.onnxtxt", "-p", "simplify", "-o", "new.onnxtxt")
    assert result.code == 0
    assert "the outputs are not compared: ONNX Runtime" in result.out


def test_dumps_replace_those_of_an_earlier_run_and_nothing_else(
    aigcc: Callable[..., Result], here: Path
) -> None:
    opt = ("opt", "tiny.onnx", "-o", "a.onnx", "--dump-ir=d")
    assert aigcc(*opt, "-p", "eliminate-dead,simplify").code == 0
    assert aigcc(*opt, "-p", "simplify").code == 0
    assert entries(here / "d") == ["00-input.onnxtxt", "01-simplify.onnxtxt"]
    (here / "d" / "thesis.tex").write_text("years")
    result = aigcc(*opt, "-p", "simplify")
    assert (result.code, entries(here / "d")[-1]) == (1, "thesis.tex")
    assert "holds other files" in result.err


def test_print_after_prints_the_ir(aigcc: Callable[..., Result], here: Path) -> None:
    result = aigcc(
        "opt", "tiny.onnx", "-p", "simplify,canonicalize", "-o", "a.onnx", "--print-after=simplify"
    )
    assert result.out.startswith("# after 1-simplify\n<ir_version: 10")
    assert "y = Relu (x)" in result.out


def test_an_artifact_knows_how_large_its_vocabulary_is(
    aigcc: Callable[..., Result], built: Path
) -> None:
    # Without the bound, made-up tokens would lie outside of the table.
    for programs in (("words",), ("words", "words.onnx")):
        result = aigcc("bench", *(built / name for name in programs), "--seconds", 0)
        assert result.code == 0
    assert aigcc("run", built / "words").code == 0


def test_run_writes_what_samples_can_be_read_from(aigcc: Callable[..., Result], here: Path) -> None:
    assert aigcc("run", "tiny.onnx", "-s", "user:good", "-o", "outputs").code == 0
    with np.load("outputs/0000.npz") as outputs:
        np.testing.assert_array_equal(outputs["y"], np.ones((1, 4), np.float32))
    result = aigcc("run", "tiny.onnx", "-o", "outputs")
    assert (result.code, "is not empty" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("s = StringConcat (t, t)  i = ArgMax (x)", "string[1] s, int64[1,4] i"),
        (
            "two = Constant <value_int = 2> ()  s = SplitToSequence <axis = 1> (x, two)",
            "seq(float[1,2]) s",
        ),
        ("n = Log (x)", "float[1,4] n"),
    ],
)
def test_outputs_of_any_kind_are_built_and_run(
    aigcc: Callable[..., Result], here: Path, body: str, outputs: str
) -> None:
    signature = f"(float[1,4] x, string[1] t) => ({outputs})"
    Module.parse(f"{HEAD} kinds {signature} {{ {body} }}").save("kinds.onnx")
    assert aigcc("run", "kinds.onnx", "-o", "o").code == 0
    result = aigcc("build", "kinds.onnx", "-t", "mobile", "-o", "out", "--no-latency")
    assert result.code == 0
    assert ("values of n are NaN" in result.out) == ("Log" in body)


def test_bisect_says_that_all_is_right(aigcc: Callable[..., Result], here: Path) -> None:
    result = aigcc("bisect", "tiny.onnx", "-p", "canonicalize")
    assert (result.code, result.out) == (
        0,
        "the one rewrite is right within 0.0001 on the first of 4 synthetic samples and on edge "
        "inputs\n"
        "so is the result as ONNX Runtime with its optimisations runs it\n",
    )


def test_compare_fails_past_a_tolerance(aigcc: Callable[..., Result], here: Path) -> None:
    Module.parse(TINY.replace("Relu", "Neg")).save("other.onnx")
    assert aigcc("compare", "tiny.onnx", "tiny.onnx", "--tolerance", 0, "--psnr", 1).code == 0
    result = aigcc("compare", "tiny.onnx", "other.onnx", "--tolerance", 0.1, "--json")
    assert result.code == 1
    assert json.loads(result.out)["outputs"][0]["relative"] > 0.1


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("aigcc build m.onnx -t mo", ["mobile"]),
        ("aigcc opt m.onnx -p fuse,fold-", ["fuse,fold-constants", "fuse,fold-shapes"]),
        ("aigcc passes insert", ["insert-qdq"]),
        ("aigcc targets j", ["jetson"]),
    ],
)
def test_the_shell_completes_names(words: str, offered: list[str]) -> None:
    count = str(len(words.split()) - 1)
    place = {"_AIGCC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    done = subprocess.run(
        [sys.executable, "-c", "from aigcc.cli.app import app; app(prog_name='aigcc')"],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == offered


def test_no_word_is_broken_at_80_columns(
    aigcc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    narrow = Console(file=shown, width=80, force_terminal=True, no_color=True)
    monkeypatch.setattr("aigcc.cli.render.console", narrow)
    aigcc("passes")
    words = set(re.findall(r"[a-z0-9-]+", shown.getvalue()))
    assert {"merge-subexpressions", "unpack-sequences", "initializers"} <= words


def test_compare_takes_no_empty_sample_for_a_proof(
    aigcc: Callable[..., Result], here: Path
) -> None:
    words = ("compare", "tiny.onnx", "tiny.onnxtxt", "-s", "user:no_rows")
    shown = aigcc(*words)
    assert shown.code == 0 and shown.out.splitlines()[-1].split() == ["0", "y", *"----"]
    refused = aigcc(*words, "--tolerance", "1")
    assert refused.code == 1 and "all outputs of the model are empty" in refused.err


def test_a_function_that_never_ends_is_cut_off(aigcc: Callable[..., Result], here: Path) -> None:
    done = aigcc("compare", "tiny.onnx", "tiny.onnxtxt", "-s", "user:endless")
    assert done.code == 0
    assert "note: user:endless yields more than 1000 samples" in done.out


def test_a_long_stage_gets_a_line_with_its_time_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with Stages(file) as stages:
        stages.report("quick", 0.0)
        stages.report("slow", 0.0)
        time.sleep(1.6)
        stages.report("quick again", 0.5)
    assert re.fullmatch(r" +1\.\d s  slow\n", file.getvalue())


@pytest.mark.parametrize("command", ["passes", "targets"])
def test_catalogues_show_all_or_one_in_full(aigcc: Callable[..., Result], command: str) -> None:
    names = [entry["name"] for entry in json.loads(aigcc(command, "--json").out)]
    assert all(name in aigcc(command).out for name in names)
    one = aigcc(command, names[0]).out
    assert one.startswith(names[0])
    assert "```" not in one


def strict_json(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "words",
    [
        "build tiny.onnx -t mobile -o out --print-after canonicalize --dump-ir --no-latency",
        "build user:path -t mobile -o out --no-latency --verify=off",
        "opt tiny.onnx -p simplify -o a.onnx --print-after simplify",
        "bisect tiny.onnx -p simplify",
        "run tiny.onnx",
        "bench tiny.onnx tiny.onnx --seconds 0",
        "compare tiny.onnx tiny.onnx",
        "inspect tiny.onnx",
        "inspect user:path",
        "passes simplify",
        "targets mobile",
        "doctor",
    ],
)
def test_json_is_all_there_is_on_standard_output(
    aigcc: Callable[..., Result], here: Path, words: str
) -> None:
    result = aigcc(*words.split(), "--json")
    assert (result.code, "Traceback" in result.err) == (0, False)
    assert strict_json(result.out)


def test_the_manifest_is_json_too(aigcc: Callable[..., Result], built: Path) -> None:
    facts = strict_json((built / "tiny" / "artifact.json").read_text())
    assert strict_json(aigcc("explain", built / "tiny", "--json").out) == facts
    assert "relative error on 4 synthetic samples: y 0" in aigcc("explain", built / "tiny").out


def test_the_report_is_made_again_from_the_artifact(
    aigcc: Callable[..., Result], built: Path, here: Path
) -> None:
    result = aigcc("explain", built / "tiny", "--html", "again.html", "--json")
    assert strict_json(result.out)["source"] == "tiny.onnx"
    assert "wrote again.html" in result.err
    made = (here / "again.html").read_bytes()
    assert made == (built / "tiny" / "report.html").read_bytes()


def test_the_version_is_shown(aigcc: Callable[..., Result]) -> None:
    assert aigcc("--version").out.startswith("aigcc ")


def file(name: str, data: bytes | str) -> None:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())


def model(edit: Callable[[onnx.ModelProto], object]) -> None:
    proto = onnx.parser.parse_model(TINY)
    edit(proto)
    file("bad.onnx", proto.SerializeToString())


def external(location: str) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    model(lambda proto: proto.graph.initializer.append(weight))


def link_out() -> None:
    Path("inner").mkdir()
    file("secret.data", bytes(64))
    os.chdir("inner")
    Path("link.data").symlink_to("../secret.data")
    external("link.data")


def text(body: str, signature: str = "(float[2] x) => (float[2] y)") -> Callable[[], None]:
    return lambda: file("bad.onnxtxt", f"{HEAD}bad {signature} {{ {body} }}")


def renamed(name: str) -> Callable[[onnx.ModelProto], None]:
    """Names the second node's input, so that it is the output of another node, or of none."""

    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].input[0] = name

    return edit


TINY_BYTES = onnx.parser.parse_model(TINY).SerializeToString()
BUILD = "-t mobile -p canonicalize -o out --no-latency"
MODEL = f"build bad.onnx {BUILD}"
TEXT = f"build bad.onnxtxt {BUILD}"
OPT = "opt tiny.onnx -p simplify -o"


def nothing() -> None:
    """No preparation."""


# What is prepared, the command, its exit code, and what the message must say.
FAILURES: dict[str, tuple[Callable[[], object], str, int, str]] = {
    # files that would be lost
    "out is in": (nothing, "opt tiny.onnx -p fuse -o tiny.onnx", 1, "is the model that is read"),
    "out is a note": (
        lambda: file("bad.onnx", "a note"),
        "opt tiny.onnx -p fuse -o bad.onnx",
        1,
        "bad.onnx is no model, and would be lost",
    ),
    "page is a note": (
        lambda: file("bad.html", "<title>a note</title>"),
        "sensitivity tiny.onnx --html bad.html",
        1,
        "bad.html is no report of aigcc, and would be lost",
    ),
    "statistics are a note": (
        lambda: file("bad.npz", "a note"),
        "calibrate tiny.onnx -o bad.npz",
        1,
        "bad.npz is no calibration, and would be lost",
    ),
    # files that are no models
    "missing": (nothing, MODEL, 1, "there is no model at 'bad.onnx'"),
    "misspelt": (nothing, f"build tinny.onnx {BUILD}", 1, "did you mean 'tiny.onnx'?"),
    "folder": (lambda: Path("bad.onnx").mkdir(), MODEL, 1, "this is not a file"),
    "empty": (lambda: file("bad.onnx", b""), MODEL, 1, "the file is empty"),
    "cut": (lambda: file("bad.onnx", TINY_BYTES[:-9]), MODEL, 1, "the file is cut short"),
    "random": (lambda: file("bad.onnx", bytes(range(255, 0, -1))), MODEL, 1, "damaged"),
    "pickle": (lambda: file("bad.onnx", b"\x80\x04K\x01."), MODEL, 1, "Python pickle"),
    "html": (lambda: file("bad.onnx", "<!DOCTYPE html>"), MODEL, 1, "this is a web page"),
    "words": (lambda: file("bad.onnx", "just some words"), MODEL, 1, "not an ONNX model"),
    "latin-1": (
        lambda: file("bad.onnx", TINY_BYTES.replace(b"Relu", b"R\xe9lu")),
        MODEL,
        1,
        "op_type of a NodeProto is not UTF-8",
    ),
    "weights": (nothing, f"build no:module {BUILD}", 1, "cannot import no"),
    # data beside models
    "data-missing": (lambda: external("w.data"), MODEL, 1, "w.data does not exist"),
    "data-above": (lambda: external("../w.data"), MODEL, 1, "leaves the model's folder"),
    "data-absolute": (lambda: external("/etc/passwd"), MODEL, 1, "is not relative"),
    "data-link": (link_out, MODEL, 1, "outside the model's folder"),
    # models that are not legal
    "operator": (text("y = Rely (x)"), TEXT, 1, "did you mean 'Relu'?"),
    "domain": (text("y = foo.Bar (x)"), TEXT, 1, "no opset of domain 'foo' is imported"),
    "opset": (
        lambda: model(lambda m: setattr(m.opset_import[0], "version", 999)),
        MODEL,
        1,
        "opset 999 of the default domain is newer than onnx",
    ),
    "no-opset": (
        lambda: model(lambda m: m.ClearField("opset_import")),
        MODEL,
        1,
        "no opset of the default domain is imported",
    ),
    "ir-version": (
        lambda: model(lambda m: setattr(m, "ir_version", 99)),
        MODEL,
        1,
        "pip install --upgrade onnx",
    ),
    "cycle": (lambda: model(renamed("y")), MODEL, 1, "depends on itself"),
    "undefined": (lambda: model(renamed("nowhere")), MODEL, 1, "value 'nowhere' is no graph input"),
    "no-outputs": (
        lambda: model(lambda m: m.graph.ClearField("output")),
        MODEL,
        1,
        "the model has no outputs",
    ),
    "syntax": (text("y = Relu x"), TEXT, 1, "bad.onnxtxt:2:"),
    # models without inputs that could be made up
    "unranked": (
        lambda: model(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
        MODEL,
        1,
        "--samples",
    ),
    "huge": (
        text("y = Relu (x)", "(float[99999,99999] x) => (float[99999,99999] y)"),
        TEXT,
        1,
        "is too large",
    ),
    "reshape": (
        text("y = Reshape (x, s)", "(float[2] x, int64[1] s) => (float[M] y)"),
        TEXT,
        1,
        "the inputs are made up",
    ),
    # user code
    "raises": (nothing, f"build user:raises {BUILD}", 1, "user.py:5"),
    "leaves": (nothing, f"build user:leaves {BUILD}", 1, "SystemExit: 3"),
    "returns": (nothing, f"build user:nothing {BUILD}", 1, "return (nn.Module, inputs)"),
    "needs": (nothing, f"build user:needs {BUILD}", 1, "is not_installed_at_all installed"),
    "absent": (nothing, f"build user:noting {BUILD}", 1, "did you mean 'nothing'?"),
    "unparsable": (
        lambda: file("wrong_syntax.py", "def f(:"),
        f"build wrong_syntax:f {BUILD}",
        1,
        "wrong_syntax.py:1",
    ),
    "unimportable": (
        lambda: file("wrong_import.py", "raise RuntimeError('no')"),
        f"build wrong_import:f {BUILD}",
        1,
        "wrong_import.py:1",
    ),
    # samples
    "no-samples": (nothing, "run tiny.onnx -s nowhere", 1, "there are no samples at 'nowhere'"),
    "empty-folder": (lambda: Path("s").mkdir(), "run tiny.onnx -s s", 1, "the folder 's' is empty"),
    "sample-name": (nothing, "run tiny.onnx -s user:named", 1, "the model has no input 'z'"),
    "sample-dtype": (nothing, "run tiny.onnx -s user:typed", 1, "takes float32, not float64"),
    "sample-shape": (nothing, "run tiny.onnx -s user:shaped", 1, "not [1, 5]"),
    "sample-nan": (nothing, "run tiny.onnx -s user:nan", 1, "NaN or infinite"),
    "sample-none": (nothing, "run tiny.onnx -s user:empty", 1, "no samples in user:empty"),
    "sample-type": (nothing, "run tiny.onnx -s user:nothing", 1, "returned NoneType"),
    "sample-late": (nothing, "run tiny.onnx -s user:stops -o out", 1, "KeyError: 'boom'"),
    "sample-npy": (
        lambda: np.save("x.npy", np.ones(2)),
        "run tiny.onnx -s x.npy",
        1,
        "does not say which input it is",
    ),
    "sample-file": (nothing, "run tiny.onnx -s user.py", 1, "the file cannot be read"),
    # names of passes, targets and options
    "pass": (nothing, f"{OPT} a.onnx -p simplifi", 1, "did you mean 'simplify'?"),
    "pass-option": (nothing, f"{OPT} a.onnx -p canonicalize(round=1)", 1, "did you mean 'rounds'?"),
    "pipeline": (nothing, f"{OPT} a.onnx -p canonicalize(", 1, "expected a name"),
    "print-after": (
        nothing,
        f"{OPT} a.onnx --print-after simplifi",
        1,
        "did you mean 'simplify'?",
    ),
    "target": (nothing, "build tiny.onnx -t mobil -o out", 1, "did you mean 'mobile'?"),
    "target-option": (nothing, "build tiny.onnx -t mobile(x=1) -o out", 1, "has no option 'x'"),
    "catalogue": (nothing, "passes simplifi", 1, "did you mean 'simplify'?"),
    "command": (nothing, "buidl", 2, "Did you mean 'build'?"),
    "usage": (nothing, "build tiny.onnx -t mobile", 2, "Missing option '--out'"),
    "jobs": (nothing, "build tiny.onnx -t mobile -o out -j 0", 2, "greater than or equal to 1"),
    # places to write to
    "format": (nothing, f"{OPT} a.txt", 1, "end the name with .onnx"),
    "no-folder": (nothing, f"{OPT} nowhere/a.onnx", 1, "mkdir -p nowhere"),
    "out-full": (lambda: file("user.txt", "x"), f"build tiny.onnx {BUILD} -o .", 1, "not empty"),
    "out-file": (nothing, f"build tiny.onnx {BUILD} -o user.py", 1, "user.py is a file"),
    "out-below": (nothing, f"build tiny.onnx {BUILD} -o user.py/out", 1, "Not a directory"),
    "dump-here": (nothing, f"{OPT} a.onnx --dump-ir=.", 1, "is the model's own"),
    # things that are no artifacts
    "artifact": (lambda: Path("a").mkdir(), "run a", 1, "a is not an artifact"),
    "artifact-file": (nothing, "explain tiny.onnx", 1, "tiny.onnx is not an artifact"),
    "artifact-text": (
        lambda: (Path("a").mkdir(), file("a/artifact.json", '{"format": 1}')),
        "explain a",
        1,
        "artifact.json is damaged",
    ),
    "artifact-model": (
        lambda: (Path("a").mkdir(), file("a/artifact.json", "{}")),
        f"build a {BUILD}",
        1,
        "a is an artifact, and a model is needed here",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_say_what_to_do_and_leave_nothing(
    aigcc: Callable[..., Result], here: Path, case: str
) -> None:
    prepare, words, code, message = FAILURES[case]
    prepare()
    before = entries(here)
    result = aigcc(*words.split())
    assert (result.code, "Traceback" in result.err) == (code, False)
    assert message in " ".join(result.err.replace("│", " ").split())
    assert entries(here) == before
    if code == 1:
        assert f"again: aigcc {words.split()[0]}" in result.err


def test_names_of_any_kind_reach_neither_terminal_nor_markup(
    aigcc: Callable[..., Result], here: Path
) -> None:
    name = "it's a \"[red]\nn\u00e4me\x1b[31m/.."

    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].name = proto.graph.node[1].output[0] = proto.graph.node[1].name = name

    model(edit)
    result = aigcc("build", "bad.onnx", "-t", "mobile", "-o", "out", "--no-latency")
    assert result.code == 0
    assert "it's a \"[red]\\nn\u00e4me\\x1b[31m/.." in result.out
    assert "\x1b" not in aigcc("explain", "out").out + aigcc("run", "out", "-o", "outputs").out
    subprocess.run([sys.executable, "out/example.py"], check=True, capture_output=True)


def test_a_fault_of_aigcc_is_owned_up_to(
    aigcc: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("this cannot happen")

    monkeypatch.setattr("aigcc.analysis.cost.summarize", fail)
    result = aigcc("inspect", "tiny.onnx")
    assert result.code == 70
    assert "this is a fault of aigcc: AssertionError: this cannot happen" in result.err
    assert "again: aigcc --traceback inspect tiny.onnx" in result.err
    assert f"at: {__file__}:" in result.err
    assert "Traceback" in aigcc("--traceback", "inspect", "tiny.onnx").err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 1 TiB"), "there is not enough memory"),
        (PermissionError(13, "Permission denied", "model.bin"), "model.bin"),
        (OSError(28, "No space left on device"), "output cannot be written: No space left"),
    ],
)
def test_what_the_system_refuses_is_no_fault(
    aigcc: Callable[..., Result],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("aigcc.analysis.cost.summarize", fail)
    result = aigcc("inspect", "tiny.onnx")
    assert (result.code, message in result.err) == (1, True)
