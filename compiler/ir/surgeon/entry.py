"""The way into onnx-graphsurgeon: a guest graph whose weights stay where they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import convert_from_onnx_attr_type

from aigcc.ir.weights import raw_bytes

_PLAIN = (
    onnx_ir.AttributeType.INT,
    onnx_ir.AttributeType.INTS,
    onnx_ir.AttributeType.FLOAT,
    onnx_ir.AttributeType.FLOATS,
    onnx_ir.AttributeType.STRING,
    onnx_ir.AttributeType.STRINGS,
)
_KINDS: dict[type, str] = {
    onnx_ir.SequenceType: "sequence_type",
    onnx_ir.OptionalType: "optional_type",
    onnx_ir.SparseTensorType: "sparse_tensor_type",
}
# onnx-graphsurgeon names these by number, having no numpy type for them.
_NUMBERED = (
    onnx_ir.DataType.BFLOAT16,
    onnx_ir.DataType.FLOAT8E4M3FN,
    onnx_ir.DataType.FLOAT8E4M3FNUZ,
    onnx_ir.DataType.FLOAT8E5M2,
    onnx_ir.DataType.FLOAT8E5M2FNUZ,
)


class Weight(LazyValues):  # type: ignore[misc]
    """The values of a `gs.Constant` whose bytes stay in an onnx_ir tensor until they are read.

    Args:
        source: The tensor.
    """

    def __init__(self, source: onnx_ir.TensorProtocol) -> None:
        self.source = source
        self.shape = list(source.shape.numpy())
        self.dtype = guest_dtype(source.dtype)
        self.nbytes = source.nbytes

    @property
    def tensor(self) -> onnx.TensorProto:
        """A complete message, for `gs.export_onnx` and constant folding inside the block."""
        proto = onnx.TensorProto(
            name=self.source.name, data_type=self.source.dtype, dims=self.shape
        )
        if self.source.dtype == onnx_ir.DataType.STRING:
            proto.string_data.extend(self.source.numpy().reshape(-1).tolist())
        else:
            proto.raw_data = bytes(raw_bytes(self.source))
        return proto

    def load(self) -> npt.NDArray[Any]:
        """A writable copy of the array."""
        return np.array(self.source.numpy())


@dataclass(frozen=True)
class Origin:
    """Where a guest object came from.

    Attributes:
        guest: The graphsurgeon object (kept alive, since objects are told apart by `id`).
        home: The onnx_ir object.
        shown: What the guest said when it was made, to find out what changed.
    """

    guest: Any
    home: Any
    shown: Any


@dataclass
class Origins:
    """Where each guest object came from, by `id`.

    Attributes:
        graphs: Graphs, sub-graphs and functions; shown: `graph_facts`.
        nodes: Nodes and functions; shown: attributes.
        tensors: Values; shown: `tensor_facts`.
        weights: The tensor of each constant, those in attributes too.
    """

    graphs: dict[int, Origin] = field(default_factory=dict)
    nodes: dict[int, Origin] = field(default_factory=dict)
    tensors: dict[int, Origin] = field(default_factory=dict)
    weights: dict[int, onnx_ir.TensorProtocol] = field(default_factory=dict)


class Admission:
    """A `gs.Graph` of a model, and the origins of its parts.

    Args:
        model: The model, which is not changed.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self.origins = Origins()
        self._tensors: dict[onnx_ir.Value, gs.Tensor] = {}
        self._imports: dict[str, int] = {}  # of what is being walked
        functions = [self._function(function) for function in model.functions.values()]
        self._imports = model.opset_imports
        self.graph = self._graph(
            model.graph,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            ir_version=model.ir_version,
            functions=functions,
        )

    def _graph(self, graph: onnx_ir.Graph, **more: Any) -> gs.Graph:
        guest = gs.Graph(
            inputs=[self._tensor(v) for v in graph.inputs if not v.is_initializer()],
            nodes=[self._node(node) for node in graph],
            outputs=[self._tensor(value) for value in graph.outputs],
            name=graph.name,
            doc_string=graph.doc_string,
            opset=self._imports.get(""),
            import_domains=_domains(self._imports),
            **more,
        )
        self.origins.graphs[id(guest)] = Origin(guest, graph, graph_facts(guest))
        return guest

    def _function(self, function: onnx_ir.Function) -> gs.Function:
        self._imports = function.opset_imports
        guest = gs.Function(
            function.name,
            function.domain,
            inputs=[self._tensor(value) for value in function.inputs],
            nodes=[self._node(node) for node in function],
            outputs=[self._tensor(value) for value in function.outputs],
            doc_string=function.doc_string,
            opset=self._imports.get(""),
            import_domains=_domains(self._imports),
            attrs={a.name: self._attribute(a) for a in function.attributes.values()},
        )
        self.origins.graphs[id(guest)] = Origin(guest, function, graph_facts(guest))
        self.origins.nodes[id(guest)] = Origin(guest, function, _shown(guest.attrs))
        return guest

    def _node(self, node: onnx_ir.Node) -> gs.Node:
        attributes: dict[str, Any] = {}
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPHS and not attribute.is_ref():
                for index, graph in enumerate(attribute.value):
                    attributes[f"{attribute.name}[{index}]"] = self._graph(graph)
            elif _fits(attribute):
                attributes[attribute.name] = self._attribute(attribute)
        guest = gs.Node(
            op=node.op_type,
            name=node.name,
            attrs=attributes,
            inputs=[self._tensor(value) for value in node.inputs],
            outputs=[self._tensor(value) for value in node.outputs],
            domain=node.domain or None,
        )
        self.origins.nodes[id(guest)] = Origin(guest, node, _shown(attributes))
        return guest

    def _tensor(self, value: onnx_ir.Value | None) -> gs.Tensor:
        if value is None or not value.name:
            return gs.Variable.empty()
        if value not in self._tensors:
            if value.is_initializer() and value.const_value is not None:
                guest = self._constant(value.name, value.const_value)
            else:
                guest = gs.Variable(
                    value.name,
                    dtype=None if value.dtype is None else guest_dtype(value.dtype),
                    shape=None if value.shape is None else [_dimension(d) for d in value.shape],
                    type=_KINDS.get(type(value.type), "tensor_type"),
                )
            self._tensors[value] = guest
            self.origins.tensors[id(guest)] = Origin(guest, value, tensor_facts(guest))
        return self._tensors[value]

    def _constant(self, name: str, tensor: onnx_ir.TensorProtocol) -> gs.Constant:
        guest = gs.Constant(name, Weight(tensor))
        self.origins.weights[id(guest)] = tensor
        return guest

    def _attribute(self, attribute: onnx_ir.Attr) -> Any:
        if attribute.is_ref():
            return gs.Node.AttributeRef(
                attribute.ref_attr_name, convert_from_onnx_attr_type(attribute.type)
            )
        if attribute.type == onnx_ir.AttributeType.TENSOR:
            return self._constant(attribute.value.name or "", attribute.value)
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            return self._graph(attribute.value)
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value


def _fits(attribute: onnx_ir.Attr) -> bool:
    """Whether onnx-graphsurgeon can hold an attribute; others are kept out of its sight."""
    if attribute.is_ref():
        return True
    kinds = (*_PLAIN, onnx_ir.AttributeType.TENSOR, onnx_ir.AttributeType.GRAPH)
    return attribute.type in kinds and not isinstance(attribute.value, bytes)


def guest_dtype(dtype: onnx_ir.DataType) -> Any:
    """A dtype as onnx-graphsurgeon writes it: a numpy dtype, or a number where it has none."""
    return int(dtype) if dtype in _NUMBERED else dtype.numpy()


def graph_facts(guest: gs.Graph) -> tuple[Any, ...]:
    """What a guest graph says of itself besides its nodes."""
    names = ("name", "doc_string", "opset", "ir_version", "producer_name", "producer_version")
    return tuple(vars(guest).get(name) for name in names)  # a function has no producer


def tensor_facts(guest: gs.Tensor) -> tuple[Any, ...]:
    """What a guest tensor says of itself besides its name and values."""
    return guest.dtype, None if guest.shape is None else list(guest.shape)


def _shown(attributes: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, list) else v for k, v in attributes.items()}


def _dimension(dimension: Any) -> int | str | None:
    return dimension if isinstance(dimension, int) else dimension.value


def _domains(imports: dict[str, int]) -> list[onnx.OperatorSetIdProto]:
    return [onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()]
