"""Sensitivity: the node that cannot bear few bits, the curve, and a page that runs nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aigcc import cli
from aigcc.cli.sensitivity import plot
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.report.sensitivity import render
from aigcc.samples import load_samples
from aigcc.sensitivity import Curve, Node, Point, measure_curve

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
HOSTILE = "</code><script>alert('\u202e\x00')</script>\"' onload=x"


def chain(spoilt: int, layers: int = 3, opset: int = 21) -> Module:
    """Products of 32 by 32, one of which has an outlier that takes most of each scale's range."""
    lines = [f"h{i} = MatMul (h{i - 1}, w{i})" for i in range(1, layers + 1)]
    weights = ", ".join(f"float[32,32] w{i}" for i in range(1, layers + 1))
    made = Module.parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"g (float[n,32] h0, {weights}) => (float[n,32] h{layers}) {{ {' '.join(lines)} }}"
    )
    random = np.random.default_rng(0)
    for index, value in enumerate(list(made.graph.inputs)[1:], 1):
        array = random.standard_normal((32, 32)).astype(np.float32) / 6
        if index == spoilt:
            array[0] = 40
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        made.graph.register_initializer(value)
    return made


def feeds() -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    for _ in range(2):
        array = random.standard_normal((4, 32)).astype(np.float32)
        array[:, 0] = 0  # so that the outlier itself adds nothing
        yield {"h0": array}


def context(module: Module, samples: Callable[[], Iterator[dict[str, np.ndarray]]]) -> Context:
    return Context(samples=load_samples(samples, module), threads=1)


def measured(module: Module) -> Curve:
    return measure_curve(module, context(module, feeds))


def test_the_node_that_bears_least_comes_first() -> None:
    curve = measured(chain(spoilt=1))
    assert curve.nodes[0].position == 0
    assert {tuple(node.sqnr) for node in curve.nodes} == {("w8a8", "w8", "w4")}
    for node in curve.nodes:
        assert node.elements == 1024
        assert node.sqnr["w4"] < node.sqnr["w8"]
        assert node.sqnr["w8a8"] <= node.sqnr["w8"] + 0.1
    spoilt, *rest = curve.nodes
    assert spoilt.sqnr["w8"] < min(node.sqnr["w8"] for node in rest) - 10


def test_the_curve_goes_from_full_to_the_lowest_schemes() -> None:
    curve = measured(chain(spoilt=1))
    bits = [point.bits for point in curve.points]
    assert bits == sorted(bits, reverse=True)
    assert (curve.points[0].bits, curve.points[0].sqnr) == (32, math.inf)
    assert curve.points[-1].bits == curve.schemes["w4"] == 5
    assert curve.points[-1].schemes == {"w4": 3}
    assert all(sum(point.schemes.values()) == 3 for point in curve.points)
    assert curve.points[-1].sqnr < curve.points[1].sqnr < math.inf
    assert curve.samples == 2


def test_a_scheme_that_needs_a_newer_opset_is_skipped_with_the_reason() -> None:
    curve = measured(chain(spoilt=1, opset=18))
    assert list(curve.schemes) == ["w8a8", "w8"]
    assert "opset 21" in curve.skipped["w4"]


def test_nodes_in_sub_graphs_stay_as_they_are() -> None:
    module = Module.parse(
        HEAD
        + """g (float[n,2] x, bool c) => (float[n,2] y) <float[2,2] w = {1, 2, 3, 4}>
        {
          h = MatMul (x, w)
          y = If (c) <
            then_branch = yes () => (float[n,2] t) { t = MatMul (h, w) },
            else_branch = no () => (float[n,2] e) { e = Neg (h) }>
        }"""
    )
    samples = {"x": np.ones((1, 2), np.float32), "c": np.array(True)}
    curve = measure_curve(module, context(module, lambda: iter([samples])))
    assert [node.position for node in curve.nodes] == [0]
    assert curve.inside == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g (float[2] x) => (float[2] y) { y = Neg (x) }", "no convolution or matrix product"),
        (
            "g (float[2,2] x) => (int64[2,1] y) <float[2,2] w = {1, 2, 3, 4}>"
            "{ h = MatMul (x, w)  y = ArgMax <axis = 1> (h) }",
            "no output of the model is a float",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(text: str, says: str) -> None:
    module = Module.parse(HEAD + text)
    with pytest.raises(CompileError, match=says):
        measure_curve(module, Context(samples=load_samples(None, module), threads=1))


def test_the_plot_has_a_mark_for_each_finite_point() -> None:
    points = [Point(32, math.inf, {}), Point(20, 50, {}), Point(8, 30, {}), Point(4, -math.inf, {})]
    lines = plot(points)
    assert sum(line.count("*") for line in lines) == 2
    assert lines[0].startswith("  50.0 |") and lines[0].endswith("*")
    assert lines[14].startswith("  30.0 |*")
    assert lines[-1].split() == ["8.00", "20.00"]
    assert plot(points[:2]) == []


class Page(HTMLParser):
    """The elements of a page, each of which is closed where it should be, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("link", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_names_as_text_and_fetches_nothing() -> None:
    node = Node(0, HOSTILE, HOSTILE, 9, 32, {HOSTILE: math.nan}, HOSTILE, HOSTILE)
    points = [Point(32, 60.0, {HOSTILE: 1}), Point(8, 31.25, {HOSTILE: 1})]
    curve = Curve([node], points, {HOSTILE: 8}, {HOSTILE: HOSTILE}, 2, 4)
    page = Page(render(curve, HOSTILE, HOSTILE, HOSTILE, synthetic=False))
    kinds = [kind for kind, _ in page.elements]
    assert "script" not in kinds
    assert kinds.count("circle") == 2
    assert not any(key.startswith("on") for _, facts in page.elements for key in facts)
    links = {facts.get("href") for kind, facts in page.elements if "href" in facts}
    assert links == {"data:,"}
    policy = [facts["content"] for _, facts in page.elements if "http-equiv" in facts]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "alert(" in page.words
    assert "8.00 bits, 31.2 dB" in page.words


def test_the_page_says_that_samples_are_synthetic() -> None:
    curve = Curve([], [Point(32, math.inf, {})], {}, {}, 0, 4)
    assert "Synthetic" in render(curve, "m", None, "4 synthetic samples", synthetic=True)
    assert "svg" not in render(curve, "m", None, "s", synthetic=False).partition("<body>")[2]


def test_the_command_prints_the_ranking_the_curve_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(spoilt=1).save("chain.onnx")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aigcc", "sensitivity", "chain.onnx", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = run("--html", "curve.html", "--top", "2", "-j", "1")
    assert code == 0
    for text in ("4 synthetic samples", "2 of 3 nodes", "bits per weight", "*", "wrote curve.html"):
        assert text in out
    assert "polyline" in [kind for kind, _ in Page(Path("curve.html").read_text()).elements]
    facts = json.loads(run("--json", "-j", "1", "-t", "mobile")[1])
    assert facts["synthetic"] is True
    assert "w8" in facts["schemes"]
    assert len(facts["nodes"]) == 3
    assert run("--html", "missing/curve.html")[0] == 1


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    chain(spoilt=1).save(tmp_path / "chain.onnx")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "aigcc", "sensitivity", "chain.onnx", "-j", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")
