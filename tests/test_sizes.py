"""A program is compared in other sizes than those of the samples, and in its general form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aigcc
from aigcc.errors import CompileError, TargetError
from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.sizes import compare_elsewhere
from aigcc.target import Feeds
from aigcc.targets.mobile import Mobile

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[S,2] x, float[S,T] z, float[3] fixed) => (float[S,2] y) { y = Neg (x) }"""
FEEDS = {
    "x": np.ones((4, 2), np.float32),
    "z": np.ones((4, 1), np.float32),
    "fixed": np.ones(3, np.float32),
}


class Program:
    """Negates, but for some sizes, and in its general form on request."""

    def __init__(self, wrong: int = 0, *, is_general_wrong: bool = False) -> None:
        self.wrong, self.is_general_wrong, self.is_general = wrong, is_general_wrong, False
        self.seen: list[tuple[int, ...]] = []

    def generalise(self) -> None:
        self.is_general = True

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self.seen.append((*feeds["x"].shape, *feeds["z"].shape))
        if len(feeds["x"]) == self.wrong or (self.is_general and self.is_general_wrong):
            return {"y": feeds["x"]}
        return {"y": -feeds["x"]}


def test_a_program_runs_its_general_form_and_half_of_all_sizes() -> None:
    module, program = Module.parse(TEXT), Program()
    original = OrtSession(module, optimise=False)
    found = compare_elsewhere(module.inputs, FEEDS, original.run, program)
    assert [other.sizes for other in found] == ["S = 4, T = 1", "S = 2, T = 2"]
    assert program.seen == [(4, 2, 4, 1), (2, 2, 2, 2)]
    for other in found:
        other.refuse(1e-6, "here")


def test_sizes_that_the_original_cannot_run_are_passed_over() -> None:
    def original(feeds: Feeds) -> dict[str, np.ndarray]:
        if feeds["z"].shape[1] != 1 or len(feeds["x"]) < 3:
            raise CompileError("too small")
        return {"y": -feeds["x"]}

    found = compare_elsewhere(Module.parse(TEXT).inputs, FEEDS, original, Program())
    assert [other.sizes for other in found] == ["S = 4, T = 1", "S = 3, T = 1"]


def test_a_program_that_is_wrong_in_other_sizes_is_refused() -> None:
    module = Module.parse(TEXT)
    original = OrtSession(module, optimise=False)
    _, other = compare_elsewhere(module.inputs, FEEDS, original.run, Program(wrong=2))
    with pytest.raises(TargetError, match="with S = 2, T = 2 output 'y' is wrong: its relative"):
        other.refuse(1e-4, "here")
    general, _ = compare_elsewhere(
        module.inputs, FEEDS, original.run, Program(is_general_wrong=True)
    )
    with pytest.raises(TargetError, match="with S = 4, T = 1 output 'y' is wrong"):
        general.refuse(1e-4, "here")


def test_fixed_sizes_need_no_look_at_others() -> None:
    module = Module.parse(TEXT.replace("S,2", "4,2").replace("S,T", "4,1"))
    assert compare_elsewhere(module.inputs, FEEDS, OrtSession(module).run, Program()) == []


def test_a_build_looks_at_other_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module.parse(TEXT)
    built = aigcc.build(module, "mobile", tmp_path / "right", samples=lambda: [FEEDS])
    assert built.artifact.manifest["quality"]["sizes"] == ["S = 2, T = 2"]
    monkeypatch.setattr(Mobile, "session", lambda *args: Program(wrong=2))
    with pytest.raises(TargetError, match="with S = 2, T = 2"):
        aigcc.build(module, "mobile", tmp_path / "wrong", samples=lambda: [FEEDS])
    assert not (tmp_path / "wrong").exists()
