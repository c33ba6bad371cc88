"""Patterns over the IR: what a rule looks for, and the matcher that finds it.

A pattern is a tree built by a rule's `pattern(op, x, ...)`: `op.Mul(x, op.Sigmoid(x))`. Parameters
are variables that match any value; one with the default None may be absent. Numbers match scalar
constants. The same variable used twice must match the same value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import constant, read, scalar

COMMUTATIVE = frozenset(
    {"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)
_ROUNDING = {
    ir.DataType.DOUBLE: 1e-5,  # exporters write sqrt(2 / pi) with six digits, whatever the type
    ir.DataType.FLOAT: 1e-5,
    ir.DataType.FLOAT16: 1e-3,
    ir.DataType.BFLOAT16: 8e-3,
}


class Pattern:
    """Base of all patterns; matches one value."""


@dataclasses.dataclass(frozen=True)
class Var(Pattern):
    """Any value, bound to a name; an optional one also matches an absent input."""

    name: str
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Number(Pattern):
    """A constant with one element, equal to `value` within rounding of its element type.

    Values that every float type holds exactly, such as 1.0 or 0.5, must be met exactly.
    """

    value: float

    def accepts(self, value: ir.Value) -> bool:
        """Whether `value` is such a constant."""
        found = scalar(value)
        if found is None or found == self.value:
            return found is not None
        tensor = constant(value)
        if tensor is None or float(np.float16(self.value)) == self.value:
            return False
        return math.isclose(found, self.value, rel_tol=_ROUNDING.get(tensor.dtype, 0.0))


@dataclasses.dataclass(frozen=True)
class Either(Pattern):
    """The first of several patterns that matches."""

    choices: tuple[Pattern, ...]


@dataclasses.dataclass(frozen=True)
class Apply(Pattern):
    """One output of a node of a given operator.

    Attributes:
        op_type: Operator names, any of which may match.
        domain: The operators' domain.
        inputs: Patterns of the leading inputs; None matches an absent one.
        attributes: Values that attributes must have, compared with the given defaults.
        bind: The name under which the match holds the node.
        output: Which output of the node.
        more: Whether further inputs may follow.
    """

    op_type: tuple[str, ...]
    domain: str
    inputs: tuple[Pattern | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    bind: str = ""
    output: int = 0
    more: bool = False


def either(*choices: Any) -> Either:
    """A pattern that matches what any of the choices matches, tried in order."""
    return Either(tuple(_as_pattern(choice) for choice in choices))


def _as_pattern(thing: Any) -> Pattern:
    if isinstance(thing, Pattern):
        return thing
    if isinstance(thing, int | float):
        return Number(float(thing))
    raise TypeError(
        f"{thing!r} cannot stand in a pattern: use a variable, a number or op.Name(...)"
    )


class PatternBuilder:
    """Makes `Apply` patterns: `op.Add(x, 1.0, _as="add")`.

    Keywords starting with an underscore steer the match: `_as` binds the node, `_output` picks an
    output, `_more` allows further inputs, `_domain` names another domain, `_or` lists further
    operators that fit as well. All other keywords are attributes that must have that value.
    """

    def __getattr__(self, op_type: str) -> Callable[..., Apply]:
        if op_type.startswith("__"):
            raise AttributeError(op_type)

        def make(*inputs: Any, **keywords: Any) -> Apply:
            attributes = tuple(
                (key, value) for key, value in keywords.items() if not key.startswith("_")
            )
            return Apply(
                (op_type, *keywords.get("_or", ())),
                keywords.get("_domain", ""),
                tuple(None if item is None else _as_pattern(item) for item in inputs),
                attributes,
                keywords.get("_as", ""),
                keywords.get("_output", 0),
                keywords.get("_more", False),
            )

        return make


class State:
    """Bindings under construction; undone on backtracking."""

    def __init__(self) -> None:
        self.bound: dict[str, ir.Value | ir.Node | None] = {}
        self.nodes: dict[ir.Node, None] = {}


def match_value(pattern: Pattern | None, value: ir.Value | None, state: State) -> Iterator[None]:
    """Every way in which `pattern` matches `value`; bindings hold while the iterator is paused."""
    if pattern is None:
        if value is None:
            yield
    elif isinstance(pattern, Var):
        yield from _match_variable(pattern, value, state)
    elif value is None:
        return
    elif isinstance(pattern, Number):
        if pattern.accepts(value):
            yield
    elif isinstance(pattern, Either):
        for choice in pattern.choices:
            yield from match_value(choice, value, state)
    elif isinstance(pattern, Apply):
        node = value.producer()
        if node is not None and value.index() == pattern.output:
            yield from match_node(pattern, node, state)


def _match_variable(pattern: Var, value: ir.Value | None, state: State) -> Iterator[None]:
    if pattern.name in state.bound:
        if state.bound[pattern.name] is value:
            yield
    elif value is not None or pattern.optional:
        state.bound[pattern.name] = value
        yield
        del state.bound[pattern.name]


def match_node(pattern: Apply, node: ir.Node, state: State) -> Iterator[None]:
    """Every way in which `pattern` matches `node`."""
    if node.op_type not in pattern.op_type or node.domain not in (pattern.domain, "ai.onnx"):
        return
    if node.domain == "ai.onnx" and pattern.domain:
        return
    if len(node.outputs) <= pattern.output:
        return
    wanted = len(pattern.inputs)
    if len(node.inputs) > wanted and not pattern.more and any(node.inputs[wanted:]):
        return
    if not all(_has_attribute(node, name, value) for name, value in pattern.attributes):
        return
    inputs = [*node.inputs, *[None] * max(0, wanted - len(node.inputs))]
    orders = [tuple(inputs[:wanted])]
    if node.op_type in COMMUTATIVE and wanted == 2 and inputs[0] is not inputs[1]:
        orders.append((inputs[1], inputs[0]))
    if state.bound.get(pattern.bind, node) is not node:
        return
    fresh, binds = node not in state.nodes, pattern.bind and pattern.bind not in state.bound
    state.nodes[node] = None
    if binds:
        state.bound[pattern.bind] = node
    for order in orders:
        yield from _match_all(pattern.inputs, order, state)
    if binds:
        del state.bound[pattern.bind]
    if fresh:
        del state.nodes[node]


def _match_all(
    patterns: tuple[Pattern | None, ...], values: tuple[ir.Value | None, ...], state: State
) -> Iterator[None]:
    if not patterns:
        yield
        return
    for _ in match_value(patterns[0], values[0], state):
        yield from _match_all(patterns[1:], values[1:], state)


def _has_attribute(node: ir.Node, name: str, wanted: Any) -> bool:
    attribute = node.attributes.get(name)
    if attribute is None:
        return wanted is None
    if attribute.is_ref():
        return False
    found = attribute.value
    if isinstance(found, list | tuple):
        return list(found) == list(wanted) if isinstance(wanted, list | tuple) else False
    if isinstance(wanted, float):
        return isinstance(found, float) and math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)


class Match:
    """A place where a rule's pattern fits: variables and bound nodes are attributes.

    Attributes:
        root: The node whose outputs the rule replaces.
        nodes: All matched nodes, the root first.
    """

    def __init__(self, root: ir.Node, state: State) -> None:
        self.root = root
        self.nodes = tuple(state.nodes)
        self._bound = dict(state.bound)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_bound"][name]
        except KeyError:
            raise AttributeError(f"the pattern binds no {name!r}") from None

    def array(self, name: str) -> np.ndarray:
        """The constant that a variable matched.

        Raises:
            NoMatch: it is not a constant.
        """
        found = read(self._bound[name])  # type: ignore[arg-type]
        if found is None:
            raise NoMatch(f"{name} is not a constant")
        return found


def producers_needed(pattern: Apply) -> tuple[frozenset[str], ...]:
    """For each input that only a node can give, the operators of which it may be."""
    needed = []
    for item in pattern.inputs:
        choices = item.choices if isinstance(item, Either) else (item,)
        operators = [choice.op_type for choice in choices if isinstance(choice, Apply)]
        if len(operators) == len(choices):
            needed.append(frozenset().union(*operators))
    return tuple(needed)


def find(pattern: Apply, root: ir.Node) -> Iterator[Match]:
    """Every way in which `pattern` matches at `root`; take what you need before going on."""
    state = State()
    for _ in match_node(pattern, root, state):
        yield Match(root, state)


class NoMatch(Exception):
    """A rule declines a place that its pattern fits; the sentence becomes a remark."""


def escapes(match: Match, shared: frozenset[str]) -> bool:
    """Whether an interior value of the match is used outside of it.

    Nodes bound under a name in `shared` may be: they stay where they are.
    """
    inside = set(match.nodes)
    free = {match._bound.get(name) for name in shared}
    for node in match.nodes[1:]:
        if node in free:
            continue
        if node.graph is not match.root.graph:
            return True
        for value in node.outputs:
            if value.is_graph_output() or any(user not in inside for user in value.consumers()):
                return True
    return False
