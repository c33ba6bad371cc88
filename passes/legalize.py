"""Replace what a target lacks, or runs slower than its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from aigcc.errors import TargetError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ir.operators import op_key
from aigcc.passes.convert_opset import convert, newest_ir_version, plan
from aigcc.passes.legal import DECOMPOSITIONS, PREFERENCES
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
from aigcc.pipeline.rules import Builder, Replacement, Rule, apply_rules
from aigcc.target import Target, node_label
from aigcc.targets import reference

_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Legalize(Pass):
    """Make a module one that the target can lower: operators, then the version of the operator set.

    ```
    y = Swish (x)      →      a = Sigmoid (x); y = Mul (x, a)      on a target without Swish
    ```
    Where the target's table says that parts or another operator are faster (`prefer`), they are
    taken as well. Without a target nothing happens.
    """

    name: ClassVar[str] = "legalize"

    def run(self, module: Module, ctx: Context) -> None:
        """Replace until the target refuses nothing more that can be replaced.

        Raises:
            TargetError: the target's table prefers something that is not known.
        """
        target = ctx.target
        if target is None:
            ctx.note(None, "there is no target to legalise for")
            return
        preferred = _preferred(target)
        if preferred:
            apply_rules(module, preferred, ctx)
        _, high = _opsets(module, ctx)
        for _ in range(_ROUNDS):
            refused = _refused(module, target, high, ctx)
            rules = [_At(rule, refused) for rule in DECOMPOSITIONS]
            if not refused or not apply_rules(module, rules, ctx):
                break
        low, high = _opsets(module, ctx)
        if low <= high and not low <= module.opset <= high:
            convert(module, min(max(module.opset, low), high), ctx, runs=True)
        most = newest_ir_version(min(target.can.opset[1], reference().opset[1]))
        module.model.ir_version = min(module.model.ir_version, most)  # runtimes refuse newer ones


def _opsets(module: Module, ctx: Context) -> tuple[int, int]:
    """The lowest and the highest opset in which the target, and each operator, runs."""
    assert ctx.target is not None
    low, high = ctx.target.can.opset
    for key in {op_key(node) for node in module.nodes()}:
        first, last = ctx.opsets(key)
        low, high = max(low, first), min(high, last)
    return low, high


def _preferred(target: Target) -> list[Rule]:
    """The rules that the target's table prefers, with their options."""
    rules = []
    for name, options in target.can.facts.get("prefer", {}).items():
        if name not in PREFERENCES:
            raise TargetError(
                f"the table of {target.name} prefers {name!r}, which legalize does not know",
                hint=did_you_mean(name, PREFERENCES),
            )
        rules.append(PREFERENCES[name](**options))
    return rules


def _refused(module: Module, target: Target, highest: int, ctx: Context) -> frozenset[ir.Node]:
    """The nodes that the target has a problem with, and those that a lower opset does not have."""
    labels = {problem.node for problem in target.check(module) if problem.node}
    newer: set[ir.Node | None] = set()
    if highest < module.opset:
        plans = plan(module, highest, ctx, runs=False)
        newer.update(node for made in plans for node, _ in made.blocked)
    return frozenset(node for node in module.nodes() if node_label(node) in labels or node in newer)


class _At(Rule):
    """Another rule, at some nodes only."""

    def __init__(self, rule: Rule, nodes: frozenset[ir.Node]) -> None:
        self.name = rule.name  # type: ignore[misc]
        self.opset = rule.opset  # type: ignore[misc]
        self.shared = rule.shared  # type: ignore[misc]
        self.__doc__ = rule.__doc__
        self.pattern = rule.pattern  # type: ignore[method-assign]
        self._rule = rule
        self._nodes = nodes

    def pattern(self, op: PatternBuilder, *variables: Any) -> Apply | Sequence[Apply]:
        """That of the other rule."""
        return self._rule.pattern(op, *variables)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        """That of the other rule; nothing elsewhere."""
        return self._rule.rewrite(op, match) if match.root in self._nodes else None
