"""The nodes of a module that a scheme pays for on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from aigcc.cache import cache_folder
from aigcc.dims import sample_sizes, with_sizes
from aigcc.ir.module import Module
from aigcc.passes.quant.exact import fault, offered
from aigcc.passes.quant.latency import Latencies
from aigcc.passes.quant.memory import Memory
from aigcc.passes.quant.placement import Scheme, Weight, schemes, table_of, weight_of
from aigcc.passes.quant.quantise import FULL, obstacle
from aigcc.passes.quant.refusals import refusal
from aigcc.passes.quant.summary import INSIDE, LITTLE, NO_KERNEL, SLOWER, UNTIMED
from aigcc.passes.quant.switch import Choice
from aigcc.pipeline.context import Context

_WORTH = 0.95  # of a node's time: less than this much gained is lost in what stands around it
_LEAST = 5e-4  # of all nodes' time: for less, no error is worth it that samples may not show
_ALONE = "a search narrows a table only with a product that reads it, too; see insert-qdq"
_TOGETHER = 4  # nodes that are timed together; all weights on one embedding may not fit


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What there is to choose from.

    Attributes:
        choices: Nodes with the schemes that pay.
        seconds: Of each choice by scheme, "full" among them.
        uniform: The scheme that saves most, for all nodes that have it, paying or not: between
            nodes in one scheme less is converted than around a node that is timed alone.
        tables: By the position of a Gather, that of a choice whose weight is its table, so that it
            takes the same scheme where it can, and the schemes that it can take.
    """

    choices: Sequence[Choice]
    seconds: Sequence[Mapping[str, float]]
    uniform: Sequence[Choice]
    tables: Mapping[int, tuple[int, frozenset[str]]] = dataclasses.field(default_factory=dict)

    def keeps_table(self, position: int, scheme: str) -> bool:
        """Whether a Gather still reads a choice's weight as it is when the choice has a scheme."""
        return any(at == position and scheme not in fit for at, fit in self.tables.values())

    def without(self, refused: Mapping[int, str]) -> Candidates:
        """The same without the schemes that some positions cannot have."""

        def left(choice: Choice) -> Choice:
            schemes = tuple(s for s in choice.schemes if refused.get(choice.position) != s.name)
            return dataclasses.replace(choice, schemes=schemes)

        kept = [(left(c), s) for c, s in zip(self.choices, self.seconds, strict=True)]
        kept = [(choice, seconds) for choice, seconds in kept if choice.schemes]
        return dataclasses.replace(
            self,
            choices=[choice for choice, _ in kept],
            seconds=[seconds for _, seconds in kept],
            uniform=[choice for choice in map(left, self.uniform) if choice.schemes],
        )

    def with_tables(self, precision: Mapping[int, str]) -> dict[int, str]:
        """A mixture with the Gathers that follow its products."""
        following = {
            table: precision[product]
            for table, (product, schemes) in self.tables.items()
            if precision.get(product) in schemes
        }
        return {**precision, **following}


def candidates(module: Module, ctx: Context, by_size: bool) -> Candidates:
    """The nodes with a scheme that pays here, and their seconds by scheme.

    Args:
        module: The module; it is not changed.
        ctx: Target and samples, whose first one decides the shapes that are timed.
        by_size: Keep schemes that only make the node smaller.
    """
    assert ctx.target is not None and ctx.samples is not None
    known = list(offered(ctx.target).values())
    for scheme in schemes(ctx.target).values():
        if reason := fault(scheme, ctx.target):
            ctx.decline(None, f"{scheme.name} is not tried: {reason}")
    fixed = with_sizes(module, sample_sizes(module, next(iter(ctx.samples))))
    memory = Memory(cache_folder() / "latency.json")
    latencies = Latencies(ctx.target, ctx.threads, memory)
    imports = dict(module.model.opset_imports)
    siblings = alike(fixed)
    found: list[tuple[ir.Node, Choice, Mapping[str, float]]] = []
    timed: list[tuple[Choice, Mapping[str, float]]] = []
    for position, (node, sized) in enumerate(zip(module.graph, fixed.graph, strict=True)):
        weight = weight_of(node)
        if weight is None:
            if reason := refusal(node):
                ctx.decline(node, reason, why=NO_KERNEL)
            continue
        reasons = [_reason(node, weight, s, module.opset, by_size) for s in known]
        fitting = [scheme for scheme, reason in zip(known, reasons, strict=True) if not reason]
        if not fitting:
            ctx.decline(node, _best_reason(reasons), why=NO_KERNEL)
            continue
        ctx.progress(f"timing {node.name}", position / len(module.graph))
        measured = latencies.of(siblings[sized], imports, fitting)
        if measured is None:
            ctx.decline(node, "it cannot be timed alone: a shape is not known", why=UNTIMED)
            continue
        ratios = {scheme.name: measured[scheme.name] / measured[FULL] for scheme in fitting}
        paying = tuple(s for s in fitting if by_size or ratios[s.name] < _WORTH)
        for scheme in fitting:
            if scheme not in paying:
                ratio = ratios[scheme.name]
                message = f"not {scheme.name}: {ratio:.2f} of its time"
                ctx.decline(node, message, ratio=ratio, why=SLOWER)
        timed.append((Choice(position, weight, tuple(fitting)), measured))
        if paying:
            found.append((node, Choice(position, weight, paying), measured))
    for graph in module.graphs():
        for node in graph if graph is not module.graph else ():
            if weight_of(node) is not None:
                ctx.decline(node, "a search looks at the main graph alone", why=INSIDE)
    if not by_size:
        total = sum(measured[FULL] for _, _, measured in found)
        found = [entry for entry in found if _is_worth(*entry, total, ctx)]
    choices = [choice for _, choice, _ in found]
    tables = dict(_tables(module, choices, known))
    for position, node in enumerate(module.graph):
        if table_of(node) is not None and position not in tables:
            ctx.decline(node, _ALONE, why=NO_KERNEL)
    return Candidates(
        choices,
        [measured for _, _, measured in found],
        _uniform(timed),
        tables,
    )


def _reason(node: ir.Node, weight: Weight, scheme: Scheme, opset: int, by_size: bool) -> str:
    """Why a search does not look at a scheme for a node; empty if it does."""
    reason = obstacle(node, weight, scheme, opset)
    if not reason and scheme.kernels[node.op_type].folded and not by_size:
        return f"{scheme.name} makes {node.op_type} smaller, and not faster: see size<=0.5x"
    return reason


def _best_reason(reasons: Sequence[str]) -> str:
    """What says most: a scheme without any kernel for an operator is the least of reasons."""
    return min(dict.fromkeys(reasons), key=lambda reason: "has no kernel for" in reason)


def _tables(
    module: Module, choices: Sequence[Choice], known: Iterable[Scheme]
) -> Iterator[tuple[int, tuple[int, frozenset[str]]]]:
    products = {choice.weight.value: choice for choice in choices if choice.weight.is_by_rows}
    for position, node in enumerate(module.graph):
        table = table_of(node)
        if table is None or table.value not in products:
            continue
        fitting = [s.name for s in known if not obstacle(node, table, s, module.opset)]
        yield position, (products[table.value].position, frozenset(fitting))


def _uniform(timed: Sequence[tuple[Choice, Mapping[str, float]]]) -> list[Choice]:
    """All nodes that have the scheme that saves most, with that one alone."""
    saved: dict[str, float] = {}
    for choice, measured in timed:
        for scheme in choice.schemes:
            gain = measured[FULL] - measured[scheme.name]
            saved[scheme.name] = saved.get(scheme.name, 0.0) + gain
    best = max(saved, key=lambda name: saved[name], default="")
    return [
        dataclasses.replace(choice, schemes=(scheme,))
        for choice, _ in timed
        for scheme in choice.schemes
        if scheme.name == best and saved[best] > 0
    ]


def alike(module: Module) -> dict[ir.Node, list[ir.Node]]:
    """For each node with a weight some, itself or its equals, that read the same activation."""
    groups: dict[object, list[ir.Node]] = {}
    for node in module.graph:
        weight = weight_of(node)
        if weight is not None:
            shape = tuple(weight.tensor.shape.numpy())
            steps = [tuple(node.attributes.get_ints(name, ())) for name in ("strides", "dilations")]
            groups.setdefault((node.inputs[0], node.op_type, shape, *steps), []).append(node)
    return {node: group[:_TOGETHER] for group in groups.values() for node in group}


def _is_worth(
    node: ir.Node, choice: Choice, measured: Mapping[str, float], total: float, ctx: Context
) -> bool:
    gain = measured[FULL] - min(measured[scheme.name] for scheme in choice.schemes)
    if gain >= _LEAST * total:
        return True
    share = gain / total
    ctx.decline(node, f"it would save {share:.2%} of the time", ratio=share, why=LITTLE)
    return False
