"""Precision assignment: the fastest mixture of schemes that keeps a budget, as measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.analysis.damage import check_outputs
from aigcc.analysis.recipe import BudgetMissed, Recipe
from aigcc.errors import CompileError, did_you_mean
from aigcc.ir.module import Module
from aigcc.ir.names import name_apart
from aigcc.options import option, show
from aigcc.passes.quant.candidates import Candidates, candidates
from aigcc.passes.quant.evidence import Evidence
from aigcc.passes.quant.found import Found
from aigcc.passes.quant.placement import weight_of
from aigcc.passes.quant.quantise import FULL, PRECISION, Method, Place
from aigcc.passes.quant.raising import raised
from aigcc.passes.quant.search import search
from aigcc.passes.quant.sensitivity import Sensitivity
from aigcc.passes.quant.summary import BUDGET
from aigcc.passes.quant.switch import Choice
from aigcc.passes.quant.trial import Figures, Trials
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.target import Target

_DEFAULT = "sqnr>=30"
_MADE_UP = (
    "give real inputs with --samples: these are made up, and rounding alone may change what the "
    "model makes of them"
)


@dataclasses.dataclass(frozen=True)
class AssignPrecision(Pass):
    """Choose a scheme for each convolution and matrix product with a constant weight.

    Every scheme that the target's table has for a node is timed alone on this machine; where it is
    not faster than the node as it is, it is declined. What each of the others costs in quality is
    measured by running the whole model with that node alone quantised. An integer programme takes
    the fastest mixture whose errors add up to the budget; the mixture is measured as a whole, and
    what the programme may use up is corrected until the measured figures keep the budget. One
    scheme wherever it has a kernel is measured as well, unless its errors are far too many: between
    such nodes nothing is converted, which timing them alone cannot show. Samples that calibrated a
    program do not judge it. What is chosen is built and judged by all samples, as the build is in
    the end; the search goes on where that misses the budget. Where the target leaves open what
    floats nodes run in that are not quantised, that is decided first. The choice is written on the
    nodes, for `insert-qdq`, and as a recipe into the artifact.
    """

    name: ClassVar[str] = "assign-precision"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse", "legalize")
    exact: ClassVar[bool] = False
    budget: str = option(
        "", f"what has to hold, such as sqnr>=30,size<=0.3x; {_DEFAULT} for a search by default"
    )
    recipe: str = option("", "a recipe to replay: nothing is measured then")
    calibration: Method = option("mse", "how the range of an activation is chosen")
    samples: int = option(1, "how many samples of each half sensitivity is measured on")

    def __post_init__(self) -> None:
        Budget.parse(self.budget or _DEFAULT)  # what is wrong is said before anything is done

    def run(self, module: Module, ctx: Context) -> None:
        """Replay a recipe, or find one."""
        name_apart(module, every=True)  # recipes go by names
        if self.recipe:
            recipe = Recipe.load(self.recipe)
            budget = Budget.parse(self.budget) if self.budget else None
        else:
            implied_by = "" if self.budget else self.name
            budget = Budget.parse(self.budget or _DEFAULT, implied_by=implied_by)
            recipe = self._find(module, budget, ctx)
        _apply(recipe, module, ctx)
        ctx.recipe, ctx.budget = recipe, budget

    def _find(self, module: Module, budget: Budget, ctx: Context) -> Recipe:
        if ctx.target is None or ctx.samples is None:
            raise CompileError(
                "a budget needs a target, and samples to measure on",
                hint="give --target and --samples, or a recipe",
            )
        check_outputs(budget, module)
        module = raised(module, ctx)
        plain, base = ctx.target, self._base(module, budget, ctx)
        known, found = self._search(module, budget, plain, base, ctx)
        first = plain.bases()[0]
        if base != first and budget.shortfall(found.figures.measured, found.figures.original):
            ctx.note(None, f"{show(base, base.name)} misses the budget on all samples", tried=True)
            known, found = self._search(module, budget, plain, first, ctx)
        nodes = list(module.graph)
        for choice in known.choices:
            if choice.position not in found.precision:
                ctx.decline(nodes[choice.position], "full: no room for its errors", why=BUDGET)
        precision = {
            str(node.name): found.precision.get(position, FULL)
            for position, node in enumerate(nodes)
            if weight_of(node) is not None or position in found.precision
        }
        facts = {"budget": str(budget), "samples": ctx.samples.source, **found.facts()}
        recipe = Recipe(precision, show(ctx.target, ctx.target.name), facts)
        if missed := budget.shortfall(found.figures.measured, found.figures.original):
            is_plain = found.used > 1 and not found.precision
            best = "as it is, with nothing quantised," if is_plain else "with the best one"
            hint = "ask for less, or give more schemes to choose from"
            if is_plain and ctx.samples.synthetic:
                hint = _MADE_UP
            what = f"no mixture keeps {budget.named()}: {best} {missed}"
            raise BudgetMissed(what, hint=hint, recipe=recipe)
        return recipe

    def _search(
        self, module: Module, budget: Budget, plain: Target, base: Target, ctx: Context
    ) -> tuple[Candidates, Found]:
        """What there is to choose from for one of a target's bases, and the best of it."""
        ctx.target = base
        known = candidates(module, ctx, by_size=bool(budget.of(["size"])))
        evidence = self._gather(module, [*known.choices, *known.uniform], budget, ctx)
        sensitivity = Sensitivity.measure(module, known.choices, evidence, ctx)
        trials = Trials(module, evidence, plain, base, ctx)
        return known, search(known, sensitivity, budget, trials, ctx)

    def _gather(
        self, module: Module, choices: Sequence[Choice], budget: Budget, ctx: Context
    ) -> Evidence:
        nodes = list(module.graph)
        everywhere = [
            Place(module.graph, nodes[choice.position], choice.weight, scheme)
            for choice in choices
            for scheme in choice.schemes
        ]
        return Evidence.gather(module, everywhere, budget, self.calibration, self.samples, ctx)

    def _base(self, module: Module, budget: Budget, ctx: Context) -> Target:
        """The target in the types for unquantised nodes that are fastest and keep the budget."""
        assert ctx.target is not None
        first, *others = ctx.target.bases()
        if not others:
            return first
        evidence = self._gather(module, (), budget, ctx)
        found: dict[Target, Figures] = {}
        for base in (first, *others):
            figures = Trials(module, evidence, first, base, ctx).measure({})
            if figures.ratio is None:
                if base is first:
                    return first
                continue  # it misses the budget
            shown = show(base, base.name)
            ctx.note(None, f"{shown}: {figures.ratio:.2f} times the latency of {first.name}")
            if max(figures.shares.values(), default=0.0) <= 1:
                found[base] = figures
        return min(found, key=lambda base: _rank(found[base], budget)) if found else first


def _rank(figures: Figures, budget: Budget) -> tuple[bool, float]:
    """Less is better: latency, or without a bound on quality the error if the budget is kept."""
    assert figures.ratio is not None
    missed = bool(budget.missed(figures.measured, figures.original))
    if budget.of(QUALITY) or (missed and budget.of(["latency"])):
        return missed, figures.ratio
    return missed, -figures.measured.get("sqnr", 0.0)


def _apply(recipe: Recipe, module: Module, ctx: Context) -> None:
    nodes = {str(node.name): node for node in module.graph}
    unknown = [name for name in recipe.precision if name not in nodes]
    if unknown:
        near = did_you_mean(unknown[0], nodes)
        count = f"{len(unknown)} of the {len(recipe.precision)} nodes that the recipe names are"
        raise CompileError(
            f"the recipe names a node {unknown[0]!r} that the model has not"
            + (f"; {count} not in it" if len(unknown) > 1 else ""),
            hint=f"{near} Or was it made for another model or pipeline?",
        )
    bases = {} if ctx.target is None else {show(b, b.name): b for b in ctx.target.bases()}
    if recipe.target in bases:
        ctx.target = bases[recipe.target]
    elif bases and recipe.target:
        message = f"the recipe was made for {recipe.target}: what pays there may not pay here"
        ctx.note(None, message)
    for name, scheme in recipe.precision.items():
        if not ctx.rewrite(nodes[name], f"to run in {scheme}"):
            return
        nodes[name].metadata_props[PRECISION] = scheme
    counts = Counter(recipe.precision.values())
    ctx.note(None, ", ".join(f"{count} nodes {scheme}" for scheme, count in counts.most_common()))
