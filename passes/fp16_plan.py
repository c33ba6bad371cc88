"""Which nodes of a graph may compute in float16, and which should, so that few casts remain."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import SMALL, constant, is_small

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)

# Sums, powers, exponentials and angles leave the range or the precision of float16 for ordinary
# inputs. The list follows torch.autocast, less what devices accumulate in float32 by themselves
# (softmax and the normalizations).
KEPT = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atanh", "Cos", "Cosh", "CumProd", "CumSum", "DFT", "Det",
        "Exp", "Log", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "STFT",
        "Sin", "Sinh", "Softplus", "Sqrt", "Tan",
    }
)  # fmt: skip

# Whole numbers behind these are no longer positions.
_ENDS_OF_POSITIONS = frozenset({"Cos", "DequantizeLinear", "Sin"})

# What pays for casts around it. Every other operator goes along with its neighbours.
HEAVY = frozenset(
    {
        "Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM",
        "MatMul", "RNN",
    }
)  # fmt: skip

# Operators whose result type is an attribute, with its name.
TYPED_BY_ATTRIBUTE = {
    "Cast": "to",
    "ConstantOfShape": "value",
    "EyeLike": "dtype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
}

# The result has the type of this input, though the schema does not tie the two.
_TYPED_BY_INPUT = {"DequantizeLinear": 1}


@dataclasses.dataclass(frozen=True)
class Slots:
    """The places of a node where float32 may become float16: positions of inputs and outputs."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def slots(node: ir.Node, opset: int) -> Slots | str:
    """The convertible places of a node, or the reason why there are none."""
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return f"{node.op_type} holds sub-graphs"
    allowed = _half_types(node.domain, node.op_type, opset)
    if allowed is None:
        return f"{node.op_type} has no schema that tells its types"
    inputs, outputs = allowed
    found = frozenset(
        i for i, v in enumerate(node.inputs) if is_float(v) and inputs[min(i, len(inputs) - 1)]
    )
    tied = {inputs[min(i, len(inputs) - 1)] for i in found}
    made = frozenset(
        i
        for i, v in enumerate(node.outputs)
        if is_float(v) and _becomes_half(node, outputs[min(i, len(outputs) - 1)], tied, found)
    )
    return Slots(found, made)


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == FLOAT


def _becomes_half(node: ir.Node, variable: str, tied: set[str], found: frozenset[int]) -> bool:
    if not variable:
        return False
    if node.op_type in TYPED_BY_ATTRIBUTE:
        return True
    return variable in tied or _TYPED_BY_INPUT.get(node.op_type) in found


@functools.cache
def _half_types(
    domain: str, op_type: str, opset: int
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """For each formal input and output its type variable, or "" where that excludes float16."""
    if domain not in ("", "ai.onnx") or not onnx.defs.has(op_type, opset):
        return None
    schema = onnx.defs.get_schema(op_type, opset)
    variables = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if "tensor(float16)" in constraint.allowed_type_strs
    }

    def names(formals: list[onnx.defs.OpSchema.FormalParameter]) -> tuple[str, ...]:
        return tuple(f.type_str if f.type_str in variables else "" for f in formals) or ("",)

    return names(schema.inputs), names(schema.outputs)


@dataclasses.dataclass
class Plan:
    """What each node of the main graph computes in.

    Attributes:
        places: The convertible places of the nodes that have some.
        half: Those among them that shall compute in float16.
        pinned: Why a node must stay as it is, for those that touch float32.
        border: The element type that graph inputs and outputs keep or get.
    """

    places: dict[ir.Node, Slots]
    half: set[ir.Node]
    pinned: dict[ir.Node, str]
    border: ir.DataType

    def wants(self, node: ir.Node, position: int) -> ir.DataType:
        """The element type of a float input of a node."""
        slots = self.places.get(node)
        return HALF if slots and node in self.half and position in slots.inputs else FLOAT

    def makes(self, value: ir.Value) -> ir.DataType:
        """The element type that a float value is computed in."""
        node = value.producer()
        if node is None:
            return self.border
        slots = self.places.get(node)
        position = node.outputs.index(value)
        return HALF if slots and node in self.half and position in slots.outputs else FLOAT


def make_plan(
    module: Module, border: ir.DataType, reads: dict[ir.Value, str], inside: dict[ir.Node, str]
) -> Plan:
    """Decide for every node of the main graph.

    Heavy operators compute in float16, `KEPT` ones and those of `reads` in float32, and all
    others go along: they start in float32 where everything they read is, and then change
    to float16 wherever that costs no more casts.

    Args:
        module: The module; every value has a type.
        border: The element type of graph inputs and outputs.
        reads: Values that float16 cannot hold, with the reason.
        inside: Nodes that compute with such, with the reason.
    """
    plan = Plan({}, set(), {}, border)
    free: list[ir.Node] = []
    angles: set[ir.Value] = set()
    for node in module.graph:
        if not any(is_float(value) for value in (*node.inputs, *node.outputs)):
            continue
        places = slots(node, module.opset)
        reason = (
            places if isinstance(places, str) else _pin(node, places, reads) or inside.get(node)
        )
        if not isinstance(places, str) and _is_index_like(node, angles):
            angles.update(node.outputs)
        if reason or isinstance(places, str):
            plan.pinned[node] = reason or ""
            continue
        if not places.inputs and not places.outputs:
            plan.pinned[node] = ""
            continue
        plan.places[node] = places
        if node.op_type in HEAVY and node.outputs[0] not in angles:
            plan.half.add(node)
        else:
            free.append(node)
            if not _starts_in_float(node, plan):
                plan.half.add(node)
    _settle(free, plan)
    return plan


def _pin(node: ir.Node, places: Slots, reads: dict[ir.Value, str]) -> str:
    """Why a node must compute in float32; empty where it need not."""
    if node.op_type in KEPT:
        return f"{node.op_type} leaves the range or precision of float16 easily"
    made = node.outputs[0].dtype
    if node.op_type == "Cast" and made is not None and made.is_integer():
        return "float16 holds whole numbers only up to 2048"
    touched = [node.inputs[position] for position in places.inputs]
    touched += [node.outputs[position] for position in places.outputs]
    for value in touched:
        if value is not None and value in reads:
            return f"{value.name} {reads[value]}"
    return ""


def _is_index_like(node: ir.Node, angles: set[ir.Value]) -> bool:
    """Whether a node computes positions or time steps: from whole numbers and small constants.

    Their products with frequencies become angles, and float16 would round those by whole turns.
    """
    if node.op_type in _ENDS_OF_POSITIONS:
        return False
    for value in node.inputs:
        if value is None or value in angles:
            continue
        tensor = constant(value)
        if tensor is not None:
            if not is_small(tensor):
                return False
        elif is_float(value):
            return False
    return True


def _starts_in_float(node: ir.Node, plan: Plan) -> bool:
    computed = [v for v in node.inputs if v is not None and is_float(v) and constant(v) is None]
    if computed:
        return all(plan.makes(value) == FLOAT for value in computed)
    return not any(_is_large(value) for value in node.inputs)


def _is_large(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.nbytes > SMALL


def _settle(free: list[ir.Node], plan: Plan) -> None:
    """Change free nodes while that saves casts, or makes float16 of float32 at no cost.

    Both shrink (casts, nodes in float32), so this ends; rounds are few since graphs are walked
    against the flow, where decisions come from.
    """
    readers = _Readers(plan)
    changed = True
    while changed:
        changed = False
        for node in reversed(free):
            before = readers.cost(node)
            readers.flip(node)
            after = readers.cost(node)
            better = after < before or (after == before and node in plan.half)
            changed |= better
            if not better:
                readers.flip(node)


class _Readers:
    """How many readers want each float value in which type: what a cast is counted by."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts: dict[ir.Value, Counter[ir.DataType]] = {}

    def cost(self, node: ir.Node) -> int:
        """Casts at the values that a node touches, and large weights that it reads in float32."""
        casts = sum(self._needs_cast(value) for value in self._touched(node))
        if node in self.plan.half:
            return casts
        return casts + sum(_is_large(value) for value in node.inputs)

    def flip(self, node: ir.Node) -> None:
        """Let a node compute in the other type."""
        old = HALF if node in self.plan.half else FLOAT
        for position in self.plan.places[node].inputs:
            value = node.inputs[position]
            if value is not None and constant(value) is None:
                wanted = self._wanted(value)
                wanted[old] -= 1
                wanted[_other(old)] += 1
        self.plan.half ^= {node}

    def _touched(self, node: ir.Node) -> Iterator[ir.Value]:
        for value in dict.fromkeys((*node.inputs, *node.outputs)):
            if value is not None and is_float(value) and constant(value) is None:
                yield value

    def _needs_cast(self, value: ir.Value) -> bool:
        return self._wanted(value)[_other(self.plan.makes(value))] > 0

    def _wanted(self, value: ir.Value) -> Counter[ir.DataType]:
        if value not in self.counts:
            wanted = Counter(self.plan.wants(user, at) for user, at in value.uses())
            if value.is_graph_output():
                wanted[self.plan.border] += 1
            self.counts[value] = wanted
        return self.counts[value]


def _other(dtype: ir.DataType) -> ir.DataType:
    return FLOAT if dtype == HALF else HALF
