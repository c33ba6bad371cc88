"""Loading: weights stay in their file, whatever is wrong with it is said, nothing is lost."""

import os
import random
import resource
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigcc.errors import ModelError
from aigcc.ir.slots import slots
from aigcc.ir.storage.loading import file_bytes, load_model
from aigcc.ir.storage.mapped import MappedTensor, SparseTensor, VarintTensor
from aigcc.ir.weights import raw_bytes

BIG = np.arange(600, dtype=np.float32).reshape(20, 30)


def proto(*initializers: TensorProto, nodes: str = "y = Identity (x)") -> onnx.ModelProto:
    """A model with some initializers."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "my": 1]> g (float[20,30] x) => (y) {{ {nodes} }}'
    )
    model.graph.initializer.extend(initializers)
    return model


def rich() -> onnx.ModelProto:
    """A model with something of everything that a model can hold."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21, "my": 1], producer_name: "p", doc_string: "d">
        g (float[20,30] x, bool c) => (float[20,n] y)
        {
          [mul] a = Mul (x, w)
          b = If (c) <
            then_branch = yes () => (float[20,30] ty) { ty = Add (x, tw) },
            else_branch = no () => (float[20,30] ey) { ey = Identity (x) }
          >
          d = my.f <alpha: float = 2.0> (a)
          y = Add (b, d)
          z = my.Custom <empty: ints = []> ()
        }
        <opset_import: ["": 21], domain: "my">
        f <alpha> (p) => (r) { r = Elu <alpha: float = @alpha> (p) }
        """
    )
    graph = model.graph
    weight = numpy_helper.from_array(BIG, "w")
    weight.doc_string = "a weight"
    weight.metadata_props.add(key="from", value="here")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("", TensorProto.INT64, [3], [0, 5, 9]),
        [10],
    )
    graph.sparse_initializer.append(sparse)
    graph.initializer.extend([weight, *payloads()])
    graph.node[1].attribute[0].g.initializer.append(numpy_helper.from_array(BIG, "tw"))
    graph.node[4].attribute.append(helper.make_attribute("t", numpy_helper.from_array(BIG, "t")))
    tensors = [numpy_helper.from_array(BIG, "p"), numpy_helper.from_array(np.arange(3), "q")]
    graph.node[4].attribute.append(helper.make_attribute("ts", tensors))
    graph.node[0].metadata_props.add(key="namespace", value="model/layer")
    graph.node[0].doc_string = "why"
    info = graph.value_info.add()
    info.CopyFrom(helper.make_tensor_value_info("a", TensorProto.FLOAT, [20, "n"]))
    info.metadata_props.add(key="aigcc.fact", value="1")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="floats")
    model.metadata_props.add(key="license", value="MIT")
    kept = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(BIG, "k"))
    model.functions[0].node.append(kept)
    return model


def payloads() -> list[TensorProto]:
    """Tensors in each of the fields that can hold their numbers, most of more than 1 KiB."""
    halves = np.arange(600).astype(np.float16)
    return [
        helper.make_tensor("floats", TensorProto.FLOAT, [500], list(range(500))),
        helper.make_tensor("doubles", TensorProto.DOUBLE, [300], list(range(300))),
        helper.make_tensor("halves", TensorProto.FLOAT16, [600], halves.tolist()),
        helper.make_tensor("longs", TensorProto.INT64, [700], list(range(-350, 350))),
        helper.make_tensor("nibbles", TensorProto.INT4, [3001], [i % 16 - 8 for i in range(3001)]),
        numpy_helper.from_array(np.arange(900).astype(ml_dtypes.bfloat16), "bf"),
        numpy_helper.from_array((np.arange(1100) % 400).astype(ml_dtypes.float8_e4m3fn), "f8"),
        numpy_helper.from_array(np.array([2**64 - 1] * 300, np.uint64), "unsigned"),
        helper.make_tensor("strings", TensorProto.STRING, [2], [b"ab", b"\xff"]),
        numpy_helper.from_array(np.array([1, 2]), "small"),
        numpy_helper.from_array(np.empty((0, 3), np.float32), "empty"),
    ]


def external(location: str = "w.data", **more: int) -> TensorProto:
    """`BIG`, outside of the model."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=BIG.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def weight(model: ir.Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


# What is loaded


def test_weights_in_the_file_are_mapped_and_small_ones_are_not(tmp_path: Path) -> None:
    model = load_model(save(rich(), tmp_path))
    kinds = {slot.where: type(slot.tensor) for slot in slots(model)}
    assert kinds["initializer 'w'"] is kinds["initializer 'tw'"] is MappedTensor
    assert kinds["attribute 't' of node '' (Custom)"] is MappedTensor
    assert kinds["attribute 'value' of node '' (Constant)"] is MappedTensor
    assert kinds["initializer 'longs'"] is VarintTensor
    assert kinds["initializer 'sparse'"] is SparseTensor
    assert kinds["initializer 'small'"] is ir.Tensor


def test_every_payload_reads_as_onnx_reads_it(tmp_path: Path) -> None:
    model = load_model(save(proto(*payloads()), tmp_path))
    assert weight(model, "strings").numpy().tolist() == [b"ab", b"\xff"]
    for tensor in payloads():
        if tensor.data_type != TensorProto.STRING:
            expected = numpy_helper.to_array(tensor)
            found = weight(model, tensor.name).numpy()
            assert found.dtype == expected.dtype
            assert found.tolist() == expected.tolist(), tensor.name


def test_a_sparse_initializer_reads_dense(tmp_path: Path) -> None:
    model = load_model(save(rich(), tmp_path))
    assert weight(model, "sparse").numpy().tolist() == [1, 0, 0, 0, 0, 2, 0, 0, 0, 3]


def test_mapped_tensors_are_onnx_ir_external_tensors(tmp_path: Path) -> None:
    path = save(proto(numpy_helper.from_array(BIG, "w")), tmp_path)
    tensor = weight(load_model(path))
    assert isinstance(tensor, ir.ExternalTensor)
    start = tensor.offset or 0
    assert path.read_bytes()[start : start + BIG.nbytes] == tensor.tobytes() == BIG.tobytes()
    assert np.array_equal(np.asarray(tensor), BIG)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(64) + BIG.tobytes())
    model = load_model(save(proto(external(offset=64)), tmp_path))
    assert np.array_equal(weight(model).numpy(), BIG)
    assert file_bytes(tmp_path / "model.onnx") == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_more_data_files_than_a_process_may_open(tmp_path: Path) -> None:
    tensors = [external(f"{index}.data") for index in range(300)]
    for index, tensor in enumerate(tensors):
        tensor.name = f"w{index}"
        (tmp_path / f"{index}.data").write_bytes((BIG + index).tobytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    model = load_model(save(proto(*tensors), tmp_path))
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        for index in range(300):
            assert weight(model, f"w{index}").numpy()[0, 0] == index
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_loading_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    # Each weight is a hole of 64 MiB in a sparse file.
    header = proto(*(external("w.data", offset=i << 26, length=1 << 26) for i in range(50)))
    for index, tensor in enumerate(header.graph.initializer):
        tensor.name, tensor.dims[:] = f"w{index}", [1 << 12, 1 << 12]
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(50 << 26)
    before = anonymous_mb()
    model = load_model(save(header, tmp_path))
    assert sum(v.const_value.nbytes for v in model.graph.initializers.values()) == 50 << 26
    assert not weight(model, "w49").numpy()[::1024].any()
    assert anonymous_mb() - before < 30


def test_a_cached_download_is_a_link(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    blob = save(proto(numpy_helper.from_array(BIG, "w")), blobs)
    (snapshot / "model.onnx").symlink_to(blob)
    os.link(blob, tmp_path / "second name")
    assert np.array_equal(weight(load_model(snapshot / "model.onnx")).numpy(), BIG)


def test_training_information_is_dropped_aloud(tmp_path: Path) -> None:
    model = proto()
    model.training_info.add()
    with pytest.warns(UserWarning, match="training information is dropped"):
        load_model(save(model, tmp_path))


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04" + bytes(100), "a PyTorch archive"),
        (b"\x80\x02}q\x00.", "a Python pickle, which is never opened"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"w": {}}', "a safetensors file"),
        (b"GGUF" + bytes(20), "a GGUF file"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), "a TensorFlow Lite model"),
        (b"Dear diary, no model today.", "not an ONNX model"),
        (os.urandom(0) + bytes(range(1, 200)), "not an ONNX model"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "it holds no graph"),
    ],
)
def test_what_is_not_a_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert caught.value.at == str(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="not a file"):
        load_model(tmp_path)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole = rich().SerializeToString()
    path = tmp_path / "model.onnx"
    for end in range(1, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r"cut short|not an ONNX"):
            load_model(path)


def test_a_damaged_file_raises_a_model_error_or_loads(tmp_path: Path) -> None:
    whole = rich().SerializeToString()
    dice = random.Random(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 3])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            for slot in slots(load_model(path)):
                slot.tensor.numpy()
        except ModelError:
            refused += 1
    assert 100 < refused < 500


def test_an_ir_version_from_the_future(tmp_path: Path) -> None:
    model = proto()
    model.ir_version = 99
    with pytest.raises(ModelError, match="IR version 99") as caught:
        load_model(save(model, tmp_path))
    assert "upgrade onnx" in str(caught.value.hint)


def resized(tensor: TensorProto, *dims: int) -> TensorProto:
    tensor.dims[:] = dims
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (resized(numpy_helper.from_array(BIG, "w"), 20, 31), "2,400 bytes are stored for FLOAT"),
        (resized(numpy_helper.from_array(BIG, "w"), -20, -30), r"the shape \[-20, -30\]"),
        (resized(numpy_helper.from_array(BIG[0], "w"), 31), "120 bytes are stored for FLOAT"),
        (resized(payloads()[3], 701), "holds 700 numbers and its shape needs 701"),
        (TensorProto(name="w", data_type=1, dims=[10**12]), "has no data"),
        (TensorProto(name="w", dims=[2], raw_data=bytes(8)), "UNDEFINED"),
        (TensorProto(name="w", data_type=99, raw_data=bytes(8)), "99 is not a valid DataType"),
        (TensorProto(data_type=1, raw_data=bytes(4)), "has no name"),
    ],
)
def test_weights_that_cannot_be(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(save(proto(tensor), tmp_path))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external("missing.data"), "does not exist"),
        (external("w.data", length=8), "8 bytes are stored for FLOAT"),
        (external("w.data", offset=4), "needs bytes 4 to 2,404"),
        (external("../w.data"), "leaves the model's folder"),
        (external("..\\w.data"), "leaves the model's folder"),
        (external("/etc/passwd"), "is not relative"),
        (external("C:\\w.data"), "is not relative"),
        (external(""), "is not relative"),
        (external("folder"), "is not a file"),
        (external("link.data"), "outside the model's folder"),
        (external("twin.data"), "hard links"),
        (external("w.data", offset=-1), "non-negative"),
    ],
)
def test_external_data_that_cannot_be(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "w.data"
    (home / "folder").mkdir(parents=True)
    elsewhere.write_bytes(BIG.tobytes())
    (home / "w.data").write_bytes(BIG.tobytes())
    (home / "link.data").symlink_to(elsewhere)
    os.link(elsewhere, home / "twin.data")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(save(proto(tensor), home))
    assert str(home / "model.onnx") in str(caught.value)


def test_what_onnx_ir_cannot_hold(tmp_path: Path) -> None:
    model = proto(nodes="y = Identity (x)  k = Constant <value_float = 1.0> ()")
    attribute = model.graph.node[1].attribute[0]
    attribute.ClearField("type")
    with pytest.raises(ModelError, match="has no type"):
        load_model(save(model, tmp_path))
    attribute.type = onnx.AttributeProto.SPARSE_TENSOR
    with pytest.raises(ModelError, match="Sparse tensors are not supported yet"):
        load_model(save(model, tmp_path))
    twice = proto(*[numpy_helper.from_array(BIG, "w")] * 2)
    with pytest.raises(ModelError, match="two initializers 'w'"):
        load_model(save(twice, tmp_path))


# What happens to the file afterwards


def test_the_file_is_replaced_by_somebody(tmp_path: Path) -> None:
    path = save(proto(numpy_helper.from_array(BIG, "w")), tmp_path)
    tensor = weight(load_model(path))
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    other.replace(path)
    assert np.array_equal(tensor.numpy(), BIG)


@pytest.mark.parametrize("change", ["longer", "shorter"])
def test_the_file_is_written_over_by_somebody(tmp_path: Path, change: str) -> None:
    path = save(proto(numpy_helper.from_array(BIG, "w")), tmp_path)
    tensor = weight(load_model(path))
    path.write_bytes(path.read_bytes() * 2 if change == "longer" else b"")
    with pytest.raises(ModelError, match="was written to after the model was loaded"):
        tensor.numpy()
    with pytest.raises(ModelError, match="was written to"):
        raw_bytes(tensor)


def test_loading_imports_no_framework(tmp_path: Path) -> None:
    path = save(proto(numpy_helper.from_array(BIG, "w")), tmp_path)
    program = f"""
        import sys
        from aigcc.ir.storage.loading import load_model
        load_model({str(path)!r})
        assert not {{"torch", "onnxruntime", "onnx_graphsurgeon"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_nothing_is_said_about_a_good_model(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(save(rich(), tmp_path))
