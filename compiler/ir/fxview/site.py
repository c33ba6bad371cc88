"""One ONNX node under conversion: its attributes, its inputs in the form that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import fx

from aigcc.errors import ModelError
from aigcc.ir.fxview.bodies import default_of
from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import Expr, Recorder, recorded
from aigcc.ir.fxview.registry import Converter, key
from aigcc.ir.fxview.unsigned import WIDER, widened
from aigcc.ir.fxview.weights import is_trained
from aigcc.ir.text.facts import module_path, source_line

if TYPE_CHECKING:
    from aigcc.ir.fxview.frame import Frame

SMALL = 1024
"""Up to this many elements a constant is folded."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A constant of the model.

    Attributes:
        value: What it is called.
        tensor: What it holds.
        path: Its name in the GraphModule.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    path: str


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A vector of whole numbers, or a single one, whose elements are known one by one.

    Attributes:
        items: Python ints, and proxies of them.
        dtype: Of the tensor that this stands for.
        is_vector: Of rank one; rank zero otherwise.
    """

    items: tuple[Any, ...]
    dtype: torch.dtype = torch.int64
    is_vector: bool = True

    def is_known(self) -> bool:
        """Whether every element is a number by now."""
        return not any(isinstance(item, fx.Proxy) for item in self.items)

    def tensor(self) -> torch.Tensor:
        """The tensor, where every element is known."""
        return torch.tensor(self.items if self.is_vector else self.items[0], dtype=self.dtype)


Handle = Stored | Sizes | torch.Tensor | fx.Proxy
"""What stands for an ONNX value: a tensor is the result of folding."""


def is_small(handle: Handle | None) -> bool:
    """Whether a constant can be folded: whole numbers and scalars, and never what is trained."""
    if isinstance(handle, Stored):
        tensor = handle.tensor
        if tensor.dtype not in TORCH:
            return False
        return (
            tensor.size <= SMALL if not tensor.dtype.is_floating_point() else not len(tensor.shape)
        )
    if isinstance(handle, Sizes):
        return handle.is_known()
    return handle is None or (isinstance(handle, torch.Tensor) and handle.numel() <= SMALL)


@dataclasses.dataclass
class Site:
    """A node, seen by its converter.

    Attributes:
        node: The ONNX node.
        frame: The graph or function call that it is in.
        opset: The version of its domain.
        converter: What converts it.
        is_folding: Its inputs are tensors, and its outputs are computed at once.
    """

    node: ir.Node
    frame: Frame
    opset: int
    converter: Converter
    is_folding: bool = False

    @property
    def recorder(self) -> Recorder:
        """Where calls are recorded."""
        return self.frame.recorder

    @property
    def device(self) -> Any:
        """Where to make new tensors."""
        return torch.device("cpu") if self.is_folding else self.recorder.device

    def refuse(self, what: str, hint: str | None = None) -> NoReturn:
        """Raise a ModelError about this node."""
        raise ModelError(
            f"{self.node.op_type} cannot become torch: {what}", at=place(self.node), hint=hint
        )

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; or its default in this opset, or else `default`."""
        assert name in self.converter.attributes, f"the converter does not declare {name!r}"
        found = self.node.attributes.data.get(name)
        if found is not None:
            return found.value
        known = default_of(*key(self.node), self.opset, name)
        return default if known is None else known

    def flag(self, name: str, default: int = 0) -> bool:
        """An attribute that is zero or one."""
        return bool(self.attribute(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attribute(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def has(self, index: int) -> bool:
        """Whether input `index` is there."""
        inputs = self.node.inputs
        return index < len(inputs) and inputs[index] is not None

    def handle(self, index: int) -> Handle | None:
        """What stands for input `index`."""
        value = self.node.inputs[index] if self.has(index) else None
        return None if value is None else self.frame.lookup(value)

    def dtype(self, index: int = 0) -> ir.DataType:
        """The element type of input `index`."""
        return self._type_of(self.node.inputs[index])

    def out_dtype(self, index: int = 0) -> ir.DataType:
        """The element type of output `index`."""
        return self._type_of(self.node.outputs[index])

    def _type_of(self, value: ir.Value | None) -> ir.DataType:
        if value is None or value.dtype is None:
            self.refuse(f"the type of {value.name if value else 'an input'} is not known")
        return value.dtype

    def is_float(self, index: int = 0) -> bool:
        """Whether input `index` holds floats."""
        return self.dtype(index).is_floating_point()

    def torch_dtype(self, index: int = 0) -> torch.dtype:
        """The torch type of output `index`."""
        return TORCH[self.out_dtype(index)]

    def dims(self, index: int) -> list[int | None] | None:
        """The static dims of input `index`, None for what is symbolic; None where rank is open."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is None or value.shape is None:
            return None
        return [dim if isinstance(dim, int) else None for dim in value.shape]

    def rank(self, index: int = 0) -> int | None:
        """The rank of input `index`, where it is known."""
        dims = self.dims(index)
        return None if dims is None else len(dims)

    def need_rank(self, index: int = 0) -> int:
        """The rank of input `index`; refuses where it is not known."""
        rank = self.rank(index)
        if rank is None:
            self.refuse("the rank of its input is not known")
        return rank

    def axis(self, axis: int, index: int = 0) -> int:
        """An axis counted from the front, where the rank is known."""
        rank = self.rank(index)
        return axis if axis >= 0 or rank is None else axis + rank

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """The array of input `index` if it is a constant, else None."""
        handle = self.handle(index)
        if isinstance(handle, Stored):
            return handle.tensor.numpy()
        if isinstance(handle, Sizes) and handle.is_known():
            handle = handle.tensor()
        return handle.numpy() if isinstance(handle, torch.Tensor) else None

    def is_trained(self, index: int) -> bool:
        """Whether input `index` may need a gradient: a parameter, or anything computed."""
        handle = self.handle(index)
        if isinstance(handle, Stored):
            return is_trained(handle.value, handle.tensor)
        return isinstance(handle, fx.Proxy)

    def setting(self, index: int) -> npt.NDArray[Any] | None:
        """The constant of input `index`, None if it is left out; refuses what is computed."""
        found = self.constant(index)
        if found is None and self.has(index):
            name = getattr(self.node.inputs[index], "name", None)
            self.refuse(f"input {index} ({name}) is computed, and has to be a constant")
        return found

    def tensor(self, index: int) -> Expr:
        """Input `index` as a tensor."""
        handle = self.handle(index)
        if handle is None:
            return None
        made = self.frame.folded(handle) if self.is_folding else self.frame.tensor(handle)
        value = self.node.inputs[index]
        return made if value is None else widened(made, value.dtype, self.converter.wide)

    def number(self, index: int) -> Expr:
        """Input `index` as a Python number where it is a constant of one element, or a tensor."""
        handle = self.handle(index)
        if self.is_folding or handle is None or self._is_unsigned(index):
            return self.tensor(index)
        if isinstance(handle, Sizes) and not handle.is_vector:
            return handle.items[0]
        found = self.constant(index) if self._is_scalar(handle, index) else None
        return self.tensor(index) if found is None else as_number(found)

    def gives_tensor(self, index: int) -> bool:
        """Whether `number` gives a tensor."""
        handle = self.handle(index)
        if self.is_folding or handle is None or self._is_unsigned(index):
            return handle is not None
        if isinstance(handle, Sizes):
            return handle.is_vector
        return not self._is_scalar(handle, index)

    def _is_scalar(self, handle: Handle, index: int) -> bool:
        """Whether a constant has one element, and adds no axis to what it is combined with."""
        if isinstance(handle, Stored):
            shape = handle.tensor.shape.numpy()
        elif isinstance(handle, torch.Tensor):
            shape = tuple(handle.shape)
        else:
            return False
        others = [self.rank(i) for i in range(len(self.node.inputs)) if i != index]
        return not shape or (
            all(dim == 1 for dim in shape)
            and any(rank is not None and rank >= len(shape) for rank in others)
        )

    def _is_unsigned(self, index: int) -> bool:
        value = self.node.inputs[index]
        return value is not None and value.dtype in WIDER

    def sizes(self, index: int) -> list[Any] | Expr | None:
        """Input `index` as a list of whole numbers; one proxy where their count is not known."""
        handle = self.handle(index)
        if handle is None:
            return None
        known = as_sizes(handle)
        if known is not None:
            return list(known.items)
        dims = self.dims(index)
        numbers = whole_numbers(self.tensor(index))
        if dims is not None and len(dims) == 1 and dims[0] is not None and not self.is_folding:
            return [numbers[at] for at in range(dims[0])]
        return numbers

    def new(self, sizes: Any, is_vector: bool = True) -> Sizes:
        """Whole numbers of the type of the node's output."""
        return Sizes(tuple(sizes), self.torch_dtype(), is_vector)


def as_number(array: npt.NDArray[Any]) -> int | float | bool:
    """The Python number in an array of one element."""
    (number,) = array.reshape(-1)
    return number.item() if array.dtype.kind in "biuf" else float(number)


@recorded
def whole_numbers(x: torch.Tensor) -> list[int]:
    """The elements of a tensor as Python ints."""
    return [int(number) for number in x.reshape(-1).tolist()]


@recorded
def tensor_of(numbers: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Whole numbers, such as sizes, as a tensor."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def as_sizes(handle: Handle | None) -> Sizes | None:
    """A handle as whole numbers, where they are known one by one."""
    if isinstance(handle, Sizes):
        return handle
    if isinstance(handle, Stored) and handle.tensor.dtype.is_integer() and is_small(handle):
        array = handle.tensor.numpy()
        dtype = TORCH[handle.tensor.dtype]
    elif isinstance(handle, torch.Tensor) and not handle.is_floating_point():
        array, dtype = handle.numpy(), handle.dtype
    else:
        return None
    if array.ndim > 1 or array.dtype == np.bool_:
        return None
    return Sizes(tuple(int(item) for item in array.reshape(-1)), dtype, array.ndim == 1)


def place(node: ir.Node) -> str:
    """A node, and the torch source line that it came from."""
    line = source_line(node.metadata_props)
    name = node.name or (node.outputs[0].name if node.outputs else "") or "?"
    return f"node {name!r}" + (f", from {line}" if line else "")


def origin(node: ir.Node) -> Mapping[str, Any]:
    """What an FX node says about the ONNX node that it was made of."""
    domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
    facts = {
        "onnx_node": node.name,
        "onnx_op": f"{domain}{node.op_type}",
        "module_path": module_path(node.metadata_props),
        "source": source_line(node.metadata_props),
        "stack_trace": node.metadata_props.get("pkg.torch.onnx.stack_trace"),
    }
    return {key: fact for key, fact in facts.items() if fact}
