"""Saving: one weight at a time, whole or not at all, and nothing is lost."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.slots import slots
from aigcc.ir.storage import saving
from aigcc.ir.storage.loading import load_model
from aigcc.ir.storage.saving import save_model
from aigcc.ir.text.printer import write_text
from aigcc.ir.weights import derive, raw_bytes

BIG = np.arange(600, dtype=np.float32).reshape(20, 30)


def everything() -> onnx.ModelProto:
    """A model with something of everything, as onnx_ir would write it."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21, "my": 1], producer_name: "p",
         producer_version: "2", domain: "d", model_version: 3, doc_string: "why",
         metadata_props: ["license": "MIT"]>
        g (float[20,n] x, bool c) => (float[20,30] y)
        <float[20,30] a>
        {
          [mul] a = Mul (x, w)
          b = If (c) <
            then_branch = yes () => (float[20,30] ty) { ty = Add (x, tw) },
            else_branch = no () => (float[20,30] ey) { ey = Identity (a) }
          >
          d = my.f <alpha: float = 2.0> (a)
          e = Add (b, s)
          y = Add (e, d)
        }
        <opset_import: ["": 21], domain: "my">
        f <alpha> (p) => (r)
        {
          k = Constant <value: tensor = float[2] {1.0, 2.0}> ()
          r = Elu <alpha: float = @alpha> (p)
        }
        """
    )
    graph = model.graph
    weight = numpy_helper.from_array(BIG, "w")
    weight.doc_string = "a weight"
    weight.metadata_props.add(key="from", value="here")
    small = numpy_helper.from_array(np.array(3, np.float32), "s")
    graph.initializer.extend([weight, small])
    graph.node[1].attribute[0].g.initializer.append(numpy_helper.from_array(BIG, "tw"))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(400, np.float32), "sparse"),
        numpy_helper.from_array(np.arange(400), ""),
        [1000],
    )
    graph.sparse_initializer.append(sparse)
    tensors = [numpy_helper.from_array(BIG, "p"), numpy_helper.from_array(np.arange(3), "q")]
    custom = helper.make_node("Custom", ["sparse"], ["z"], domain="my", tensors=tensors)
    custom.attribute.append(
        helper.make_attribute("empty", [], attr_type=onnx.AttributeProto.FLOATS)
    )
    custom.attribute.append(helper.make_attribute("raw", b"\xff\xfe"))
    type_proto = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "n"])
    custom.attribute.append(helper.make_attribute("type", type_proto))
    graph.node.append(custom)
    graph.node[0].metadata_props.add(key="namespace", value="model/layer")
    graph.node[0].doc_string = "node"
    graph.value_info[0].metadata_props.add(key="aigcc.fact", value="1")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    graph.metadata_props.add(key="in", value="graph")
    model.functions[0].metadata_props.add(key="in", value="function")
    model.functions[0].node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(BIG))
    return model


def loaded(tmp_path: Path, model: onnx.ModelProto | None = None, name: str = "in") -> ir.Model:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes((model or everything()).SerializeToString())
    return load_model(path)


def lines(model: onnx.ModelProto) -> list[str]:
    """What a model holds, without the types that onnx_ir adds as value_info of initializers."""
    graphs = [model.graph]
    for graph in graphs:
        names = {tensor.name for tensor in graph.initializer} | {"sparse"}
        kept = [info for info in graph.value_info if info.name not in names]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    said = str(model).splitlines()
    return [line for line in said if not line.endswith((': ""', "data_location: DEFAULT"))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_lost(tmp_path: Path, external: bool) -> None:
    save_model(loaded(tmp_path), tmp_path / "out.onnx", external)
    assert lines(onnx.load(tmp_path / "out.onnx")) == lines(everything())


def test_the_file_is_what_protobuf_would_write(tmp_path: Path) -> None:
    save_model(loaded(tmp_path), tmp_path / "out.onnx")
    written = (tmp_path / "out.onnx").read_bytes()
    assert onnx.ModelProto.FromString(written).SerializeToString(deterministic=True) == written


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        save_model(loaded(tmp_path, name=name), folder / "out.onnx", external=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_model_in_memory_is_unchanged(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    before = [(slot.where, slot.tensor, slot.tensor.name) for slot in slots(model)]
    attributes = [id(a) for node in model.graph for a in node.attributes.values()]
    save_model(model, tmp_path / "out.onnx", external=True)
    after = [(slot.where, slot.tensor, slot.tensor.name) for slot in slots(model)]
    assert all(x[1] is y[1] and x[::2] == y[::2] for x, y in zip(before, after, strict=True))
    assert attributes == [id(a) for node in model.graph for a in node.attributes.values()]


def test_external_data_is_aligned_and_shared_tensors_are_written_once(tmp_path: Path) -> None:
    large = np.ones((300, 1024), np.float32)
    tensors = [("w0", BIG), ("w1", BIG[:7]), ("w2", large), ("w3", BIG[:9])]
    model = loaded(tmp_path, helper.make_model(graph_of(tensors), ir_version=10))
    initializers = model.graph.initializers
    initializers["w1"].const_value = initializers["w0"].const_value
    save_model(model, tmp_path / "out.onnx", external=True)
    again = load_model(tmp_path / "out.onnx")
    offsets = {
        v.name: v.const_value.offset
        for v in again.graph.initializers.values()
        if isinstance(v.const_value, ir.ExternalTensor)
    }
    assert offsets == {"w0": 0, "w1": 0, "w2": 4096, "w3": 4096 + large.nbytes}
    save_model(again, tmp_path / "again.onnx", external=True)
    sizes = [(tmp_path / f"{name}.onnx.data").stat().st_size for name in ("out", "again")]
    assert sizes[0] == sizes[1]


def graph_of(tensors: list[tuple[str, np.ndarray]]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph(
        [], "g", [value], [value], [numpy_helper.from_array(array, name) for name, array in tensors]
    )


def test_size_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(tmp_path)
    save_model(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx.data").exists()
    monkeypatch.setattr(saving, "EXTERNAL_FROM", 5000)
    save_model(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()


def test_more_than_protobuf_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_PROTOBUF_LIMIT", 5000)
    with pytest.raises(ModelError, match="protobuf allows 5,000") as caught:
        save_model(loaded(tmp_path), tmp_path / "out.onnx", external=False)
    assert "external=True" in str(caught.value.hint)


@pytest.mark.parametrize("external", [False, True])
def test_onnx_runtime_reads_it(tmp_path: Path, external: bool) -> None:
    source = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21]>
        g (float[20,30] x, bool c) => (float[20,30] y)
        {
          k = Constant <value: tensor = float[1] {1.0}> ()
          a = Mul (x, k)
          y = If (c) <
            then_branch = yes () => (float[20,30] ty) { ty = Add (a, tw) },
            else_branch = no () => (float[20,30] ey) { ey = Add (a, s) }
          >
        }
        """
    )
    source.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(BIG))
    source.graph.node[2].attribute[0].g.initializer.append(numpy_helper.from_array(BIG, "tw"))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(500, np.float32), "s"),
        numpy_helper.from_array(np.arange(500)),
        [20, 30],
    )
    source.graph.sparse_initializer.append(sparse)
    save_model(loaded(tmp_path, source), tmp_path / "out.onnx", external)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    (yes,) = session.run(None, {"x": BIG, "c": np.array(True)})
    assert np.array_equal(yes, BIG * BIG + BIG)
    (no,) = session.run(None, {"x": BIG, "c": np.array(False)})
    assert np.array_equal(no, BIG * BIG + (np.arange(600).reshape(20, 30) < 500))


@pytest.mark.parametrize("external", [False, True])
def test_lazy_tensors_are_computed_while_saving(tmp_path: Path, external: bool) -> None:
    model = loaded(tmp_path)
    value = model.graph.initializers["w"]
    assert value.const_value is not None
    twice = derive(
        lambda w: w * 2, value.const_value, dtype=value.const_value.dtype, shape=BIG.shape, name="w"
    )
    value.const_value = twice
    save_model(model, tmp_path / "out.onnx", external)
    found = load_model(tmp_path / "out.onnx").graph.initializers["w"].const_value
    assert found is not None
    assert np.array_equal(found.numpy(), BIG * 2)
    assert value.const_value is twice


# Replacing files


@pytest.mark.parametrize("external", [False, True])
def test_a_model_saved_over_its_own_weights_stays_valid(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "m.onnx"
    save_model(loaded(tmp_path), path, external)
    model = load_model(path)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    model.graph.initializers["w"].const_value = derive(
        np.negative, weight, dtype=weight.dtype, shape=BIG.shape, name="w"
    )
    for _ in range(3):  # each time from the first file, which only the mapping keeps
        save_model(model, path, external)
        found = load_model(path).graph.initializers["w"].const_value
        assert found is not None
        assert np.array_equal(found.numpy(), -BIG)
    assert np.array_equal(weight.numpy(), BIG)


def test_a_foreign_external_tensor_survives_its_file(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    (tmp_path / "out.onnx.data").write_bytes(BIG.tobytes())
    tensor = ir.ExternalTensor(
        "out.onnx.data",
        0,
        BIG.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(BIG.shape),
        name="w",
        base_dir=tmp_path,
    )
    value = model.graph.initializers["w"]
    value.const_value = tensor
    for name in ("out", "again"):
        save_model(model, tmp_path / f"{name}.onnx", external=True)
        assert value.const_value is not None
        assert bytes(raw_bytes(value.const_value)) == BIG.tobytes()
    assert contents(tmp_path)["again.onnx.data"] == contents(tmp_path)["out.onnx.data"]


def test_weights_that_move_into_the_model_leave_no_file_behind(tmp_path: Path) -> None:
    model, path = loaded(tmp_path), tmp_path / "out.onnx"
    save_model(model, path, external=True)
    again = load_model(path)
    save_model(again, path, external=False)
    assert set(contents(tmp_path)) == {"in.onnx", "out.onnx"}
    save_model(model, tmp_path / "inline.onnx", external=False)
    save_model(again, path, external=False)  # what it was mapped from is still there
    assert path.read_bytes() == (tmp_path / "inline.onnx").read_bytes()


def test_a_data_file_of_somebody_else_stays(tmp_path: Path) -> None:
    model, path = loaded(tmp_path), tmp_path / "out.onnx"
    (tmp_path / "out.onnx.data").write_bytes(b"precious")
    for old in (None, b"no model"):
        if old is not None:
            path.write_bytes(old)
        save_model(model, path, external=False)
        assert (tmp_path / "out.onnx.data").read_bytes() == b"precious"
    save_model(model, path, external=False)  # the old model there refers to nothing
    assert (tmp_path / "out.onnx.data").read_bytes() == b"precious"


def test_the_text_form_leaves_no_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "out.onnxtxt"
    model = loaded(tmp_path)
    model.graph.initializers["w"].const_value = ir.tensor(BIG + 1, name="w")
    write_text(model, path)
    assert (tmp_path / "out.onnxtxt.data").exists()
    small = Module.parse('<ir_version: 10, opset_import: ["" : 21]> g (float x) => (float x) {}')
    write_text(small.model, path)
    assert set(contents(tmp_path)) == {"in.onnx", "out.onnxtxt"}


@pytest.mark.parametrize(
    ("step", "nth"),
    [("replace", 1), ("link", 1), ("link", 2), ("unlink", 1), ("fsync", 1), ("fsync", 2)],
)
def test_ctrl_c_while_a_data_file_goes_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    model, path = loaded(tmp_path), tmp_path / "out.onnx"
    save_model(model, path, external=True)
    before = contents(tmp_path)
    interrupt(monkeypatch, step, nth)
    with suppress(KeyboardInterrupt):
        save_model(model, path, external=False)
    monkeypatch.undo()
    after = contents(tmp_path)
    assert after == before or set(after) == {"in.onnx", "out.onnx"}
    load_model(path)


def test_a_link_is_replaced_and_permissions_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link.onnx"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    model = loaded(tmp_path)
    save_model(model, link)
    assert target.read_bytes() == b"precious"
    link.chmod(0o600)
    save_model(model, link)
    assert link.stat().st_mode & 0o777 == 0o600


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("size", [100, 2000, 5000])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, external: bool, size: int) -> None:
    model = loaded(tmp_path)
    save_model(model, tmp_path / "out.onnx", external)
    before = contents(tmp_path)
    with full_disk(size), pytest.raises(ModelError, match="cannot be saved") as caught:
        save_model(model, tmp_path / "out.onnx", external)
    assert "make room" in str(caught.value.hint)
    assert contents(tmp_path) == before
    save_model(model, tmp_path / "out.onnx", external)
    assert contents(tmp_path) == before


def interrupt(monkeypatch: pytest.MonkeyPatch, step: str, nth: int) -> None:
    """Let Ctrl-C come at the nth call of a function that changes files."""
    owner = Path if step in ("replace", "unlink") else os
    original: Callable[..., object] = getattr(owner, step)
    calls = 0

    def wrapper(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(owner, step, wrapper)


@pytest.mark.parametrize("step", ["replace", "link", "fsync"])
@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_at_a_bad_moment_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    model = loaded(tmp_path)
    save_model(model, tmp_path / "out.onnx", external=True)
    before = contents(tmp_path)
    model.producer_name = "changed"
    model.graph.initializers["w"].const_value = ir.tensor(BIG + 1, name="w")
    interrupt(monkeypatch, step, nth)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "out.onnx", external=True)
    monkeypatch.undo()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda folder: folder / "missing" / "out.onnx", "mkdir -p"),
        (lambda folder: folder / "in.onnx" / "out.onnx", ""),
        (lambda folder: Path("/proc/out.onnx"), ""),
        (lambda folder: folder, ""),
    ],
)
def test_places_where_no_file_can_be(
    tmp_path: Path, make: Callable[[Path], Path], hint: str
) -> None:
    with pytest.raises(ModelError, match="cannot be saved") as caught:
        save_model(loaded(tmp_path), make(tmp_path))
    assert hint in str(caught.value.hint)


def test_models_that_cannot_be_written(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    model.graph.initializers["s"].const_value = None
    with pytest.raises(ModelError, match="initializer 's' has no value"):
        save_model(model, tmp_path / "out.onnx")
    model = loaded(tmp_path)
    model.graph[0].attributes.add(ir.Attr("a", ir.AttributeType.SPARSE_TENSOR, object()))
    with pytest.raises(ModelError, match="Sparse tensors are not supported yet"):
        save_model(model, tmp_path / "out.onnx")
    liar = ir.LazyTensor(
        lambda: ir.tensor(BIG[:3]), dtype=ir.DataType.FLOAT, shape=ir.Shape(BIG.shape), name="w"
    )
    model = loaded(tmp_path)
    model.graph.initializers["w"].const_value = liar
    with pytest.raises(ModelError, match="takes 2,400 bytes and has 360"):
        save_model(model, tmp_path / "out.onnx")
    assert sorted(contents(tmp_path)) == ["in.onnx"]
