"""torch models become modules, with names, dynamic dims and the source line of every node."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aigcc.driver import load
from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.pt2 import from_pt2
from aigcc.ir.trace import from_torch, load_callable
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.ranges import Range, declared
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.synthetic import choose_dims

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    output_names = ("relu", "total")

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        hidden = torch.relu(self.linear(x))
        return hidden * 2, hidden.sum(-1)


@pytest.fixture(scope="module")
def traced() -> "tuple[Net, object]":
    torch.manual_seed(0)
    net = Net().eval()
    shapes = {"x": {0: torch.export.Dim("batch")}}
    return net, from_torch(net, {"x": torch.ones(2, 4)}, shapes)


def test_names_and_dynamic_dims_are_kept(traced) -> None:  # type: ignore[no-untyped-def]
    _, module = traced
    assert [(v.name, str(v.shape)) for v in module.inputs] == [("x", "[batch,4]")]
    assert [v.name for v in module.outputs] == ["relu", "total"]


def test_outputs_agree_before_and_after_the_pipeline(traced) -> None:  # type: ignore[no-untyped-def]
    net, module = traced
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    expected = [tensor.detach().numpy() for tensor in net(torch.from_numpy(x))]
    module = module.clone()
    for _ in range(2):
        outputs = OrtSession(module, optimise=False).run({"x": x})
        for name, array in zip(net.output_names, expected, strict=True):
            np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-6)
        PassManager(parse("canonicalize")).run(module)


def test_nodes_know_their_torch_source(traced) -> None:  # type: ignore[no-untyped-def]
    _, module = traced
    traces = [node.metadata_props.get("pkg.torch.onnx.stack_trace", "") for node in module.nodes()]
    assert any("test_trace.py" in trace for trace in traces)


def test_a_pt2_archive_is_read(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 4),)), tmp_path / "net.pt2")
    assert len(load(tmp_path / "net.pt2").outputs) == 2


def test_a_pt2_archive_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 4),)), path)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "pwned"),))  # type: ignore[return-value]

    torch.save((Evil(),), tmp_path / "evil.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "sample_inputs" in name:
                data = (tmp_path / "evil.pt").read_bytes()
            new.writestr(name, data)
    with pytest.raises(ModelError, match="something other than plain tensors"):
        from_pt2(tmp_path / "evil.pt2")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_a_broken_pt2_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.pt2").write_bytes(data)
    with pytest.raises(ModelError, match="archive"):
        load(tmp_path / "net.pt2")


def test_export_failures_come_with_advice() -> None:
    class Branches(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"torch\.where") as caught:
        from_torch(Branches(), (torch.ones(2),))
    assert "test_trace.py" in (caught.value.at or "")


class Cached(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Adds positions, of which there are 512, to a cache and what is new."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(512, 2))

    def forward(self, x: "torch.Tensor", past: "torch.Tensor") -> "torch.Tensor":
        together = torch.cat([past, x])
        return together + self.table[: together.shape[0]]


class Rows(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Takes its rows by so many."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return x.reshape(-1, self.by, 2) if self.by else x.reshape(4, 2) * 2


class Sum(torch.nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
        return x + y


@pytest.mark.parametrize(
    ("net", "dims", "hint"),
    [
        (Cached(), ("new", "past"), r"take .*new = Dim\('new', max=510\)"),
        (Rows(0), ("batch",), r"leave out of dynamic_shapes .*: batch is always 4"),
        (Rows(2), ("rows",), r"take _rows = Dim\('_rows', min=1\); rows = 2\*_rows"),
        (Sum(), ("one", "two"), r"take two = one"),
    ],
    ids=["bound", "fixed", "multiple", "equal"],
)
def test_what_torch_suggests_is_the_hint(net: Any, dims: tuple[str, ...], hint: str) -> None:
    shapes = tuple({0: torch.export.Dim(name)} for name in dims)
    with pytest.raises(ModelError, match="Constraints violated") as caught:
        from_torch(net, tuple(torch.ones(4, 2) for _ in dims), shapes)
    assert re.search(hint, caught.value.hint or "")
    assert "TORCH_LOGS" not in str(caught.value)


def test_callables_are_found_or_explained() -> None:
    assert load_callable("aigcc.driver:load") is load
    with pytest.raises(ModelError, match="cannot import nowhere"):
        load_callable("nowhere:net")
    with pytest.raises(ModelError, match="did you mean 'load'"):
        load_callable("aigcc.driver:laod")


class Patches(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Halves pictures and grows a cache, as far as a mask for both goes."""

    def forward(
        self, x: "torch.Tensor", past: "torch.Tensor", new: "torch.Tensor", mask: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        grown = torch.cat([past, new], 1)
        return torch.nn.functional.avg_pool2d(x, 2), grown * mask


def patches(tmp_path: Path, *, is_file: bool) -> Any:
    torch.manual_seed(0)
    dim = torch.export.Dim
    inputs = (torch.ones(2, 1, 8, 6), torch.ones(1, 4), torch.ones(1, 2), torch.ones(1, 6))
    shapes = (
        {0: dim("batch"), 2: 2 * dim("th", min=1, max=16), 3: 2 * dim("tw", min=2, max=16)},
        {1: dim("past", min=0, max=9)},
        {1: dim("new", min=1, max=3)},
        {1: dim.DYNAMIC},
    )
    if not is_file:
        return from_torch(Patches().eval(), inputs, shapes)
    program = torch.export.export(Patches().eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    return load(tmp_path / "net.pt2")


@pytest.mark.parametrize("is_file", [False, True])
def test_ranges_and_relations_of_dims_are_kept(tmp_path: Path, *, is_file: bool) -> None:
    module = patches(tmp_path, is_file=is_file)
    ranges, sizes = declared(module), choose_dims(module)
    if not is_file:
        assert ranges == {
            "batch": Range(0, None, 2),
            "th": Range(1, 16, 4),
            "tw": Range(2, 16, 3),
            "past": Range(0, 9, 4),
            "new": Range(1, 3, 2),
        }
        assert str(module.outputs[0].shape) == "[batch,1,th,tw]"
        assert str(module.outputs[1].shape) in ("[1,past + new]", "[1,new + past]")
    bounds = sorted((r.smallest, r.largest) for r in ranges.values() if r.largest)
    assert bounds == [(0, 9), (1, 3), (1, 16), (2, 16)]
    feeds = next(iter(load_samples(None, module)))
    picture, past, new, mask = (feeds[name].shape for name in ("x", "past", "new", "mask"))
    assert max(picture) == 32 and past[1] <= 9 and new[1] <= 3 and mask[1] == past[1] + new[1]
    assert sizes == choose_dims(Module.parse(module.text()))
    OrtSession(module, optimise=False).run(feeds)
