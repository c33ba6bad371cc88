"""Attributes and tensors as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.storage.mapped import SparseTensor
from aigcc.ir.text.dataref import Place, WeightFile, place_of, reference_text
from aigcc.ir.text.literals import identifier_text, name_text, string_text
from aigcc.ir.text.tensortext import SparseConstant, elements_text, floats_text
from aigcc.ir.text.typetext import type_text


@dataclass(frozen=True)
class Style:
    """What goes into the text.

    Attributes:
        folder: Where the text is going to be: references to data are relative to it.
        data: Takes the weights that are neither inline nor in a file yet.
        inline_limit: Up to how many elements a tensor is printed inline; None: all that no file
            holds.
        brief: Leave out what torch's exporter wrote, except the module path and the source line.
        bare: Leave out node names and all facts but types, and align these.
    """

    folder: Path = field(default_factory=Path)
    data: WeightFile | None = None
    inline_limit: int | None = None
    brief: bool = False
    bare: bool = False


class AttributePrinter:
    """Prints everything in an attribute but graphs."""

    def __init__(self, style: Style) -> None:
        self._style = style

    def attribute(self, attr: ir.Attr) -> str:
        """`name: type = value`; a function's attribute may lack the value, or both."""
        text = identifier_text(attr.name)
        if attr.type != ir.AttributeType.UNDEFINED:
            text += f": {attr.type.name.lower()}"
        if attr.ref_attr_name is not None:
            return f"{text} = @{identifier_text(attr.ref_attr_name)}"
        return text if attr.value is None else f"{text} = {self._value(attr)}"

    def _value(self, attr: ir.Attr) -> str:
        kind = attr.type.name
        plural = kind.endswith("S")
        values = attr.value if plural else (attr.value,)
        if kind in ("INT", "INTS"):
            texts = [str(value) for value in values]
        elif kind in ("FLOAT", "FLOATS"):
            with np.errstate(over="ignore"):
                texts = floats_text(np.array(values, np.float32))
        elif kind in ("STRING", "STRINGS"):
            texts = [string_text(value) for value in values]
        elif kind in ("TYPE_PROTO", "TYPE_PROTOS"):
            texts = [type_text(value.type, value.shape) for value in values]
        elif kind in ("SPARSE_TENSOR", "SPARSE_TENSORS"):
            texts = [self._sparse_constant(value) for value in values]
        else:
            texts = [self._tensor(value) for value in values]
        return f"[{', '.join(texts)}]" if plural else texts[0]

    def _tensor(self, tensor: ir.TensorProtocol) -> str:
        """A tensor in an attribute: `float[2] {1, 2}`."""
        text = type_text(ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()))
        if tensor.name:
            text += f" {name_text(tensor.name)}"
        data = self.data(tensor)
        return f"{text} {data}" if data.startswith("{") else f"{text} = {data}"

    def _sparse_constant(self, value: Any) -> str:
        type_ = type_text(ir.TensorType(value.values.dtype), ir.Shape(value.dims))
        return f"{type_} = {self._sparse(value)}"

    def _sparse(self, value: SparseTensor | SparseConstant) -> str:
        return f"sparse {{{self._tensor(value.values)}, {self._tensor(value.indices)}}}"

    def data(self, tensor: ir.TensorProtocol) -> str:
        """The elements of a tensor, or a reference to where they are, or `...`."""
        if isinstance(tensor, SparseTensor):
            return self._sparse(tensor)
        style = self._style
        beside = style.data.path if style.data is not None else None
        place = place_of(tensor, style.inline_limit, beside)
        if place is Place.INLINE:
            return f"{{{', '.join(elements_text(tensor))}}}"
        if isinstance(tensor, ir.ExternalTensor) and place is Place.ITS_FILE:
            return reference_text(tensor, style.folder)
        if style.data is None:
            return "..."
        return reference_text(style.data.add(tensor), style.folder)
