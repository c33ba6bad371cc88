"""Where rewrites are right and the program as it is deployed is not, bisect says which and why."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from aigcc.cli.app import app
from aigcc.driver import build
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.pipeline.attempts import FirstWrong
from aigcc.pipeline.bisect import find_first_wrong
from aigcc.pipeline.levels import OPTIMISERS, Blame, blame
from aigcc.pipeline.text import parse
from aigcc.runtime import Level, OrtSession
from aigcc.samples import load_samples
from aigcc.target import Session
from aigcc.targets import make_target
from aigcc.targets.mobile import Mobile

# ONNX Runtime writes Q/DQ of two types around what is moved, in opsets where Q has output_dtype.
MOVED = """<ir_version: 9, opset_import: ["" : OPSET]>
g (TYPE[1,2,4,4] x) => (float[1,2,4,4] y) <float s = {0.5}ZERO> {
  d = DequantizeLinear (x, s, z)
  unused = Neg (d)
  t = Transpose <perm = [0, 1, 3, 2]> (d)
  q, s2, z2 = DynamicQuantizeLinear (t)
  y = DequantizeLinear (q, s2, z2)
}"""


def _moved(opset: int, dtype: str = "int8") -> Module:
    zero = ", int8 z = {3}" if dtype == "int8" else ""
    text = MOVED.replace("OPSET", str(opset)).replace("TYPE", dtype).replace("ZERO", zero)
    return Module.parse(text if zero else text.replace(", z)", ")"))


def _find(module: Module, passes: str, target: str | None = None) -> FirstWrong:
    return find_first_wrong(
        module,
        parse(passes),
        load_samples(None, module),
        tolerance=1e-4,
        target=None if target is None else make_target(target),
    )


@pytest.mark.parametrize("target", [None, "mobile"])
@pytest.mark.parametrize("dtype", ["int8", "int32"])
@pytest.mark.parametrize("opset", [21, 23])
def test_the_rewrite_that_leads_the_runtime_astray(
    opset: int, dtype: str, target: str | None
) -> None:
    found = _find(_moved(17, dtype), f"eliminate-dead,convert-opset(version={opset})", target)
    assert found.rewrites == 2
    assert found.only_deployed
    assert found.number == 2
    assert found.remark is not None
    assert found.remark.maker == "convert-opset"
    assert math.isinf(found.error)
    assert found.before == 0
    level: Level = "extended" if dtype == "int8" else "basic"
    assert found.blame == Blame(level, ("QDQPropagationTransformer",))


@pytest.mark.parametrize("target", [None, "mobile"])
def test_a_model_that_the_runtime_gets_wrong_itself(target: str | None) -> None:
    found = _find(_moved(21), "infer-shapes", target)
    assert found.remark is None
    assert not found.is_right
    assert math.isinf(found.original)
    assert found.blame == Blame("extended", ("QDQPropagationTransformer",))


def test_all_is_right_where_the_runtime_is_kept_from_it() -> None:
    found = _find(_moved(17), "canonicalize,fuse", "mobile")
    assert found.is_right
    assert found.deployed == "mobile"
    assert found.rewrites


@pytest.mark.parametrize("target", [None, "mobile"])
def test_all_is_right_where_passes_keep_the_runtime_from_its_fault(target: str | None) -> None:
    found = _find(_moved(21), "canonicalize", target)
    assert found.is_right
    assert found.deployed
    assert found.rewrites


def test_what_does_not_mean_the_same_is_found_first() -> None:
    module = Module.parse("""<ir_version: 9, opset_import: ["" : 17]>
g (float[2,4] x, float[2,4] w) => (float[2,4] y) { m = Mul (x, w)  y = Add (m, w) }""")
    found = _find(module, "to-fp16")
    assert found.remark is not None
    assert not found.only_deployed
    assert found.blame is None


class _Astray:
    def __init__(self, session: OrtSession, *, is_astray: bool) -> None:
        self._session = session
        self._is_astray = is_astray

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        made = self._session.run(feeds)
        return {name: array + 1 for name, array in made.items()} if self._is_astray else made


@dataclasses.dataclass(frozen=True)
class Device(Mobile):
    """Computes a fused Gelu wrongly, and takes no opset below 18."""

    name = "device"
    is_onnxruntime = False

    def open(self, module: Module, threads: int | None = None) -> Session:
        """ONNX Runtime, but for the fault."""
        kinds = {node.op_type for node in module.graph}
        return _Astray(OrtSession(module, optimise=False), is_astray="Gelu" in kinds)


GELU = """<ir_version: 9, opset_import: ["" : 20]>
g (float[2,4] x) => (float[2,4] y) <float r = {1.4142135}, float one = {1.0}, float h = {0.5}> {
  i = Identity (x)
  a = Div (i, r)  e = Erf (a)  p = Add (e, one)  m = Mul (i, p)  y = Mul (m, h)
}"""


def test_another_runtime_that_gets_an_operator_wrong(tmp_path: Path) -> None:
    module = Module.parse(GELU)
    found = find_first_wrong(
        module,
        parse("canonicalize,fuse"),
        load_samples(None, module),
        tolerance=1e-4,
        target=Device(),
    )
    assert found.only_deployed
    assert found.remark is not None
    assert "Gelu" in found.remark.message
    assert found.deployed == "device"
    assert found.blame is None
    assert 0.1 < found.error < math.inf


@dataclasses.dataclass(frozen=True)
class Rough(Device):
    """As `Device`, and a hundredth off in all that it computes."""

    name = "rough"

    def open(self, module: Module, threads: int | None = None) -> Session:
        """What is a hundredth larger than it should be."""
        return _Scaled(super().open(module))


class _Scaled:
    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feeds: Any) -> dict[str, Any]:
        return {name: array * 1.01 for name, array in self._session.run(feeds).items()}


@pytest.mark.parametrize(("passes", "number"), [("simplify", 0), ("canonicalize,fuse", 2)])
def test_a_runtime_that_is_off_itself_is_judged_by_the_model_there(
    passes: str, number: int
) -> None:
    module = Module.parse(GELU)
    feeds = load_samples(None, module)
    found = find_first_wrong(module, parse(passes), feeds, tolerance=1e-4, target=Rough())
    assert found.only_deployed
    assert found.original == pytest.approx(0.01, rel=0.01)
    assert (found.remark is not None) == bool(number)
    assert found.number >= number


def test_a_build_says_what_of_the_runtime_is_to_blame(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        build(_moved(17), "mobile", tmp_path / "out", passes="convert-opset(version=21)")
    assert "the built program fails" in caught.value.what
    assert "rewrite 1 of 1, [convert-opset] opset 17 to 21" in str(caught.value.at)
    assert "wrong as mobile runs it" in str(caught.value.at)
    assert "without its QDQPropagationTransformer it is right" in str(caught.value.at)
    with pytest.raises(TargetError, match="the model as it was read fails there, too"):
        build(_moved(21), "mobile", tmp_path / "out", passes="infer-shapes")


def test_the_command_says_so(tmp_path: Path) -> None:
    path = tmp_path / "moved.onnxtxt"
    _moved(17).save(path)
    words = ["bisect", str(path), "-p", "eliminate-dead,convert-opset(version=21)"]
    said = CliRunner().invoke(app, words).output
    assert "all 2 rewrites are right as the model is meant, without optimisations" in said
    assert "rewrite 2 is the first that ONNX Runtime with its optimisations gets wrong" in said
    assert "from its level 'extended' on; without its QDQPropagationTransformer it is right" in said
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert found["blame"]["optimisers"] == ["QDQPropagationTransformer"]
    _moved(21).save(path)
    said = CliRunner().invoke(app, ["bisect", str(path), "-p", "infer-shapes"]).output
    assert "no rewrite is to blame: ONNX Runtime with its optimisations computes the model" in said
    words = ["opt", str(path), "-p", "infer-shapes", "-t", "mobile", "-o", f"{tmp_path}/out.onnx"]
    assert CliRunner().invoke(app, words).exit_code == 0  # no rewrite, so nothing to compare


@pytest.mark.parametrize("wrong", [{"ReshapeFusion"}, {"ConstantFolding", "Pad_Fusion"}, {"Other"}])
def test_optimisers_are_found_one_by_one(wrong: set[str]) -> None:
    """A module is wrong from a level on, unless all of some optimisers are switched off."""
    found = blame(lambda level, without: level in ("none", "basic") or wrong <= set(without))
    assert found is not None
    assert found.level == "extended"
    assert set(found.optimisers) == (
        wrong if len(wrong) == 1 and wrong <= set(OPTIMISERS) else set()
    )
    assert blame(lambda level, without: True) is None
    kernels = blame(lambda level, without: False)
    assert "no rewrite of ONNX Runtime's" in str(kernels)


def test_levels_and_optimisers_of_the_runtime() -> None:
    feeds = {"x": np.arange(32, dtype=np.int8).reshape(1, 2, 4, 4)}
    wanted = OrtSession(_moved(21), optimise=False).run(feeds)["y"]
    for session in (
        OrtSession(_moved(21), optimise="basic"),
        OrtSession(_moved(21), without=["QDQPropagationTransformer"]),
    ):
        assert np.array_equal(session.run(feeds)["y"], wanted)
