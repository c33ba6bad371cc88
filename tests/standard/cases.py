"""The ONNX standard's own tests of its operators, made by the installed `onnx` package."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("simple", "pytorch-operator", "pytorch-converted")
"""Small models that lie in the package as files; the tests of single nodes are made by code."""

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, one set of inputs, and what has to come out.

    Attributes:
        name: Where it is from and what it is called, such as `node/test_abs`.
        model: The model; not to be changed.
        feeds: Input name to array; a sequence is a list, an optional that is empty is None.
        wanted: Output name to array, in the same way.
        rtol: How far a number may be off, relative to itself.
        atol: How far it may be off besides.
        is_random: Whether the numbers are drawn anew in each run.
    """

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    wanted: dict[str, Any]
    rtol: float = 1e-3
    atol: float = 1e-7
    is_random: bool = False


def all_cases() -> dict[str, Case]:
    """Every case by its name, in a fixed order."""
    return {case.name: case for case in [*_nodes(), *_files()]}


@functools.cache
def _made() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        made = collect_testcases(None)
    return sorted(made, key=lambda test: test.name)


def _nodes() -> Iterator[Case]:
    for test in _made():
        inputs, outputs = test.data_sets[0]
        yield _case(f"node/{test.name}", test.model, inputs, outputs, test)


def _files() -> Iterator[Case]:
    from onnx.backend.test.loader import load_model_tests

    for kind in KINDS:
        for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            data = folder / "test_data_set_0"
            inputs, outputs = (
                [
                    _read(data / f"{side}_{index}.pb", value.type)
                    for index, value in enumerate(values)
                ]
                for side, values in (("input", _fed(model)), ("output", model.graph.output))
            )
            yield _case(f"{kind}/{test.name}", model, inputs, outputs, test)


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _case(name: str, model: onnx.ModelProto, inputs: Any, outputs: Any, test: Any) -> Case:
    feeds = {v.name: _array(x) for v, x in zip(_fed(model), inputs, strict=True)}
    wanted = {v.name: _array(x) for v, x in zip(model.graph.output, outputs, strict=True)}
    is_random = any(_draws(node) for node in model.graph.node)
    return Case(name, model, feeds, wanted, test.rtol, test.atol, is_random)


def _array(thing: Any) -> Any:
    if isinstance(thing, onnx.TensorProto):
        return numpy_helper.to_array(thing)
    if isinstance(thing, list):
        return [_array(item) for item in thing]
    return None if thing is None else np.asarray(thing)


def _draws(node: onnx.NodeProto) -> bool:
    """Whether a node draws random numbers: some always do, Dropout where it may train."""
    return node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) == 3)
