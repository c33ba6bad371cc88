"""No file of an artifact names a folder of the machine that built it, for any target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import aigcc
from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.provenance import PROVENANCE, folders, stripped, without_folders
from aigcc.targets import make_target

SECRET = "/srv/users/someone/work"
TRACE = f'File "{SECRET}/net.py", line 7, in forward\n    return self.lin(password)'

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[2,4] x) => (float[2,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ [first] h = MatMul (x, w)  [second] y = Tanh (h) }"""


def told() -> Module:
    """A module of which its exporter says all that it knows."""
    made = Module.parse(TEXT)
    made.model.doc_string = made.graph.doc_string = SECRET
    made.model.metadata_props["pkg.torch.export"] = made.graph.metadata_props["where"] = SECRET
    for node in made.graph:
        node.doc_string = SECRET
        node.metadata_props["pkg.torch.onnx.stack_trace"] = TRACE
        node.metadata_props["namespace"] = f"{SECRET}: Net/lin"
        node.metadata_props["aigcc.kept"] = "yes"
        for value in node.outputs:
            value.doc_string, value.metadata_props["source"] = SECRET, SECRET
    for value in [*made.graph.inputs, *made.graph.initializers.values()]:
        value.doc_string, value.metadata_props["source"] = SECRET, SECRET
    return made


@pytest.mark.parametrize(
    "target", ["cpu", "mobile", "mobile(format=ort)", "mobile(weights=fp16)", "jetson", "gpu"]
)
def test_artifacts_name_no_folder(target: str, tmp_path: Path) -> None:
    try:
        make_target(target).check_tools()
    except TargetError as error:
        pytest.skip(str(error))
    model, samples = tmp_path / "here" / "net.onnx", tmp_path / "data" / "samples"
    for folder in (model.parent, samples):
        folder.mkdir(parents=True)
    told().save(model)
    assert SECRET.encode() in model.read_bytes()
    np.savez(samples / "0.npz", x=np.ones((2, 4), np.float32))
    aigcc.build(model, target, tmp_path / "out", samples=str(samples), calibration=None)
    for file in (tmp_path / "out").rglob("*"):
        data = file.read_bytes()
        for secret in (SECRET, "password", str(tmp_path), str(Path.home()) + "/", str(Path.cwd())):
            assert secret.encode() not in data, (file.name, secret)
    known = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert known["first"] == {"source": "net.py:7"}


def test_a_recipe_is_named_without_its_folder(tmp_path: Path) -> None:
    made = told()
    made.save(tmp_path / "net.onnx")
    aigcc.build(tmp_path / "net.onnx", "mobile", tmp_path / "first", budget="sqnr>=5")
    recipe = tmp_path / "first" / "recipe.toml"
    built = aigcc.build(tmp_path / "net.onnx", "mobile", tmp_path / "second", recipe=recipe)
    assert str(tmp_path) not in json.dumps(dict(built.artifact.manifest))


def test_what_is_stripped_computes_the_same_and_keeps_our_own_marks() -> None:
    made = told()
    after = stripped(made)
    assert SECRET not in after.text()
    assert [node.metadata_props for node in after.graph] == [{"aigcc.kept": "yes"}] * 2
    assert [node.name for node in after.graph] == ["first", "second"]


def test_names_that_only_look_like_paths_stay() -> None:
    names = folders("/data/set/x.npz")
    thing = {"node": "/encoder/layer.0/MatMul", "at": ["/data/set/x.npz, sample 3"], "n": 3}
    assert without_folders(thing, names) == {
        "node": "/encoder/layer.0/MatMul",
        "at": ["x.npz, sample 3"],
        "n": 3,
    }
