"""Samples: from files, from functions, and made up; what does not fit is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from aigcc.errors import SampleError
from aigcc.ir.module import Module
from aigcc.runtime import OrtSession
from aigcc.sample_sources import MOST
from aigcc.samples import load_samples
from aigcc.synthetic import COUNT, choose_dims, vocabulary


def module(text: str) -> Module:
    return Module.parse(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')


IMAGE = module(
    """g (float[n,3,4,4] image, int64[n] label) => (float[n,3,4,4] y, int64[n] z) {
  y = Relu (image)
  z = Identity (label)
}"""
)


def sample(n: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.standard_normal((n, 3, 4, 4)).astype(np.float32),
        "label": np.zeros(n, np.int64),
    }


def test_a_folder_of_npz_is_read_in_order_and_again(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        np.savez(tmp_path / f"{index}.npz", **sample(seed=index))
    (tmp_path / ".DS_Store").touch()
    samples = load_samples(tmp_path, IMAGE)
    assert not samples.synthetic
    assert samples.source == str(tmp_path)
    for _ in range(2):
        images = [feeds["image"] for feeds in samples]
        np.testing.assert_array_equal(images, [sample(seed=i)["image"] for i in range(3)])


def test_one_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", **sample(n=2))
    (feeds,) = load_samples(str(tmp_path / "one.npz"), IMAGE)
    assert feeds["image"].shape == (2, 3, 4, 4)


def test_npy_files_are_stacked_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((5, 1, 3, 4, 4), np.float32))
    np.save(tmp_path / "label.npy", np.arange(5).reshape(5, 1))
    labels = [int(feeds["label"][0]) for feeds in load_samples(tmp_path, IMAGE)]
    assert labels == [0, 1, 2, 3, 4]


def test_npy_files_of_the_inputs_own_rank_are_one_sample(tmp_path: Path) -> None:
    for name, array in sample(n=2).items():
        np.save(tmp_path / f"{name}.npy", array)
    (feeds,) = load_samples(tmp_path, IMAGE)
    assert feeds["label"].shape == (2,)


def test_npy_files_of_different_lengths(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((5, 1, 3, 4, 4), np.float32))
    np.save(tmp_path / "label.npy", np.zeros((4, 1), np.int64))
    with pytest.raises(SampleError, match="image 5, label 4"):
        load_samples(tmp_path, IMAGE)


def test_a_function_is_called_for_each_walk_and_streams() -> None:
    made = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for index in range(3):
            made.append(index)
            yield sample(seed=index)

    samples = load_samples(feeds, IMAGE)
    assert made == [0]  # only the first sample is read to check it
    made.clear()
    assert len(list(samples)) == len(list(samples)) == 3
    assert made == [0, 1, 2, 0, 1, 2]


def test_a_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def ones():\n"
        "    yield {'image': np.ones((1, 3, 4, 4), np.float32), 'label': np.ones(1, np.int64)}\n"
        "def broken():\n"
        "    raise RuntimeError('no disk')\n"
        "number = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = load_samples("my_samples:ones", IMAGE)
    assert samples.source == "my_samples:ones"
    assert len(list(samples)) == 1
    with pytest.raises(SampleError, match=r"no disk(.|\n)*my_samples.py:5"):
        load_samples("my_samples:broken", IMAGE)
    with pytest.raises(SampleError, match="is no function"):
        load_samples("my_samples:number", IMAGE)
    with pytest.raises(SampleError, match=r"no 'brokn'(.|\n)*did you mean 'broken'"):
        load_samples("my_samples:brokn", IMAGE)
    with pytest.raises(SampleError, match="cannot be imported: ModuleNotFoundError"):
        load_samples("no_such_module:ones", IMAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgae": np.ones(1)}, "no input 'imgae'(.|\n)*did you mean 'image'"),
        ({"image": None}, "input 'image' is missing"),
        ({"image": np.ones((3, 4, 4), np.float32)}, r"takes the shape \[n, 3, 4, 4\], not"),
        ({"image": np.ones((1, 1, 4, 4), np.float32)}, r"not \[1, 1, 4, 4\]"),
        ({"image": np.ones((1, 3, 4, 4))}, r"takes float32, not float64(.|\n)*astype"),
        ({"label": np.zeros(3, np.int64)}, "dim 'n' is 1 in one input and 3 in 'label'"),
        ({"image": np.full((1, 3, 4, 4), np.nan, np.float32)}, r"48 values that are NaN"),
        ({"image": np.full((1, 3, 4, 4), np.inf, np.float32)}, r"the first at \[0, 0, 0, 0\]"),
        ({"label": np.array(["a"])}, "takes int64, not <U1"),
    ],
)
def test_what_does_not_fit(change: dict[str, np.ndarray | None], message: str) -> None:
    feeds = {k: v for k, v in {**sample(), **change}.items() if v is not None}
    with pytest.raises(SampleError, match=message):
        load_samples(lambda: [feeds], IMAGE)


def test_a_bad_sample_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", **sample())
    np.savez(tmp_path / "1.npz", image=sample()["image"])
    samples = load_samples(tmp_path, IMAGE)
    with pytest.raises(SampleError, match=r"1\.npz"):
        list(samples)


def test_an_expression_of_dims_must_hold() -> None:
    cache = module(
        """g (float[n,past] a, float[n,new] b, float["past + new"] c) => (float[n,past] y) {
  y = Relu (a)
}"""
    )
    feeds = {
        "a": np.ones((1, 2), np.float32),
        "b": np.ones((1, 3), np.float32),
        "c": np.ones(5, np.float32),
    }
    load_samples(lambda: [feeds], cache)
    feeds["c"] = np.ones(6, np.float32)
    with pytest.raises(SampleError, match="must be 5 here, and is 6"):
        load_samples(lambda: [feeds], cache)


def test_bfloat16_comes_in_three_ways(tmp_path: Path) -> None:
    brain = module("g (bfloat16[2] x) => (bfloat16[2] y) { y = Identity (x) }")
    wanted = np.array([1, 2], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", x=wanted)  # an .npz keeps only the size of the items
    ways = [tmp_path / "x.npz", lambda: [{"x": wanted}], lambda: [{"x": wanted.astype(np.float32)}]]
    for way in ways:
        (feeds,) = load_samples(way, brain)
        assert feeds["x"].dtype == wanted.dtype
        np.testing.assert_array_equal(feeds["x"], wanted)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "is empty"),
        ("notes.txt", b"hello", "notes.txt in .* cannot be read"),
        ("broken.npz", b"not a zip", "the file cannot be read"),
        ("cut.npz", b"PK\x03\x04", "the file cannot be read"),
    ],
)
def test_folders_without_samples(
    tmp_path: Path, name: str | None, content: bytes, message: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SampleError, match=message):
        load_samples(tmp_path, IMAGE)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", image=np.array([{"a": 1}], object))
    with pytest.raises(SampleError, match="never opened"):
        load_samples(tmp_path, IMAGE)


def test_no_such_place() -> None:
    with pytest.raises(SampleError, match="there are no samples at 'nowhere'"):
        load_samples("nowhere", IMAGE)


def test_a_function_without_samples() -> None:
    with pytest.raises(SampleError, match="no samples in"):
        load_samples(list, IMAGE)


def test_feeds_of_python_are_samples() -> None:
    first, second = sample(seed=0), sample(n=2, seed=1)
    several = load_samples([first, second], IMAGE)
    assert (several.source, several.synthetic) == ("2 samples", False)
    for _ in range(2):
        assert [len(feeds["label"]) for feeds in several] == [1, 2]
    (alone,) = load_samples(first, IMAGE)
    np.testing.assert_array_equal(alone["image"], first["image"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "no samples in 0 samples"),
        ([np.zeros(3)], "a sample must be a dict of input name to array, not ndarray"),
        ([{}], "the input 'image' is missing"),
        (iter([sample()]), "samples cannot be read from list_iterator"),
        (7, "samples cannot be read from int"),
        (sample, "the function returned dict"),
    ],
)
def test_what_no_samples_are(source: object, words: str) -> None:
    with pytest.raises(SampleError, match=words):
        load_samples(source, IMAGE)  # type: ignore[arg-type]


def test_a_function_that_never_ends_is_cut_off_and_that_is_said() -> None:
    one = sample()

    def endless() -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield one

    samples = load_samples(endless, IMAGE)
    assert samples.notes == []
    for _ in range(2):
        assert sum(1 for _ in samples) == MOST
    (note,) = samples.notes
    assert f"endless yields more than {MOST} samples" in note
    assert samples.describe()["notes"] == [note]


CACHED = module(
    """g (int64[batch,sequence] input_ids, int64[batch,s53] attention_mask,
   int64[batch,sequence] position_ids, float[batch,2,past,8] past_key, bool[batch] flag,
   float[batch] sigma, float[batch] timestep)
=> (float[batch,sequence,4] y, int64[batch,s53] m, float[batch,sequence,4] p)
<float[7,4] table, float[30,4] places> {
  y = Gather (table, input_ids)
  m = Identity (attention_mask)
  flat = Unsqueeze (position_ids, last)
  same = Squeeze (flat, last)
  p = Gather (places, same)
}""".replace(
        "float[30,4] places",
        "float[30,4] places = {" + ",".join("0" * 120) + "}, int64[1] last = {2}",
    ).replace("float[7,4] table", "float[7,4] table = {" + ",".join("0" * 28) + "}")
)


def test_synthetic_samples_fit_and_say_what_they_are() -> None:
    samples = load_samples(None, CACHED)
    assert samples.synthetic
    assert "synthetic" in samples.source
    every = list(samples)
    assert len(every) == COUNT
    for feeds in every:
        OrtSession(CACHED, optimise=False).run(feeds)
        assert feeds["input_ids"].max() < 7
        assert feeds["attention_mask"].min() == 1
        assert feeds["flag"].all()
        assert feeds["sigma"].min() > 0
        assert feeds["timestep"].min() >= 0 and feeds["timestep"].max() < 1000


def test_synthetic_samples_are_the_same_in_every_run() -> None:
    for one, two in zip(load_samples(None, CACHED), load_samples(None, CACHED), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_the_cache_counts_into_mask_and_positions() -> None:
    sizes = choose_dims(CACHED)
    assert sizes["s53"] == sizes["past"] + sizes["sequence"]
    feeds = next(iter(load_samples(None, CACHED)))
    assert feeds["position_ids"][0, 0] == sizes["past"]


def test_the_vocabulary_is_found_through_moves() -> None:
    inputs = {value.name: value for value in CACHED.inputs}
    assert vocabulary(inputs["input_ids"]) == 7
    assert vocabulary(inputs["position_ids"]) == 30
    assert vocabulary(inputs["attention_mask"]) is None


def test_no_shape_no_synthetic_samples() -> None:
    unknown = module("g (float[1] x, seq(float[2]) s) => (float[1] y) { y = Relu (x) }")
    with pytest.raises(SampleError, match="no inputs can be made up for 's'"):
        load_samples(None, unknown)
