"""Which products of integers ONNX Runtime computes exactly on this machine, found by running them.

x86 processors without VNNI multiply uint8 by int8 with an instruction that adds two products into
16 bits and clips what does not fit: what comes out is wrong, and nothing says so. Which kernel
takes which factors depends on the processor, on the operator, and on what the runtime makes of
Q/DQ, so numbers that would be clipped are multiplied, and the products are looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant
from aigcc.runtime import OrtSession

if TYPE_CHECKING:
    from aigcc.target import Session

Array = npt.NDArray[Any]

_INPUTS, _OUTPUTS, _WIDTH = 32, 16, 8
_ROWS = (1, 5)  # one row has kernels of its own
_STEPS = 100  # of an output of 8 bits, to either side
_WRONG = 0.05  # of the largest number: clipped sums are off by a fifth and more
_LARGEST = {ir.DataType.INT8: 64, ir.DataType.UINT8: 127}  # of 7 bits: 2 * 255 * 64 < 2 ** 15

# Where operators of integers have their factors; those that are run for others take their kernels.
_FACTORS: Mapping[str, tuple[str, int, int]] = {
    "ConvInteger": ("ConvInteger", 0, 1),
    "DynamicQuantizeLSTM": ("MatMulInteger", 0, 1),
    "DynamicQuantizeMatMul": ("DynamicQuantizeLinear", 0, 1),
    "MatMulInteger": ("MatMulInteger", 0, 1),
    "MatMulIntegerToFloat": ("MatMulIntegerToFloat", 0, 1),
    "QAttention": ("MatMulInteger", 0, 1),
    "QGemm": ("QGemm", 0, 3),
    "QLinearConv": ("QLinearConv", 0, 3),
    "QLinearMatMul": ("QLinearMatMul", 0, 3),
}
_BETWEEN_QDQ = frozenset({"Conv", "Gemm", "MatMul"})
_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv"})
_ANY_SIGNS = frozenset({"ConvInteger", "MatMulInteger", *_BETWEEN_QDQ})  # int8 by uint8, too


@dataclasses.dataclass(frozen=True, order=True)
class Product:
    """A kind of product.

    Attributes:
        op: The operator; where Q/DQ around it make it one of integers, that of floats.
        first: The dtype of the first factor, "uint8" or "int8".
        second: Of the second one, which is the weight as a rule.
        bits: How many bits the numbers of the second factor make use of: 8, or 7, which is from
            -64 to 64, or from 0 to 127.
    """

    op: str
    first: str
    second: str
    bits: int


def inexact_nodes(module: Module, *, optimise: bool = False) -> list[ir.Node]:
    """The nodes whose products may be wrong when ONNX Runtime runs a module on this machine.

    Args:
        module: Sub-graphs and functions count, too.
        optimise: Whether the runtime may rewrite the module: what stands between Q/DQ is computed
            in float32 otherwise, and is exact.
    """
    return [node for node in module.nodes() if _is_inexact(node, optimise)]


@functools.cache
def inexact(*, optimise: bool = False) -> frozenset[Product]:
    """The kinds of products that are wrong here; measured when they are first asked for."""
    return probe(lambda module: OrtSession(module, optimise=optimise, threads=1))


def probe(open: Callable[[Module], Session]) -> frozenset[Product]:
    """The kinds of products that a runtime gets wrong.

    Args:
        open: Loads a module of planted products.
    """
    module, wanted = _planted()
    outputs = open(module).run(_feeds())
    return frozenset(
        product
        for name, (product, exact) in wanted.items()
        if not _error(outputs[name], exact) <= _WRONG
    )


def _is_inexact(node: ir.Node, optimise: bool) -> bool:
    if node.op_type in _FACTORS:
        op, *places = _FACTORS[node.op_type]
        factors = [node.inputs[place] for place in places]
    elif optimise and node.op_type in _BETWEEN_QDQ and node.domain in ("", "ai.onnx"):
        op, factors = node.op_type, [_before_dequantize(value) for value in node.inputs[:2]]
    else:
        return False
    first, second = factors
    if first is None or second is None or second.dtype not in _LARGEST:
        return False
    # floats are made uint8 by the operator itself
    kind = "int8" if first.dtype == ir.DataType.INT8 else "uint8"
    product = Product(op, kind, second.dtype.name.lower(), 8)
    if product not in inexact(optimise=optimise):
        return False
    narrow = dataclasses.replace(product, bits=7)
    return narrow in inexact(optimise=optimise) or not _has_seven_bits(second)


def _before_dequantize(value: ir.Value | None) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _has_seven_bits(value: ir.Value) -> bool:
    tensor = constant(value)
    if tensor is None or not tensor.size:
        return tensor is not None
    array = tensor.numpy()
    low, high = int(array.min()), int(array.max())
    if isinstance(tensor, MappedTensor):
        tensor.release()
    return max(-low, high) <= _LARGEST[tensor.dtype]


@dataclasses.dataclass(frozen=True)
class _Factors:
    """Two factors whose products are clipped in 16 bits, if anywhere.

    Attributes:
        product: Of which kind they are.
        rows: Of the first factor.
    """

    product: Product
    rows: int

    @property
    def feed(self) -> str:
        return f"{self.product.first}_{self.rows}"

    @property
    def first(self) -> Array:
        """[rows, inputs]: the largest and the lowest numbers, each twice in turn."""
        limits = np.iinfo(self.product.first)
        row = np.where(_pattern(), limits.max, limits.min).astype(self.product.first)
        return np.tile(row, (self.rows, 1))

    @property
    def second(self) -> Array:
        """[inputs, outputs]: the same for each output."""
        dtype = np.dtype(self.product.second)
        high = np.iinfo(dtype).max >> (8 - self.product.bits)
        high += self.product.bits == 7 and dtype == np.int8
        low = 0 if dtype == np.uint8 else -high
        column = np.where(_pattern(), high, low).astype(dtype)
        return np.repeat(column[:, None], _OUTPUTS, axis=1)

    @property
    def zeros(self) -> tuple[Array, Array]:
        first = np.asarray(128 if self.product.first == "uint8" else 0, self.product.first)
        middle = 1 << (self.product.bits - 1)
        second = middle if self.product.second == "uint8" else 0
        return first, np.asarray(second, self.product.second)

    @property
    def exact(self) -> Array:
        """[rows, outputs], or for a convolution [1, outputs, rows, width]."""
        wide = [factor.astype(np.float64) for factor in (self.first, self.second)]
        made = (wide[0] - self.zeros[0]) @ (wide[1] - self.zeros[1])
        return _as_image(made) if self.product.op in _CONVOLUTIONS else made


def _pattern() -> Array:
    return np.arange(_INPUTS) % 4 < 2


def _as_image(rows: Array) -> Array:
    """[1, channels, rows, width] of [rows, channels]."""
    return np.repeat(rows.T[None, :, :, None], _WIDTH, axis=3)


def _kinds() -> Iterator[Product]:
    ops = sorted({op for op, _, _ in _FACTORS.values()} | _BETWEEN_QDQ)
    for op, first, second, bits in itertools.product(
        ops, ("uint8", "int8"), ("int8", "uint8"), (8, 7)
    ):
        is_known = (first, second) != ("int8", "uint8") or op in _ANY_SIGNS
        if is_known and (first == "uint8" or op != "DynamicQuantizeLinear"):
            yield Product(op, first, second, bits)


def _feeds() -> dict[str, Array]:
    rows = itertools.product(("uint8", "int8"), _ROWS)
    made = [_Factors(Product("", first, "int8", 8), count) for first, count in rows]
    return {factors.feed: factors.first for factors in made}


def _planted() -> tuple[Module, dict[str, tuple[Product, Array]]]:
    """All kinds of products, and by output what it is of, and what is right."""
    inputs = {
        name: ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape)
        for name, array in _feeds().items()
    }
    made, wanted = _Maker(), {}
    for product, rows in itertools.product(_kinds(), _ROWS):
        if product.op in _CONVOLUTIONS and rows == 1:
            continue  # its rows are places, of which there are several
        factors = _Factors(product, rows)
        value = made.op("Cast", [_product(made, factors, inputs[factors.feed])], to=1)
        value.dtype = ir.DataType.FLOAT
        wanted[value] = product, factors.exact
    for number, value in enumerate([*made.constants, *made.values()]):
        value.name = f"v{number}"
    graph = ir.Graph(
        list(inputs.values()),
        list(wanted),
        nodes=made.nodes,
        initializers=made.constants,
        opset_imports={"": 21, "com.microsoft": 1},
        name="planted",
    )
    module = Module(ir.Model(graph, ir_version=10))
    return module, {str(value.name): what for value, what in wanted.items()}


@dataclasses.dataclass
class _Maker:
    """Makes nodes of values and arrays.

    No two products share a constant: what the runtime makes of Q/DQ depends on who else reads it.
    """

    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    constants: list[ir.Value] = dataclasses.field(default_factory=list)

    def op(self, name: str, inputs: Sequence[ir.Value | Array], **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        return self.ops(name, inputs, 1, **attributes)[0]

    def ops(
        self, name: str, inputs: Sequence[ir.Value | Array], outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """The outputs of a new node."""
        values = [self._value(given) for given in inputs]
        domain = "com.microsoft" if name in ("MatMulIntegerToFloat", "QGemm") else ""
        given = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node(domain, name, values, given, num_outputs=outputs))
        return self.nodes[-1].outputs

    def values(self) -> Iterator[ir.Value]:
        """What the nodes write."""
        for node in self.nodes:
            yield from node.outputs

    def _value(self, given: ir.Value | Array) -> ir.Value:
        if isinstance(given, ir.Value):
            return given
        self.constants.append(ir.val(None, const_value=ir.tensor(given)))
        return self.constants[-1]


def _product(make: _Maker, factors: _Factors, x: ir.Value) -> ir.Value:
    """One product of planted numbers, as its operator spells it."""
    kind, w, op = factors.product, factors.second, make.op
    a, b = factors.zeros
    one = np.asarray(1, np.float32)
    step = np.asarray(np.abs(factors.exact).max() / _STEPS, np.float32)
    if kind.op in _CONVOLUTIONS:
        x = op("Unsqueeze", [op("Transpose", [x], perm=[1, 0]), np.array([0, 3])])
        x = op("Expand", [x, np.array([1, 1, 1, _WIDTH])])
        w = np.ascontiguousarray(w.T)[:, :, None, None]
    match kind.op:
        case "ConvInteger" | "MatMulInteger":
            return op(kind.op, [x, w, a, b])
        case "MatMulIntegerToFloat":
            return op(kind.op, [x, w, one, one, a, b])
        case "QGemm":
            return op(kind.op, [x, one, a, w, one, b])
        case "QLinearConv" | "QLinearMatMul":
            return op("DequantizeLinear", [op(kind.op, [x, one, a, w, one, b, step, a]), step, a])
    floats = op("Sub", [op("Cast", [x], to=1), a.astype(np.float32)])
    if kind.op == "DynamicQuantizeLinear":
        numbers, scale, zero = make.ops(kind.op, [floats], 3)
        sums = op("Cast", [op("MatMulInteger", [numbers, w, zero, b])], to=1)
        return op("Mul", [sums, scale])
    read = op("DequantizeLinear", [op("QuantizeLinear", [floats, one, a]), one, a])
    value = op(kind.op, [read, op("DequantizeLinear", [w, one, b])])
    if kind.op != "Conv":
        return value
    return op("DequantizeLinear", [op("QuantizeLinear", [value, step, a]), step, a])


def _error(given: Array, exact: Array) -> float:
    return float(np.abs(given - exact).max() / np.abs(exact).max())
