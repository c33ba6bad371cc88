"""Records: what a node, a value, a tensor or a graph carries besides its structure, as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

_QUANTIZATION = "quant_parameter_tensor_names"  # the key under which onnx_ir keeps it in `meta`
SURROGATE = re.compile("[\ud800-\udfff]")
_TORCH = re.compile(r"namespace$|pkg\.(?:torch|onnxscript)\.")


@dataclass
class Record:
    """Metadata and documentation of one object, and of the parts that belong to it.

    In JSON the metadata are plain members, `{"aigcc.bits": "4"}`, and everything else has a name
    that starts with `#`; a metadata key that itself starts with `#` gets another `#`.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    doc: str | None = None
    quantization: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Record] = field(default_factory=dict)
    attributes: dict[str, Record] = field(default_factory=dict)
    tensors: list[Record] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The members that say anything; `{}` for a record that says nothing."""
        members: dict[str, Any] = {
            ("#" + key if key.startswith("#") else key): text for key, text in self.metadata.items()
        }
        tensors = [tensor.to_json() for tensor in self.tensors]
        optional = {
            "#doc": self.doc,
            "#quantization": self.quantization,
            "#outputs": {name: part.to_json() for name, part in self.outputs.items()},
            "#attributes": {name: part.to_json() for name, part in self.attributes.items()},
            "#tensors": tensors if any(tensors) else [],
        }
        return members | {key: value for key, value in optional.items() if value}

    @classmethod
    def from_json(cls, members: object) -> Record:
        """The reverse of `to_json`.

        Raises:
            ValueError: A member has another type than it should.
        """
        record = cls()
        for key, value in _strings_to_any(members).items():
            if not key.startswith("#") or key.startswith("##"):
                record.metadata[key.removeprefix("#")] = _string(value)
            elif key == "#doc":
                record.doc = _string(value)
            elif key == "#quantization":
                record.quantization = {k: _string(v) for k, v in _strings_to_any(value).items()}
            elif key == "#outputs":
                record.outputs = _records(value)
            elif key == "#attributes":
                record.attributes = _records(value)
            elif key == "#tensors" and isinstance(value, list):
                record.tensors = [cls.from_json(part) for part in value]
            else:
                raise ValueError(f"{key!r} is no part of a fact")
        return record

    def restore(self, owner: ir.Node | ir.Value | ir.Graph | ir.TensorProtocol) -> None:
        """Give an object its metadata, documentation and quantisation annotation back."""
        if self.metadata:
            owner.metadata_props.update(self.metadata)
        if self.doc is not None:
            owner.doc_string = self.doc
        if self.quantization:
            owner.meta[_QUANTIZATION] = dict(self.quantization)

    def restore_attributes(self, attributes: Mapping[str, ir.Attr]) -> None:
        """Give attributes and their tensors their documentation and metadata back.

        Raises:
            KeyError: There is no attribute of a name in the record.
        """
        for name, record in self.attributes.items():
            attributes[name].doc_string = record.doc
            record.restore_tensors(_tensors(attributes[name]))

    def restore_tensors(self, tensors: Iterable[ir.TensorProtocol]) -> None:
        """Give tensors their metadata and documentation back."""
        for tensor, record in zip(tensors, self.tensors, strict=False):
            record.restore(tensor)


def _strings_to_any(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, not {str(value)[:40]!r}")
    for key in value:
        _string(key)
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {str(value)[:40]!r}")
    if not value.isascii() and SURROGATE.search(value):
        raise ValueError("a string holds half a character (a surrogate)")
    return value


def _records(value: object) -> dict[str, Record]:
    return {name: Record.from_json(part) for name, part in _strings_to_any(value).items()}


def node_record(node: ir.Node, brief: bool) -> Record:
    """The record of a node and of its outputs; `brief` leaves out what torch's exporter wrote."""
    outputs = {value.name: value_record(value, brief) for value in node.outputs if value.name}
    return Record(
        metadata_record(node.metadata_props, brief),
        None if brief else node.doc_string,
        outputs={name: part for name, part in outputs.items() if part.to_json()},
        attributes=_attribute_records(node.attributes.values()),
    )


def value_record(value: ir.Value, brief: bool) -> Record:
    """The record of a value, and of its tensor if it is an initializer."""
    record = Record(
        metadata_record(value.metadata_props, brief),
        value.doc_string,
        quantization=dict(value.meta.get(_QUANTIZATION) or {}),
    )
    if value.is_initializer() and value.const_value is not None:
        record.tensors = [_tensor_record(value.const_value)]
    return record


def graph_record(graph: ir.Graph, parameters: Iterable[ir.Attr], brief: bool) -> Record:
    """The record of a graph, and of the attributes of the function that it belongs to."""
    return Record(
        metadata_record(graph.metadata_props, brief),
        graph.doc_string,
        attributes=_attribute_records(parameters),
    )


def metadata_record(metadata: Mapping[str, str], brief: bool) -> dict[str, str]:
    """The metadata to keep: all, or in brief all that torch's exporter did not write."""
    return {key: text for key, text in metadata.items() if not (brief and _TORCH.match(key))}


def _attribute_records(attributes: Iterable[ir.Attr]) -> dict[str, Record]:
    records = {attr.name: _attribute_record(attr) for attr in attributes}
    return {name: record for name, record in records.items() if record.to_json()}


def _attribute_record(attr: ir.Attr) -> Record:
    tensors = [_tensor_record(tensor) for tensor in _tensors(attr)]
    return Record(doc=attr.doc_string, tensors=tensors)


def _tensors(attr: ir.Attr) -> Iterable[ir.TensorProtocol]:
    if attr.is_ref() or attr.value is None:
        return ()
    if attr.type == ir.AttributeType.TENSOR:
        return (attr.as_tensor(),)
    return attr.as_tensors() if attr.type == ir.AttributeType.TENSORS else ()


def _tensor_record(tensor: ir.TensorProtocol) -> Record:
    return Record(dict(tensor.metadata_props), tensor.doc_string)
