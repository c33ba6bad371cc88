"""Where an interrupted or finished calibration is kept, and how it is told from all others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from aigcc.analysis.calibration.result import Calibration
from aigcc.errors import ArtifactError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.weights import fingerprint
from aigcc.samples import Feeds, Samples


class SampleDigest:
    """A hash of the contents of samples in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

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


def cache_file(folder: Path, module: Module, options: object) -> Path:
    """The file for a model and options; another one when a weight, a node or an option changes."""
    return folder / f"calibration-{digest_with(module, options)}.npz"


def digest_with(module: Module, options: object) -> str:
    """A hash of a model with its weights, of options, and of ONNX Runtime's version."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in _facts(module):
        digest.update(repr(fact).encode())
    digest.update(repr((options, onnxruntime.__version__)).encode())
    return digest.hexdigest()


def resume(
    file: Path | None, samples: Samples, fresh: Calibration
) -> tuple[Calibration, Iterator[Feeds], SampleDigest]:
    """A state to go on from, with the samples that it has not seen and the digest of the others.

    That is what `file` holds, if the first samples are those that it has seen, else `fresh`.
    """
    if file is not None and file.is_file():
        try:
            found = Calibration.load(file)
        except ArtifactError:
            found = fresh  # what cannot be read is made again
        walk, digest = iter(samples), SampleDigest()
        for feeds in islice(walk, found.samples):
            digest.add(feeds)
        if digest.text() == found.digest:
            return found, walk, digest
    return fresh, iter(samples), SampleDigest()


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
