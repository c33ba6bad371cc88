"""Precision assignment: the fastest mixture of schemes that keeps a budget, as measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import ClassVar

from aigcc.analysis.budget import Budget
from aigcc.analysis.recipe import Recipe
from aigcc.errors import CompileError, did_you_mean
from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.passes.quant.candidates import candidates
from aigcc.passes.quant.placement import weight_of
from aigcc.passes.quant.quantise import FULL, PRECISION, Method, Place, calibrated, ranges
from aigcc.passes.quant.search import search
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.trial import Trials
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass


@dataclasses.dataclass(frozen=True)
class AssignPrecision(Pass):
    """Choose a scheme for each convolution and matrix product with a constant weight.

    Every scheme that the target's table has for a node is timed alone on this machine; where it is
    not faster than the node as it is, it is declined. What each of the others costs in quality is
    measured by running the whole model with that node alone quantised. An integer programme takes
    the fastest mixture whose errors add up to the budget; the mixture is measured as a whole, and
    what the programme may use up is corrected until the measured figures keep the budget. The
    choice is written on the nodes, for `insert-qdq`, and as a recipe into the artifact.
    """

    name: ClassVar[str] = "assign-precision"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse", "legalize")
    exact: ClassVar[bool] = False
    budget: str = option("sqnr>=30", "what has to hold, such as sqnr>=30,size<=0.3x")
    recipe: str = option("", "a recipe to replay: nothing is measured then")
    calibration: Method = option("mse", "how the range of an activation is chosen")
    samples: int = option(1, "how many samples sensitivity is measured on")

    def run(self, module: Module, ctx: Context) -> None:
        """Replay a recipe, or find one."""
        recipe = Recipe.load(self.recipe) if self.recipe else self._find(module, ctx)
        _apply(recipe, module, ctx)
        ctx.recipe, ctx.budget = recipe, Budget.parse(self.budget)

    def _find(self, module: Module, ctx: Context) -> Recipe:
        budget = Budget.parse(self.budget)
        if ctx.target is None or ctx.samples is None:
            raise CompileError(
                "a budget needs a target, and samples to measure on",
                hint="give --target and --samples, or a recipe",
            )
        choices, seconds = candidates(module, ctx, by_size=bool(budget.of(["size"])))
        nodes = list(module.graph)
        ctx.calibration = calibrated(
            module,
            [
                Place(module.graph, nodes[choice.position], choice.weight, scheme)
                for choice in choices
                for scheme in choice.schemes
            ],
            ctx,
        )
        range_of = ranges(ctx.calibration, self.calibration)
        samples = itertools.islice(ctx.calibration_samples or ctx.samples, self.samples)
        sensitivity = Sensitivity.measure(module, choices, samples, budget, range_of, ctx)
        trials = Trials(module, budget, self.calibration, ctx)
        found = search(choices, seconds, sensitivity, budget, trials, ctx)
        precision = {
            str(node.name): found.precision.get(position, FULL)
            for position, node in enumerate(nodes)
            if weight_of(node) is not None
        }
        facts = {"budget": str(budget), "samples": ctx.samples.source, **found.facts()}
        return Recipe(precision, ctx.target.name, facts)


def _apply(recipe: Recipe, module: Module, ctx: Context) -> None:
    nodes = {str(node.name): node for node in module.graph}
    for name, scheme in recipe.precision.items():
        if name not in nodes:
            raise CompileError(
                f"the recipe names a node {name!r} that the model has not",
                hint=did_you_mean(name, nodes) or "was it made for another model or pipeline?",
            )
        if not ctx.rewrite(nodes[name], f"to run in {scheme}"):
            return
        nodes[name].metadata_props[PRECISION] = scheme
    counts = Counter(recipe.precision.values())
    ctx.note(None, ", ".join(f"{count} nodes {scheme}" for scheme, count in counts.most_common()))
