"""Run a module on samples and see what its values are, without ever holding all of them."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from aigcc.analysis.streaming.plan import Segment, constants_of, cut, value_bytes
from aigcc.analysis.streaming.values import WeightStore, own, to_numpy, to_ort, trim
from aigcc.errors import CompileError, did_you_mean
from aigcc.exact import exact
from aigcc.ir.module import Module
from aigcc.ir.slots import slots
from aigcc.ranges import symbols
from aigcc.runtime import explained
from aigcc.synthetic import choose_dims

Array = npt.NDArray[Any]
Consume = Callable[[str, Array], None]

LIMIT = 256 << 20
"""Bytes of wanted and leaving values that a segment may have."""

_KIND = re.compile(r"(tensor|seq|optional)\((.+)\)")


class Stream:
    """Runs a module in ONNX Runtime and hands out its values as they are made.

    What runs is what `aigcc.exact` makes of it. The main graph is cut into segments, each a session
    of its own without optimisations, so that the values of one segment are handed out and dropped
    before the next one runs. Weights are read where they lie, in mapped files. A value is the same,
    bit by bit, wherever the cuts are, and for any number of threads that run the stream at once:
    each run uses one.

    Memory: what `limit` allows, the largest node's inputs and outputs, and what still has a reader.

    Args:
        module: Left as it is; must not change while the stream is open.
        wanted: Names of graph inputs and of outputs of the main graph's nodes.
        limit: Bytes that the wanted and the leaving values of a segment may take.

    Raises:
        CompileError: a wanted name is unknown, or names a weight; ONNX Runtime refuses a node.
    """

    def __init__(self, module: Module, wanted: Iterable[str], *, limit: int = LIMIT) -> None:
        self._module = exact(module).clone()
        self._where = str(module.path or "module")
        self._limit = limit
        self._constants = constants_of(self._module)
        self._wanted = _check_wanted(module, wanted)
        self._inputs = {value.name or "": value for value in module.graph.inputs}
        self._lock = threading.Lock()
        self._plan: _Plan | None = None
        self._store = WeightStore()
        try:
            self._store.add(self._constants.items())
            lifted = {id(tensor) for tensor in self._constants.values()}
            for slot in slots(self._module.model):
                if id(slot.tensor) not in lifted:
                    self._store.move(slot)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the sessions and the scratch file."""
        self._plan = None
        self._store.close()

    def run(self, feeds: Mapping[str, Array], consume: Consume) -> dict[str, Array]:
        """Run one sample.

        Args:
            feeds: Input name to array, as `aigcc.samples.check_feeds` returns them.
            consume: Called once for each wanted value, inputs first and then in graph order, with
                its name and its array, which is read-only and gone when the call returns.

        Returns:
            Output name to array; outputs that are no tensors are left out.

        Raises:
            CompileError: a feed is missing, a node failed, or a wanted value is no tensor.
        """
        alive = self._feed(feeds)
        plan = self._plan_for(feeds)
        for name in self._wanted:
            if name in self._inputs:
                consume(name, to_numpy(alive[name]))
            elif name in self._constants:
                consume(name, self._constants[name].numpy())
        for segment, session in plan.steps:
            with explained(self._where):
                made = session.run(segment.outputs, {n: alive[n] for n in segment.inputs})
            alive.update(zip(segment.outputs, made, strict=True))
            del made
            for name in segment.outputs:
                if name in self._wanted:
                    consume(name, to_numpy(_tensor(name, alive[name])))
            for name in segment.dead:
                del alive[name]
            for name in segment.outputs:
                if name in alive:
                    alive[name] = own(alive[name])
            trim()
        return dict(self._outputs(alive))

    def _feed(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, value in self._inputs.items():
            array = feeds.get(name)
            if array is None and value.const_value is not None:
                array = value.const_value.numpy()
            if array is None:
                raise CompileError(f"no value for the input {name!r}", at=self._where)
            if array.dtype.kind in "OSU":
                raise CompileError(
                    f"the input {name!r} is text, which cannot be handed from session to session",
                    at=self._where,
                    hint="cut the part that reads text off the model",
                )
            dtype = value.dtype or ir.DataType.from_numpy(array.dtype)
            if array.dtype != dtype.numpy():
                raise CompileError(
                    f"input {name!r} takes {dtype.numpy()}, not {array.dtype}", at=self._where
                )
            given[name] = to_ort(array, dtype)
        for name in feeds:
            if name not in self._inputs:
                raise CompileError(
                    f"the model has no input {name!r}",
                    at=self._where,
                    hint=did_you_mean(name, self._inputs),
                )
        return given

    def _plan_for(self, feeds: Mapping[str, Array]) -> _Plan:
        """The plan for these sizes, or for larger ones; a new one where there is none."""
        sizes = _sizes(self._module, feeds)
        with self._lock:
            plan = self._plan
            if plan is None or any(size > plan.sizes.get(dim, 0) for dim, size in sizes.items()):
                self._plan = None  # the old sessions go before the new ones come
                plan = self._plan = self._make_plan(sizes)
            return plan

    def _make_plan(self, sizes: Mapping[str, int]) -> _Plan:
        given = {**choose_dims(self._module), **sizes}
        segments = cut(
            self._module,
            self._constants,
            self._wanted,
            value_bytes(self._module, given),
            self._limit,
        )
        kinds = {name: _type_of(value) for name, value in self._inputs.items()}
        steps = []
        for segment in segments:
            with explained(self._where):
                session = _Session(segment, self._module, self._constants, self._store, kinds)
            kinds.update(session.kinds)
            steps.append((segment, session))
        return _Plan(dict(sizes), steps)

    def _outputs(self, alive: Mapping[str, Any]) -> Iterable[tuple[str, Array]]:
        for value in self._module.outputs:
            name = value.name or ""
            if name in self._constants:
                yield name, self._constants[name].numpy()
            elif alive[name].is_tensor():
                yield name, np.array(to_numpy(alive[name]))


@dataclasses.dataclass(frozen=True)
class _Plan:
    sizes: Mapping[str, int]
    steps: list[tuple[Segment, _Session]]


class _Session:
    """One segment in ONNX Runtime; `kinds` are the types of its outputs."""

    def __init__(
        self,
        segment: Segment,
        module: Module,
        constants: Mapping[str, ir.TensorProtocol],
        store: WeightStore,
        kinds: Mapping[str, onnx.TypeProto],
    ) -> None:
        options = _options()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(store.folder)
        )
        graph = onnx.GraphProto(name="segment")
        graph.node.extend(ir.serde.serialize_node(node) for node in segment.nodes)
        for name in segment.inputs:
            graph.input.add(name=name, type=kinds[name])
        for name in segment.outputs:
            graph.output.add(name=name)
        self._weights = []  # which the session does not keep alive
        for name in segment.constants:
            proto, weight = store.initializer(name, constants[name])
            graph.initializer.append(proto)
            if weight is not None:
                options.add_initializer(name, weight)
                self._weights.append(weight)
        text = _model(module, graph).SerializeToString()
        self._session = ort.InferenceSession(text, options, providers=["CPUExecutionProvider"])
        self.kinds = {value.name: _type(value.type) for value in self._session.get_outputs()}

    def run(self, outputs: Iterable[str], feeds: Mapping[str, Any]) -> list[Any]:
        made: list[Any] = self._session.run_with_ort_values(list(outputs), dict(feeds))
        return made


def _options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; nothing is printed besides
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _model(module: Module, graph: onnx.GraphProto) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=module.model.ir_version, graph=graph)
    for domain, version in module.model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    functions = module.model.functions.values()
    proto.functions.extend(ir.serde.serialize_function(function) for function in functions)
    return proto


def _type(kind: str) -> onnx.TypeProto:
    """The type that ONNX Runtime calls `tensor(float)`, `seq(tensor(float))` and so on."""
    match = _KIND.fullmatch(kind)
    assert match is not None, kind
    proto = onnx.TypeProto()
    if match[1] == "tensor":
        proto.tensor_type.elem_type = int(ir.DataType[match[2].upper()])
    elif match[1] == "seq":
        proto.sequence_type.elem_type.CopyFrom(_type(match[2]))
    else:
        proto.optional_type.elem_type.CopyFrom(_type(match[2]))
    return proto


def _type_of(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
    return proto


def _tensor(name: str, value: Any) -> Any:
    if not value.is_tensor():
        raise CompileError(
            f"{name!r} is no tensor, and only tensors can be looked at", hint="leave it out"
        )
    return value


def _check_wanted(module: Module, wanted: Iterable[str]) -> dict[str, None]:
    names = dict.fromkeys(wanted)
    made = {value.name or "" for node in module.graph for value in node.outputs}
    known = {*made, *(value.name or "" for value in module.graph.inputs)} - {""}
    for name in names:
        if name in known:
            continue
        if name in module.graph.initializers:
            raise CompileError(
                f"{name!r} is a weight: it is the same for all samples",
                hint="name a graph input or what a node of the main graph makes",
            )
        raise CompileError(
            f"the main graph has no value {name!r}",
            at=str(module.path or "module"),
            hint=_nearest(name, known),
        )
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    if hint.startswith("known"):
        return "name a graph input or what a node of the main graph makes, not of a sub-graph"
    return hint


def _sizes(module: Module, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of symbolic dims in one sample."""
    sizes: dict[str, int] = {}
    for value in module.inputs:
        for dim, size in zip(value.shape or (), feeds[value.name or ""].shape, strict=False):
            if symbols(dim) == {str(dim)}:
                sizes[str(dim)] = size
    return sizes
