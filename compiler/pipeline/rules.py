"""Rules: a pattern, what replaces it, and the driver that applies many of them to a module."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.ir.edit import remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.operators import op_key
from aigcc.ir.shapes.inference import infer_node
from aigcc.pipeline.context import Context
from aigcc.pipeline.forms import has_constants, spelt
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.pattern import (
    Apply,
    Match,
    NoMatch,
    PatternBuilder,
    Var,
    escapes,
    find,
    producers_needed,
)

_MADE_BY = "aigcc.made_by"
Replacement = ir.Value | Sequence[ir.Value] | Mapping[ir.Value, ir.Value] | None


class Rule(ABC):
    """A rewrite rule. The docstring is its equation, as `old -> new`.

    Attributes:
        name: What remarks and `aigcc.made_by` call it.
        opset: The lowest default opset in which the right side exists.
        raises: Whether the right side is worth a higher opset than the module has; otherwise
            nothing is said where it needs one.
        shared: Bound nodes whose outputs may be used outside the match.
    """

    name: ClassVar[str]
    opset: ClassVar[int] = 0
    raises: ClassVar[bool] = True
    shared: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def pattern(self, op: PatternBuilder, *variables: Any) -> Apply | Sequence[Apply]:
        """The left side. Each parameter after `op` is a variable; default None makes it optional.

        Several alternatives may be returned.
        """

    @abstractmethod
    def rewrite(self, op: Builder, match: Match) -> Replacement:
        """The right side: the values that replace the root's outputs, in order.

        A dict, from old value to new, also replaces outputs of other matched nodes. None means
        that the place is of no interest: nothing is said about it.

        Raises:
            NoMatch: a near miss that a user should hear of; the sentence says why.
        """


@dataclasses.dataclass
class Builder:
    """Makes the nodes of a right side: `op.Gelu(x, approximate="tanh")`.

    Operators are written as in the newest opset, with axes and sizes as inputs; what is made is
    what they are in the module's own. `_domain` names another domain, `_outputs` asks for several
    outputs, `_like` gives an output the type of a value (without it the type is inferred). None
    stands for an absent input; numpy arrays and tensors become constants.
    """

    graph: GraphLike
    names: Names
    stem: str
    maker: str
    opset: int
    made: list[ir.Node] = dataclasses.field(default_factory=list)
    constants: list[ir.Value] = dataclasses.field(default_factory=list)

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Any, **keywords: Any) -> Any:
            return self.node(op_type, inputs, keywords)

        return make

    def node(self, op_type: str, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """A node by name; one value for one output, else a list.

        Raises:
            NoMatch: the opset has no such node.
        """
        keywords = dict(keywords)
        domain = keywords.pop("_domain", "")
        outputs = keywords.pop("_outputs", 1)
        like = keywords.pop("_like", None)
        if not domain:
            inputs, keywords = spelt(op_type, inputs, keywords, self.opset, outputs)
        node = ir.Node(
            domain,
            op_type,
            [self._value(item) for item in inputs],
            ir.convenience.convert_attributes(
                {key: value for key, value in keywords.items() if value is not None}
            ),
            num_outputs=outputs,
            name=self.names.fresh(f"{self.stem}/{op_type}"),
        )
        for index, value in enumerate(node.outputs):
            value.name = self.names.fresh(f"{self.stem}/{op_type}_out{index or ''}")
        self.made.append(node)
        if like is not None:
            node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
        else:
            infer_node(node, self.opset)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def constant(self, data: np.ndarray | ir.TensorProtocol, name: str = "const") -> ir.Value:
        """A new constant: an initializer, or inside a function a Constant node.

        Raises:
            NoMatch: the function's opset has no Constant of this type.
        """
        tensor = ir.tensor(data) if isinstance(data, np.ndarray) else data
        if isinstance(self.graph, ir.Function) and not has_constants(tensor.dtype, self.opset):
            raise NoMatch(f"a Constant of opset {self.opset} holds floats alone")
        fresh = self.names.fresh(f"{self.stem}/{name}")
        tensor.name = fresh
        if isinstance(self.graph, ir.Function):
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1)
            node.name = fresh
            self.made.append(node)
            value = node.outputs[0]
            value.name = fresh
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            value.const_value = tensor
            return value
        value = ir.Value(
            name=fresh,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        self.constants.append(value)
        return value

    def discard(self) -> None:
        """Take back everything that was made."""
        for node in reversed(self.made):
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)
        for value in self.constants:
            if not isinstance(self.graph, ir.Function) and value.name is not None:
                del self.graph.initializers[value.name]

    def _value(self, item: Any) -> ir.Value | None:
        if item is None or isinstance(item, ir.Value):
            return item
        if isinstance(item, list | tuple):
            item = np.array(item, np.int64)
        return self.constant(item)


@dataclasses.dataclass(frozen=True)
class RulePass(Pass):
    """A pass that is a family of rules, applied until none fits."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    def run(self, module: Module, ctx: Context) -> None:
        """Apply the family's rules everywhere."""
        apply_rules(module, self.rules, ctx)


@dataclasses.dataclass(frozen=True)
class _Compiled:
    rule: Rule
    pattern: Apply
    needs: tuple[frozenset[str], ...]


def _compile(rule: Rule) -> list[_Compiled]:
    parameters = list(inspect.signature(rule.pattern).parameters.values())[1:]
    variables = [Var(p.name, optional=p.default is None) for p in parameters]
    made = rule.pattern(PatternBuilder(), *variables)
    patterns = [made] if isinstance(made, Apply) else made
    return [_Compiled(rule, pattern, producers_needed(pattern)) for pattern in patterns]


def apply_rules(module: Module, rules: Iterable[Rule], ctx: Context) -> int:
    """Apply rules to every graph of a module until none fits or the run's limit is reached.

    Rules are indexed by their root's operator; those given first are tried first. A node that a
    rewrite made, and the consumers of its outputs, are looked at again.

    Returns:
        The number of rewrites.
    """
    index: dict[str, list[_Compiled]] = defaultdict(list)
    for rule in rules:
        for compiled in _compile(rule):
            for op_type in compiled.pattern.op_type:
                index[op_type].append(compiled)
    before, names = ctx.total, Names(module)
    roots: list[GraphLike] = [module.graph, *module.model.functions.values()]
    for root in roots:
        driver = _Driver(module, root, index, names, ctx)
        for graph in [root, *root.subgraphs()]:
            driver.run(graph)
    return ctx.total - before


class _Driver:
    """Applies rules to a main graph or a function, `root`, and to the sub-graphs in it."""

    def __init__(
        self,
        module: Module,
        root: GraphLike,
        index: dict[str, list[_Compiled]],
        names: Names,
        ctx: Context,
    ) -> None:
        self.module = module
        self.imports = root.opset_imports
        self.opset = self.imports.get("", self.imports.get("ai.onnx", 0))
        self.index = index
        self.names = names
        self.ctx = ctx

    def run(self, graph: GraphLike) -> None:
        owner = graph.graph if isinstance(graph, ir.Function) else graph
        pending = [node for node in reversed(graph) if node.op_type in self.index]
        waiting = set(pending)
        while pending:
            node = pending.pop()
            waiting.discard(node)
            if node.graph is not owner:
                continue  # removed by now, or in a sub-graph, which has its own turn
            for again in self._visit(graph, node):
                if again not in waiting and again.op_type in self.index:
                    waiting.add(again)
                    pending.append(again)

    def _visit(self, graph: GraphLike, node: ir.Node) -> list[ir.Node]:
        declined: dict[str, str] = {}
        producers = [value.producer() for value in node.inputs if value is not None]
        around = {producer.op_type for producer in producers if producer is not None}
        for compiled in self.index.get(node.op_type, ()):
            if any(needed.isdisjoint(around) for needed in compiled.needs):
                continue
            rule = compiled.rule
            for match in find(compiled.pattern, node):
                if escapes(match, rule.shared) or _has_parameters(match):
                    continue
                try:
                    again = self._try(graph, rule, match)
                except NoMatch as refusal:
                    declined.setdefault(rule.name, str(refusal))
                    continue
                if again is not None:
                    return again
        for name, reason in declined.items():
            self.ctx.decline(node, reason, by=name)
        return []

    def _try(self, graph: GraphLike, rule: Rule, match: Match) -> list[ir.Node] | None:
        if rule.opset > self.opset:
            if not rule.raises:
                return None
            raise NoMatch(f"needs opset {rule.opset}, and this is opset {self.opset}")
        builder = Builder(
            graph, self.names, _stem(match.root), f"{self.ctx.maker}/{rule.name}", self.opset
        )
        try:
            made = rule.rewrite(builder, match)
            if made is None:
                builder.discard()
                return None
            replaced = _pairs(match.root, made)
            _check_outputs(match.root, replaced)
            self._check_kernels(builder)
        except NoMatch:
            builder.discard()
            raise
        equation = (rule.__doc__ or rule.name).strip().splitlines()[0]
        if not self.ctx.rewrite(match.root, equation, by=rule.name):
            builder.discard()
            return None
        if rule.raises:
            self.ctx.opset = max(self.ctx.opset, rule.opset)
        return self._commit(graph, match, builder, replaced)

    def _check_kernels(self, builder: Builder) -> None:
        """Refuse a right side whose operators no runtime has in this opset.

        Raises:
            NoMatch: names the operator.
        """
        for node in builder.made:
            low, high = self.ctx.opsets(op_key(node))
            if not low <= self.opset <= high:
                raise NoMatch(f"{node.op_type} does not run in opset {self.opset}")

    def _commit(
        self,
        graph: GraphLike,
        match: Match,
        builder: Builder,
        replaced: Mapping[ir.Value, ir.Value],
    ) -> list[ir.Node]:
        _stamp(builder, match)
        for node in builder.made:
            if node.domain:
                self.imports.setdefault(node.domain, 1)
                self.module.model.opset_imports.setdefault(node.domain, 1)
        graph.insert_before(match.root, builder.made)
        for old, new in replaced.items():
            replace_value(graph, old, new, self.names, fresh=new.producer() in builder.made)
        remove_dead(match.nodes)
        again = [user for value in replaced.values() for user in value.consumers()]
        return [*builder.made, *again]


def _has_parameters(match: Match) -> bool:
    """Whether an attribute in a match is one that each call of its function gives."""
    return any(a.is_ref() for node in match.nodes for a in node.attributes.values())


def _stem(root: ir.Node) -> str:
    """What the names of new nodes begin with; that of an earlier rewrite is not added to."""
    name = root.name or root.outputs[0].name or root.op_type
    return re.sub(r"/\w+$", "", name) if _MADE_BY in root.metadata_props else name


def _pairs(
    root: ir.Node, made: ir.Value | Sequence[ir.Value] | Mapping[ir.Value, ir.Value]
) -> Mapping[ir.Value, ir.Value]:
    if isinstance(made, Mapping):
        return made
    values = [made] if isinstance(made, ir.Value) else made
    return dict(zip(root.outputs, values, strict=False))


def _check_outputs(root: ir.Node, replaced: Mapping[ir.Value, ir.Value]) -> None:
    """Refuse a right side that is not of the left side's type, or leaves out one of its outputs."""
    if any((v.uses() or v.is_graph_output()) and v not in replaced for v in root.outputs):
        raise NoMatch("another output of the node is used as well")
    for old, new in replaced.items():
        if old.dtype is not None and new.dtype is not None and old.dtype != new.dtype:
            raise NoMatch(f"the replacement is {new.dtype.name}, not {old.dtype.name}")
        if old.shape is not None and new.shape is not None and not _may_equal(old.shape, new.shape):
            raise NoMatch(f"the replacement has the shape {new.shape}, not {old.shape}")


def _may_equal(a: ir.Shape, b: ir.Shape) -> bool:
    return len(a) == len(b) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a, b, strict=True)
    )


def _stamp(builder: Builder, match: Match) -> None:
    """Every new node names its maker and keeps where the torch source says that it came from."""
    kept = {
        key: value
        for key, value in match.root.metadata_props.items()
        if not key.startswith("aigcc.")
    }
    for node in builder.made:
        node.metadata_props.update(kept)
        node.metadata_props[_MADE_BY] = builder.maker


def replace_value(
    graph: GraphLike, old: ir.Value, new: ir.Value, names: Names, *, fresh: bool = False
) -> None:
    """Let `new` stand wherever `old` stood.

    It takes the old name when it is `fresh`, or when the graph shows that name outside.
    """
    if new is old:
        return
    known = new.shape is not None and not new.shape.is_dynamic()
    if not known and _vagueness(old.shape) <= _vagueness(new.shape):
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    for key, value in old.metadata_props.items():
        new.metadata_props.setdefault(key, value)
    if old.is_graph_output() and not _may_rename(new, old):
        producer = old.producer()
        assert producer is not None
        keep = ir.Node("", "Identity", [new], num_outputs=1, name=names.fresh("keep_output"))
        keep.outputs[0].type, keep.outputs[0].shape = old.type, old.shape
        graph.insert_before(producer, keep)
        for user, position in tuple(old.uses()):
            user.replace_input_with(position, new)
        new = keep.outputs[0]
    shown = old.is_graph_output() and not new.is_graph_output()
    name, rename = old.name, bool(old.name) and (fresh or shown)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if rename:
        old.name = None
        new.name = name


def _vagueness(shape: ir.Shape | None) -> float:
    """How little a shape says: less with static dims than with named ones, and those than none."""
    if shape is None:
        return math.inf
    named = (dim for dim in shape if not isinstance(dim, int))
    return sum(1 if dim.value is not None else 2 for dim in named)


def _may_rename(new: ir.Value, old: ir.Value) -> bool:
    producer = new.producer()
    return (
        producer is not None
        and not new.is_graph_output()
        and (producer.graph is None or producer.graph is (old.producer() or producer).graph)
    )


def remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Remove those of `nodes` whose outputs nobody uses, and what only they used in turn."""
    waiting = dict.fromkeys(node for node in nodes if node.graph is not None)
    while waiting:
        node, _ = waiting.popitem()
        if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        remove_node(node)
        for value in inputs:
            producer = value.producer()
            if producer is not None:
                waiting[producer] = None
            elif not value.uses():
                _remove_initializer(value)


def _remove_initializer(value: ir.Value) -> None:
    if value.is_initializer() and not value.is_graph_input() and not value.is_graph_output():
        assert value.graph is not None
        del value.graph.initializers[str(value.name)]
