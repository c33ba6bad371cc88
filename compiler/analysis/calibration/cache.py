"""Where interrupted and finished calibrations are kept, and how they are told from each other."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from aigcc.analysis.calibration.result import Calibration, seen_by
from aigcc.errors import ArtifactError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.weights import fingerprint
from aigcc.samples import Feeds, Samples

_SETS = 6  # of two searches: all samples, and two folds of them


class SampleDigest:
    """A hash of the contents of samples in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def copy(self) -> SampleDigest:
        """Another one that has taken in the same samples."""
        made = SampleDigest()
        made._digest = self._digest.copy()
        return made

    def add(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take in the next sample."""
        for name, array in sorted(feeds.items()):
            self._digest.update(repr((name, array.dtype.name, array.shape)).encode())
            if array.dtype == object:
                self._digest.update(repr(array.tolist()).encode())
            else:
                self._digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)

    def text(self) -> str:
        """The hash so far, as hexadecimal digits."""
        return self._digest.hexdigest()


def digest_of(feeds: Feeds) -> str:
    """A hash of the contents of one sample."""
    digest = SampleDigest()
    digest.add(feeds)
    return digest.text()


def cache_files(folder: Path, module: Module, options: object) -> list[Path]:
    """The files for a model and options, each for other samples; not all of them need exist.

    They are others when a weight, a node or an option changes.
    """
    stem = f"calibration-{digest_with(module, options)}"
    return [folder / f"{stem}{f'-{number}' if number else ''}.npz" for number in range(_SETS)]


def digest_with(module: Module, options: object) -> str:
    """A hash of a model with its weights, of options, and of ONNX Runtime's version."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in _facts(module):
        digest.update(repr(fact).encode())
    digest.update(repr((options, onnxruntime.__version__)).encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a calibration begins, or goes on.

    Attributes:
        state: What is known already.
        unseen: The samples that have no part in it.
        digest: Of the others.
        file: Where the state is kept, if anywhere.
    """

    state: Calibration
    unseen: Iterator[Feeds]
    digest: SampleDigest
    file: Path | None


def resume(files: Sequence[Path], samples: Samples, fresh: Calibration) -> Start:
    """Go on from the file that has seen most of the first samples and no others, or begin afresh.

    What begins afresh takes a free file, or that of samples which were used the longest ago.
    """
    seen = dict(_readable(files))
    most = max((count for count, _ in seen.values()), default=0)
    walk, digest, count = iter(samples), SampleDigest(), 0
    found: tuple[Path, int, SampleDigest] | None = None
    kept = {known: file for file, known in seen.items()}
    for count, feeds in enumerate(islice(walk, most), 1):
        digest.add(feeds)
        file = kept.get((count, digest.text()))
        if file is not None:
            found = file, count, digest.copy()
    if found is None:
        age = {file: file.stat().st_mtime_ns if file in seen else 0 for file in files}
        oldest = min(files, key=age.__getitem__, default=None)
        return Start(fresh, iter(samples), SampleDigest(), oldest)
    file, known, digest = found
    try:
        state = Calibration.load(file)
    except ArtifactError:
        state = fresh  # what cannot be read is made again
    if state.digest != digest.text():  # or another process has just written it
        return Start(fresh, iter(samples), SampleDigest(), file)
    return Start(state, walk if known == count else islice(samples, known, None), digest, file)


def _readable(files: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, str]]]:
    for file in files:
        with contextlib.suppress(ArtifactError):
            yield file, seen_by(file)


def _facts(module: Module) -> Iterator[object]:
    yield module.model.ir_version, sorted(module.model.opset_imports.items())
    for graph in module.graphs():
        yield "graph", graph.identifier() if isinstance(graph, ir.Function) else None
        yield [(value.name, str(value.type)) for value in graph.inputs]
        yield [value.name for value in graph.outputs]
        yield from _weights(graph)
        for node in graph:
            yield node.op_identifier()
            yield [value.name if value else None for value in node.inputs]
            yield [value.name for value in node.outputs]
            yield from sorted(
                (name, attribute.type.name, _content(attribute))
                for name, attribute in node.attributes.items()
            )


def _weights(graph: GraphLike) -> Iterator[object]:
    if isinstance(graph, ir.Function):
        return
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield name, _tensor(value.const_value)


def _content(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    match attribute.type:
        case ir.AttributeType.TENSOR:
            return _tensor(attribute.as_tensor())
        case ir.AttributeType.TENSORS:
            return repr([_tensor(tensor) for tensor in attribute.as_tensors()])
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
            return ""  # it comes later, as a graph of its own
        case _:
            return repr(attribute.value)


def _tensor(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} {fingerprint(tensor).hex()}"
