"""What numbers a value can hold: bounds, and whether infinities or NaN can be among them.

Inputs can hold anything of their type, constants what they hold, and each operator is followed as
far as it is known here. What is not known can be anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from aigcc.analysis.extent import (
    ANYTHING,
    FLOATS,
    ROUNDING,
    Extent,
    extent_of,
    negative,
    product,
    repeated,
    total,
    whole_extent,
    within,
)
from aigcc.ir.weights import constant, read, scalar

_DEEPEST = 100
_LARGEST = 1 << 24  # bytes of a constant that is looked at


class Extents:
    """Finds what values hold, each once."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Extent] = {}
        self._depth = 0

    def of(self, value: ir.Value | None) -> Extent:
        """What a value can hold."""
        if value is None:
            return ANYTHING
        if value not in self._known:
            whole = whole_extent(value.dtype)
            self._known[value] = whole
            self._known[value] = within(self._find(value), value.dtype)
        return self._known[value]

    def _find(self, value: ir.Value) -> Extent:
        tensor = constant(value)
        if tensor is not None:
            return extent_of(tensor) if tensor.nbytes <= _LARGEST else ANYTHING
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or self._depth > _DEEPEST:
            return ANYTHING
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return ANYTHING
        rule, place = RULES.get(node.op_type), value.index() or 0
        self._depth += 1
        try:
            if node.op_type == "If":
                return _branches(self, node, place)
            if rule is None or (place and node.op_type != "Split"):
                return ANYTHING
            return rule(self, node)
        finally:
            self._depth -= 1

    def inputs(self, node: ir.Node) -> list[Extent]:
        """What the inputs of a node can hold, absent ones left out."""
        return [self.of(value) for value in node.inputs if value is not None]


Rule = Callable[[Extents, ir.Node], Extent]


def _branches(extents: Extents, node: ir.Node, place: int) -> Extent:
    results = [
        extents.of(attribute.as_graph().outputs[place])
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
    return results[0] | results[1] if len(results) == 2 else ANYTHING


def _same(extents: Extents, node: ir.Node) -> Extent:
    return extents.of(node.inputs[0])


def _union(extents: Extents, node: ir.Node) -> Extent:
    first, *rest = extents.inputs(node)
    for other in rest:
        first = first | other
    return first


def _between(low: float, high: float) -> Rule:
    """Curves that infinities do not leave."""
    return lambda extents, node: Extent(low, high, extents.of(node.inputs[0]).nan)


def _fixed(low: float, high: float) -> Rule:
    """Numbers that no input changes, and NaN neither."""
    return lambda extents, node: Extent(low, high)


def _exp(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    low, high = (math.exp(bound) if bound < 700 else math.inf for bound in (x.low, x.high))
    return Extent(low / ROUNDING, high * ROUNDING, x.nan)


def _relu(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    return Extent(max(x.low, 0.0), max(x.high, 0.0), x.nan)


def _add(extents: Extents, node: ir.Node) -> Extent:
    result, *rest = extents.inputs(node)
    for other in rest:
        result = total(result, other)
    return result


def _sub(extents: Extents, node: ir.Node) -> Extent:
    a, b = extents.inputs(node)
    return total(a, negative(b))


def _mul(extents: Extents, node: ir.Node) -> Extent:
    a, b = extents.inputs(node)
    if node.inputs[0] is node.inputs[1]:
        return _squares(a)
    return product(a, b)


def _squares(a: Extent) -> Extent:
    smallest = 0.0 if a.has(0.0) else min(abs(a.low), abs(a.high))
    return Extent(smallest * smallest, a.reach * a.reach, a.nan)


def _div(extents: Extents, node: ir.Node) -> Extent:
    a, b = extents.inputs(node)
    return _quotient(a, b) if node.outputs[0].dtype in FLOATS else ANYTHING


def _quotient(a: Extent, b: Extent) -> Extent:
    lost = a.nan or b.nan or (math.isinf(a.reach) and math.isinf(b.reach))
    if b.has(0.0):
        return Extent(-math.inf, math.inf, lost or a.has(0.0))
    ends = [0.0 if math.isinf(y) else x / y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Extent(min(ends), max(ends), lost)


def _reciprocal(extents: Extents, node: ir.Node) -> Extent:
    return _quotient(Extent(1.0, 1.0), extents.of(node.inputs[0]))


def _where(extents: Extents, node: ir.Node) -> Extent:
    condition, x, y = node.inputs
    test = condition.producer() if condition is not None else None
    chosen, other = extents.of(x), extents.of(y)
    if test is not None and test.op_type == "IsNaN" and test.inputs[0] is y:
        other = Extent(other.low, other.high)
    return chosen | other


def _extreme(pick: Callable[[float, float], float]) -> Rule:
    def rule(extents: Extents, node: ir.Node) -> Extent:
        result, *rest = extents.inputs(node)
        for other in rest:
            low, high = pick(result.low, other.low), pick(result.high, other.high)
            result = Extent(low, high, result.nan or other.nan)
        return result

    return rule


def _clip(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    low, high = x.low, x.high
    for place, name in ((1, "min"), (2, "max")):
        attribute, value = node.attributes.get(name), (*node.inputs, None, None)[place]
        if attribute is None and value is None:
            continue
        bound = attribute.as_float() if attribute is not None else extents.of(value)
        end = Extent(bound, bound) if isinstance(bound, float) else bound
        if end.nan:
            return ANYTHING
        pick: Callable[[float, float], float] = max if name == "min" else min
        low, high = pick(low, end.low), pick(high, end.high)
    return Extent(low, high, x.nan)


def _root(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    low, high = (math.sqrt(max(bound, 0.0)) for bound in (x.low, x.high))
    return Extent(low / ROUNDING, high * ROUNDING, x.nan or x.low < 0)


def _log(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in (x.low, x.high))
    return Extent(low - 1.0, high + 1.0, x.nan or x.low < 0)


def _abs(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    smallest = 0.0 if x.has(0.0) else min(abs(x.low), abs(x.high))
    return Extent(smallest, x.reach, x.nan)


def _pow(extents: Extents, node: ir.Node) -> Extent:
    x, power = extents.of(node.inputs[0]), scalar(node.inputs[1])
    match power:
        case 1:
            return x
        case 2:
            return _squares(x)
        case 3:
            return Extent(x.low * x.low * x.low, x.high * x.high * x.high, x.nan)
        case 0.5:
            return _root(extents, node)
    return ANYTHING


def _cast(extents: Extents, node: ir.Node) -> Extent:
    x, target = extents.of(node.inputs[0]), node.outputs[0].dtype
    if target in FLOATS:
        return x
    if target == ir.DataType.BOOL:
        return Extent(0.0, 1.0)
    if not x.is_finite:
        return ANYTHING
    return Extent(math.trunc(x.low), math.trunc(x.high))


def _softmax(extents: Extents, node: ir.Node) -> Extent:
    x = extents.of(node.inputs[0])
    return Extent(0.0, 1.0, x.nan or math.isinf(x.low) or math.isinf(x.high))


def _matmul(extents: Extents, node: ir.Node) -> Extent:
    a, b = extents.inputs(node)
    return repeated(product(a, b), _size(node.inputs[0], -1), node.outputs[0].dtype)


def _gemm(extents: Extents, node: ir.Node) -> Extent:
    a, b, *bias = extents.inputs(node)
    inner = _size(node.inputs[0], 0 if node.attributes.get_int("transA", 0) else 1)
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    result = repeated(product(a, b), inner, node.outputs[0].dtype)
    result = product(result, Extent(alpha, alpha))
    return total(result, product(bias[0], Extent(beta, beta))) if bias else result


def _conv(extents: Extents, node: ir.Node) -> Extent:
    a, b, *bias = extents.inputs(node)
    taps = _elements(node.inputs[1], 1)
    result = repeated(product(a | Extent(0.0, 0.0), b), taps, node.outputs[0].dtype)
    return total(result, bias[0]) if bias else result


def _size(value: ir.Value | None, axis: int) -> int | None:
    shape = value.shape if value is not None else None
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _elements(value: ir.Value | None, start: int) -> int | None:
    """How many elements the dims from `start` on hold, if known and not 0."""
    shape = value.shape if value is not None else None
    if shape is None:
        return None
    sizes = [dim for dim in shape[start:] if isinstance(dim, int)]
    known = len(sizes) == len(shape[start:])
    return math.prod(sizes) or None if known else None


def _count(node: ir.Node) -> int | None:
    """How many elements each one of a reduction's result is made of, if known and not 0."""
    many, few = _elements(node.inputs[0], 0), _elements(node.outputs[0], 0)
    return many // few if many and few else None


def _reduced(extents: Extents, node: ir.Node) -> Extent:
    return extents.of(node.inputs[0]) if _count(node) is not None else ANYTHING


def _reduce_sum(extents: Extents, node: ir.Node) -> Extent:
    return repeated(extents.of(node.inputs[0]), _count(node), node.outputs[0].dtype)


def _reduce_mean(extents: Extents, node: ir.Node) -> Extent:
    x, count = extents.of(node.inputs[0]), _count(node)
    if count is None:
        return ANYTHING
    return x if repeated(x, count, node.outputs[0].dtype).is_finite else ANYTHING


def _norm(extents: Extents, node: ir.Node) -> Extent:
    """A value of mean square 1 at most, scaled and shifted; anything where squares overflow."""
    x, *parameters = extents.inputs(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    is_layer = node.op_type != "InstanceNormalization"
    count = _elements(node.inputs[0], node.attributes.get_int("axis", -1) if is_layer else 2)
    if count is None or not x.is_finite or epsilon < 1e-30:
        return ANYTHING
    if not repeated(_squares(total(x, negative(x))), count, ir.DataType.FLOAT).is_finite:
        return ANYTHING
    reach = math.sqrt(count) * ROUNDING
    result = product(Extent(-reach, reach), parameters[0]) if parameters else ANYTHING
    return total(result, parameters[1]) if len(parameters) > 1 else result


def _dropout(extents: Extents, node: ir.Node) -> Extent:
    is_training = len(node.inputs) > 2 and node.inputs[2] is not None
    return ANYTHING if is_training else extents.of(node.inputs[0])


def _with_zeros(extents: Extents, node: ir.Node) -> Extent:
    return extents.of(node.inputs[0]) | Extent(0.0, 0.0)


def _pad(extents: Extents, node: ir.Node) -> Extent:
    value = (*node.inputs, None, None)[2]
    number = node.attributes.get_float("value", 0.0)
    filling = extents.of(value) if value is not None else Extent(number, number)
    return extents.of(node.inputs[0]) | filling


def _constant_of_shape(extents: Extents, node: ir.Node) -> Extent:
    value = node.attributes.get("value")
    return Extent(0.0, 0.0) if value is None else extent_of(value.as_tensor())


def _range(extents: Extents, node: ir.Node) -> Extent:
    start, limit, step = (read(value) for value in node.inputs)
    if start is None or step is None:
        return ANYTHING
    first, last = float(start.item()), None if limit is None else float(limit.item())
    if last is None:
        last = math.copysign(2.0**62, step.item())
    return Extent(min(first, last), max(first, last))


def _rules(names: Sequence[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_MOVES = (
    "Compress", "DepthToSpace", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_LOGICAL = (
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not",
    "Or", "Xor",
)  # fmt: skip
_NORMS = ("InstanceNormalization", "LayerNormalization", "RMSNormalization")

RULES: dict[str, Rule] = {
    **_rules(_MOVES, _same),
    **_rules(_LOGICAL, _fixed(0.0, 1.0)),
    **_rules(_NORMS, _norm),
    **_rules(("Shape", "Size"), _fixed(0.0, 2.0**62)),
    **_rules(("Sigmoid", "HardSigmoid"), _between(0.0, 1.0)),
    **_rules(("Tanh", "Erf"), _between(-1.0, 1.0)),
    **_rules(("ReduceMax", "ReduceMin"), _reduced),
    "Abs": _abs,
    "Add": _add,
    "Cast": _cast,
    "CastLike": _cast,
    "CenterCropPad": _with_zeros,
    "Clip": _clip,
    "Concat": _union,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Exp": _exp,
    "Gemm": _gemm,
    "Log": _log,
    "MatMul": _matmul,
    "Max": _extreme(max),
    "Min": _extreme(min),
    "Mul": _mul,
    "Neg": lambda extents, node: negative(extents.of(node.inputs[0])),
    "Pad": _pad,
    "Pow": _pow,
    "Range": _range,
    "Reciprocal": _reciprocal,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Softmax": _softmax,
    "Relu": _relu,
    "Sqrt": _root,
    "Sub": _sub,
    "Sum": _add,
    "Trilu": _with_zeros,
    "Where": _where,
}
