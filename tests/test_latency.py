"""What a build says of latency: figures with quartiles, the faster target, where the time goes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import aigcc
from aigcc.benchmark import Timing
from aigcc.cli.app import app
from aigcc.ir.module import Module
from aigcc.latency import Latency
from aigcc.report.page import render
from aigcc.runtime import OrtSession
from aigcc.target import Feeds, NodeTime
from aigcc.targets.mobile import Mobile

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ [first] h = MatMul (x, w)  [second] y = Softmax (h) }"""


def timing(ratio: float, low: float, high: float) -> Timing:
    return Timing(ratio * 1e-3, low * 1e-3, high * 1e-3, ratio, low, high, 100)


ONE = timing(1, 1, 1)


@pytest.mark.parametrize(
    ("after", "others", "own", "notes"),
    [
        (timing(0.8, 0.7, 0.9), {}, 1e-5, []),
        (timing(1.1, 0.95, 1.3), {}, None, []),
        (
            timing(1.38, 1.2, 1.61),
            {"mobile": timing(0.9, 0.85, 1.1), "other": timing(1.3, 1.2, 1.5)},
            1e-5,
            [
                "cpu takes 1.38x the time of ONNX Runtime with the original on this machine (1.20 "
                "to 1.61): --target mobile is faster, 0.90x"
            ],
        ),
        (
            timing(1.38, 1.2, 1.61),
            {"mobile": timing(1.3, 1.2, 1.5)},
            None,
            [
                "cpu takes 1.38x the time of ONNX Runtime with the original on this machine (1.20 "
                "to 1.61): no target that runs here is faster"
            ],
        ),
        (
            timing(0.05, 0.04, 0.06),
            {},
            4e-5,
            ["0.04 ms of the 0.05 ms a run are what each call of cpu takes, whatever it computes"],
        ),
    ],
)
def test_a_target_that_loses_says_which_one_is_faster(
    after: Timing, others: dict[str, Timing], own: float | None, notes: list[str]
) -> None:
    assert list(Latency(ONE, after, others, own, [], "a CPU").notes("cpu")) == notes


class Slow:
    """A session that takes a while."""

    def __init__(self, session: OrtSession) -> None:
        self.session = session

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        time.sleep(0.005)
        return self.session.run(feeds)


def test_a_build_measures_its_program_and_what_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def session(target: Mobile, folder: Path, entry: str, threads: int | None = None) -> Slow:
        return Slow(OrtSession(folder / entry))

    monkeypatch.setattr(Mobile, "session", session)
    other = Latency(ONE, ONE, {}, None, [], "")
    built = aigcc.build(Module.parse(TEXT), "mobile", tmp_path / "out", latency=True)
    latency = built.artifact.manifest["latency"]
    assert latency.keys() == other.describe("mobile").keys()
    assert latency["before"]["ratio"] == 1
    assert latency["after"]["ratio_low"] > 1
    assert latency["notes"][0].startswith("mobile takes ")
    assert {node["name"] for node in latency["nodes"]} == {"first", "second"}
    page = render(built.artifact)
    assert "Where the time goes" in page
    assert latency["notes"][0].replace("'", "&#x27;") in page
    shown = CliRunner().invoke(app, ["explain", str(tmp_path / "out")]).output
    for words in ("where the time goes", "first", "MatMul", latency["notes"][0][:40], "size: "):
        assert words in shown


def test_nothing_is_timed_unless_asked(tmp_path: Path) -> None:
    built = aigcc.build(Module.parse(TEXT), "mobile", tmp_path / "out")
    assert built.artifact.manifest["latency"] is None
    assert (
        "latency: not measured"
        in CliRunner().invoke(app, ["explain", str(tmp_path / "out")]).output
    )


def test_what_cannot_run_here_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mobile, "session", lambda *args: None)
    built = aigcc.build(Module.parse(TEXT), "mobile", tmp_path / "out", latency=True)
    assert built.artifact.manifest["latency"] is None


def test_openvino_tells_where_the_time_goes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    built = aigcc.build(Module.parse(TEXT), "cpu", tmp_path / "out", latency=True)
    nodes = [NodeTime(**node) for node in built.artifact.manifest["latency"]["nodes"]]
    assert any(node.name.startswith("first") and node.seconds > 0 for node in nodes)
    assert nodes == sorted(nodes, key=lambda node: -node.seconds)


def test_a_budget_is_shown_bound_by_bound(tmp_path: Path) -> None:
    made = Module.parse(
        f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[N,64] x) => (float[N,64] y)
<float[64,64] w = {{{",".join(f"{x:.3f}" for x in np.random.default_rng(0).normal(size=4096))}}}>
{{ y = MatMul (x, w) }}"""
    )
    built = aigcc.build(made, "mobile", tmp_path / "out", budget="sqnr>=20,size<=2x,relative<=0.5")
    bounds = {row["text"]: row for row in built.artifact.manifest["quality"]["bounds"]}
    assert list(bounds) == ["sqnr>=20", "relative<=0.5", "size<=2x"]
    assert all(row["kept"] for row in bounds.values())
    assert bounds["sqnr>=20"]["figure"].endswith(" dB")
    page = render(built.artifact)
    assert "Keeps the budget" in page
    assert "is allowed" not in page
    bounds["size<=2x"]["kept"] = False
    page = render(built.artifact)
    assert "Breaks the budget" in page
