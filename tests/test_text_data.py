"""Weights out of line: data files beside the text, shared by texts, and out of bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from aigcc.errors import ModelError
from aigcc.ir.text.dataref import WeightFile
from aigcc.ir.text.parser import parse_model
from aigcc.ir.text.printer import print_model, read_text, write_text

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def weights(model: ir.Model) -> dict[str, list[float]]:
    """The elements of each initializer."""
    return {
        name: tensor.numpy().astype(np.float64).tolist()
        for name, tensor in model.graph.initializers.tensor_items()
    }


def _weights(*tensors: ir.TensorProtocol) -> ir.Model:
    values = [
        ir.Value(name=f"w{i}", const_value=t, type=ir.TensorType(t.dtype), shape=ir.Shape(t.shape))
        for i, t in enumerate(tensors)
    ]
    node = ir.Node("", "Concat", values, name="")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=values, opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def _ramp(size: int) -> ir.Tensor:
    return ir.Tensor(np.arange(size, dtype=np.float32))


def test_large_weights_go_beside_the_text_and_equal_ones_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> ir.Tensor:
        calls.append(1)
        return ir.Tensor(np.full(100, 7, np.int8))

    lazy = ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape([100]))
    packed = ir.Tensor(np.arange(-7, 8, dtype=np.int8), dtype=ir.DataType.INT4)
    model = _weights(_ramp(3), _ramp(100), _ramp(100), lazy, packed)
    write_text(model, tmp_path / "m.onnxtxt", inline_limit=8)
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnxtxt", "m.onnxtxt.data"]
    assert (tmp_path / "m.onnxtxt.data").stat().st_size == 512 + 64 + 8
    assert "float[3] w0 = {0, 1, 2}" in (tmp_path / "m.onnxtxt").read_text()
    assert weights(read_text(tmp_path / "m.onnxtxt")) == weights(model)


def test_weights_that_are_in_a_file_stay_there(tmp_path: Path) -> None:
    write_text(_weights(_ramp(100)), tmp_path / "a.onnxtxt")
    model = read_text(tmp_path / "a.onnxtxt")
    (tmp_path / "dumps").mkdir()
    write_text(model, tmp_path / "dumps" / "01-fuse.onnxtxt")
    assert [path.name for path in (tmp_path / "dumps").iterdir()] == ["01-fuse.onnxtxt"]
    assert '"../a.onnxtxt.data"' in (tmp_path / "dumps" / "01-fuse.onnxtxt").read_text()
    with pytest.raises(ModelError, match="outside of its own folder") as raised:
        read_text(tmp_path / "dumps" / "01-fuse.onnxtxt")
    assert "roots=" in str(raised.value)
    again = read_text(tmp_path / "dumps" / "01-fuse.onnxtxt", roots=[tmp_path])
    assert weights(again) == weights(model)


def test_a_text_may_replace_the_data_that_its_model_came_from(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    write_text(_weights(_ramp(50), _ramp(100)), path)
    model = read_text(path)
    value = model.graph.initializers["w0"]
    value.const_value = ir.Tensor(np.zeros(70, np.float32))
    value.shape = ir.Shape([70])
    write_text(model, path)
    for kept in (model, read_text(path)):
        tensor = kept.graph.initializers["w1"].const_value
        assert tensor is not None
        assert tensor.numpy().tolist() == list(range(100))


def test_a_file_that_was_replaced_is_not_referred_to(tmp_path: Path) -> None:
    write_text(_weights(_ramp(100)), tmp_path / "a.onnxtxt")
    model = read_text(tmp_path / "a.onnxtxt")
    write_text(_weights(ir.Tensor(np.zeros(100, np.float32))), tmp_path / "a.onnxtxt")
    write_text(model, tmp_path / "b.onnxtxt")
    assert weights(read_text(tmp_path / "b.onnxtxt")) == weights(model) == {"w0": [*range(100)]}


def test_dumps_share_a_data_file(tmp_path: Path) -> None:
    model = _weights(_ramp(100))
    with (tmp_path / "weights.data").open("wb") as file:
        data = WeightFile(tmp_path / "weights.data", file)
        for name in ("01-a.onnxtxt", "02-b.onnxtxt"):
            write_text(model, tmp_path / name, data=data)
            assert weights(read_text(tmp_path / name)) == weights(model)
    assert (tmp_path / "weights.data").stat().st_size == 400


def test_without_a_data_file_large_weights_are_left_out(tmp_path: Path) -> None:
    text = print_model(_weights(_ramp(100)), inline_limit=8)
    assert "float[100] w0 = ...\n" in text
    with pytest.raises(ModelError, match="printed without the data of this weight"):
        parse_model(text)


def test_a_failed_write_leaves_the_old_files(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    write_text(_weights(_ramp(100)), path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail() -> ir.Tensor:
        raise ModelError("cannot compute")

    with pytest.raises(ModelError, match="cannot compute"):
        write_text(_weights(ir.LazyTensor(fail, ir.DataType.FLOAT, ir.Shape([99]))), path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "location",
    ['"../w.bin"', '"/etc/passwd"', '"a/../../w.bin"', '""', '"."', '"gone.bin"', r'b"w\x00"'],
)
def test_references_may_not_leave_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (tmp_path / "text").mkdir()
    text = f'{HEADER}g () => (w)\n<float[4] w = ["location": {location}]>\n{{}}'
    with pytest.raises(ModelError) as raised:
        parse_model(text, tmp_path / "text")
    assert "<text>:3:" in str(raised.value)


def test_a_link_out_of_the_folder_is_followed_only_in_a_trusted_one(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    text = HEADER + 'g () => (w)\n<float[4] w = ["location": "w.bin"]>\n{}'
    with pytest.raises(ModelError, match="outside"):
        parse_model(text, folder)
    assert weights(parse_model(text, folder, roots=[folder])) == {"w": [0, 0, 0, 0]}


def test_external_data_is_written_as_onnx_writes_it(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(64, dtype=np.float32).tobytes())
    text = (
        HEADER + "g (float[4] x) => (float[4] y)\n"
        '<\n  float[4] w = ["location": "w.bin", "offset": "16", "length": "16"]\n>\n'
        f"{{\n{'  y = Add (x, w)':<60}  # float[4]\n}}\n"
    )
    model = parse_model(text, tmp_path)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [4, 5, 6, 7]
    assert print_model(model, folder=tmp_path) == text
    (proto,) = onnx.parser.parse_model(text).graph.initializer
    assert {entry.key: entry.value for entry in proto.external_data}["offset"] == "16"
