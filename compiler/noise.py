"""Equal noise: copies of modules that compute the same pseudo-random numbers wherever they draw.

Runtimes draw from generators of their own, so that two programs differ however right they are. In
the copies each draw reads a table instead, from a place that its name tells, and in a loop also the
number of the round; means, scales, bounds and probabilities are those of the node.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from aigcc.errors import ModelError
from aigcc.ir.draws import DRAW, count_draws, drawing_functions, is_draw, name_draws
from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.noise_places import replace_draws
from aigcc.pipeline.context import Context

_WITHIN = "aigcc.within"
_MOST = 1 << 12  # nodes that calls of functions may become
_RANGE = 11  # the opset that brought Range, which counts elements


def equal_noise(module: Module) -> Module:
    """The module, or where it draws random numbers a copy that makes the same ones in each run."""
    if not count_draws(module):
        return module
    made = _named(module)
    replace_draws(made)
    return made


def equal_noises(a: Module, b: Module) -> tuple[Module, Module]:
    """Both modules with equal noise; draws that have no namesake are paired in their order."""
    if not count_draws(a) or not count_draws(b):
        return equal_noise(a), equal_noise(b)
    first, second = _named(a), _named(b)
    theirs, ours = _draws(first), _draws(second)
    for op_type, draws in ours.items():
        known = [node.metadata_props[DRAW] for node in theirs[op_type]]
        own = {node.metadata_props[DRAW] for node in draws}
        free = iter([name for name in known if name not in own])
        for node in draws:
            if node.metadata_props[DRAW] not in known:
                node.metadata_props[DRAW] = next(free, node.metadata_props[DRAW])
    replace_draws(first)
    replace_draws(second)
    return first, second


def describe_noise(module: Module) -> str:
    """What figures that compare programs made of a module have to say of its noise, if it has any.

    One that has a draw for which no equal one can be made says so.
    """
    drawn = count_draws(module)
    if not drawn:
        return ""
    apart = min(drawn, count_draws(equal_noise(module)))
    found = [f"{_count(drawn - apart)}: compared with equal noise"] if drawn > apart else []
    if apart:
        found.append(f"{_count(apart)}: each program draws its own numbers, so figures show these")
    return "; ".join(found)


def _count(number: int) -> str:
    return f"{number} random operator{'s' if number > 1 else ''}"


def _draws(module: Module) -> defaultdict[str, list[ir.Node]]:
    found: defaultdict[str, list[ir.Node]] = defaultdict(list)
    for node in module.nodes():
        if is_draw(node):
            found[node.op_type].append(node)
    return found


def _named(module: Module) -> Module:
    """A copy that can count its elements, whose draws have names, and none of them in functions."""
    from aigcc.passes.convert_opset import convert
    from aigcc.passes.lift_constants import LiftConstants

    made = module.clone()
    name_draws(made)
    if 0 < made.opset < _RANGE:
        LiftConstants().run(made, Context())
        convert(made, _RANGE, Context(), runs=False)
    _inline(made)
    with contextlib.suppress(ModelError):  # what its types are is then not known everywhere
        infer_shapes(made.model, only_missing=True)
    return made


def _inline(module: Module) -> None:
    """Put functions that draw where they are called, since each call draws for itself.

    Callers go first. Those of another opset than the module's stay, and those whose calls are too
    many: their calls draw alike.
    """
    functions = module.model.functions
    drawing = drawing_functions(module)
    waiting, room = [key for key in functions if key in drawing], _MOST
    while waiting:
        called = {n.op_identifier() for key in waiting for n in functions[key].all_nodes()}
        current = next(key for key in waiting if key not in called)
        waiting.remove(current)
        function = functions[current]
        calls = [node for node in module.nodes() if node.op_identifier() == current]
        room -= len(calls) * len(function)
        if room >= 0 and _fits(function, module) and not any(map(held_graphs, calls)):
            _inline_one(module, function, calls)


def _inline_one(module: Module, function: ir.Function, calls: Sequence[ir.Node]) -> None:
    for node in calls:
        node.metadata_props[_WITHIN] = node.metadata_props.pop(DRAW)
    InlinePass(criteria=lambda each: each is function)(module.model)
    for node in module.nodes():
        within = node.metadata_props.pop(_WITHIN, None)
        if within is not None and DRAW in node.metadata_props:
            node.metadata_props[DRAW] = f"{within}/{node.metadata_props[DRAW]}"


def _fits(function: ir.Function, module: Module) -> bool:
    imports = module.model.opset_imports
    return all(imports.get(key, own) == own for key, own in function.opset_imports.items())
