"""Raise or lower the default operator set of a module."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from aigcc.errors import PassError
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.signatures import is_withdrawn
from aigcc.options import option
from aigcc.passes.lift_constants import LiftConstants
from aigcc.passes.opsets import HIGHEST, LOWER, LOWEST, LOWEST_RESULT, RAISE
from aigcc.passes.opsets.call import Blocked, Call, Operand
from aigcc.pipeline.context import Context
from aigcc.pipeline.forms import has_constants
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import Builder
from aigcc.targets import reference

_ALIASES = ("", "ai.onnx")
_RANKS_MATTER = 13
"""Below this version adapters ask for ranks and types (Softmax, Clip, Pad)."""
_SAYS_NOTHING = frozenset({"consumed_inputs"})  # which inputs could be overwritten, up to opset 5


@dataclasses.dataclass(frozen=True)
class ConvertOpset(Pass):
    """Say the same in another version of the default operator set.

    Models of opset 1 to 28 are raised, and lowered down to 13.

    ```
    y = ReduceMean <axes = [1]> (x)      →      y = ReduceMean (x, axes)      from opset 17 to 18
    ```
    All or nothing: where one node cannot be said in the other version nothing changes, and a remark
    names it. Functions are converted with the graph. No weight is read.
    """

    name: ClassVar[str] = "convert-opset"
    version: int = option(23, "the version to convert to")

    def run(self, module: Module, ctx: Context) -> None:
        """Convert the main graph and every function.

        Raises:
            PassError: the version is not one that the module can be converted to.
        """
        least = LOWEST_RESULT if any(self.version < old for _, old in module.roots()) else LOWEST
        if not least <= self.version <= HIGHEST:
            raise PassError(
                f"cannot convert opset {module.opset} to opset {self.version}",
                hint=f"give a version from {least} to {HIGHEST}",
            )
        convert(module, self.version, ctx, runs=ctx.target is not None)


def convert(module: Module, version: int, ctx: Context, *, runs: bool) -> bool:
    """Convert all graphs of a module; False, with a remark, where a node does not allow it.

    Args:
        module: Changed in place.
        version: Of the default operator set.
        ctx: Told what is in the way.
        runs: Whether an operator that no runtime has in that version is in the way.
    """
    plans = plan(module, version, ctx, runs=runs)
    for node, reason in (blocked for made in plans for blocked in made.blocked):
        ctx.decline(node, f"{reason}, so opset {version} is not reached")
    if any(made.blocked for made in plans):
        return False
    if not plans:
        return True
    if not ctx.rewrite(None, f"opset {plans[0].current} to {version}"):
        return False
    names = Names(module)
    for made in plans:
        made.apply(names, ctx)
    module.model.ir_version = max(module.model.ir_version, newest_ir_version(version))
    return True


def plan(module: Module, version: int, ctx: Context, *, runs: bool) -> list[Plan]:
    """What becomes of a main graph and of each function that has another opset; see `convert`."""
    plans = []
    for root, current in module.roots():
        if current in (0, version):  # 0 where nothing of the default operator set is imported
            continue
        if current < _RANKS_MATTER or version < current:
            infer_shapes(module.model, only_missing=True)
        plans.append(Plan(root, current, version, ctx if runs else None))
    return plans


def readable(module: Module) -> Module:
    """The module, or a copy in the nearest opset and IR version that ONNX Runtime reads.

    A copy that cannot be made is left to ONNX Runtime's own words.
    """
    low, high = reference().opset
    newest = newest_ir_version(high)
    if module.opset in (0, *range(low, high + 1)) and module.model.ir_version <= newest:
        return module
    made = module.clone()
    LiftConstants().run(made, Context())
    convert(made, min(max(module.opset, low), high), Context(), runs=False)
    made.model.ir_version = min(made.model.ir_version, newest)
    return made


def newest_ir_version(opset: int) -> int:
    """The IR version that an opset of the default domain came with."""
    found: int = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], True)
    return found


class Plan:
    """What becomes of each node of a main graph or function; made before anything is changed.

    Attributes:
        root: The main graph or function.
        current: Its opset.
        version: The one that it is to have.
        blocked: Nodes that mean nothing in that version, and why; then nothing may be applied.
        changes: What each other node becomes, where that is something else.
    """

    def __init__(self, root: GraphLike, current: int, version: int, ctx: Context | None) -> None:
        self.root = root
        self.current = current
        self.version = version
        self.blocked: list[tuple[ir.Node | None, str]] = []
        self.changes: list[tuple[GraphLike, ir.Node, Call]] = []
        if not LOWEST <= current <= HIGHEST:
            self.blocked.append((None, f"opset {current} is outside {LOWEST} to {HIGHEST}"))
            return
        graphs: list[GraphLike] = [root, *root.subgraphs()]
        for graph in graphs:
            for node in graph:
                if node.domain in _ALIASES:
                    self._plan(graph, node, ctx)

    def _plan(self, graph: GraphLike, node: ir.Node, ctx: Context | None) -> None:
        old = Call(node.op_type, tuple(node.inputs), dict(node.attributes))
        try:
            new = old
            for adapter in _steps(self.current, self.version):
                if new.op_type in adapter:
                    new = adapter[new.op_type](new, node)
            new = _fitted(new, node, self.current, self.version)
            if isinstance(graph, ir.Function):
                _check_constants(new, self.version)
            if ctx is not None:
                _check_kernel(new, self.version, ctx)
        except Blocked as reason:
            self.blocked.append((node, f"{node.op_type} {reason}"))
            return
        if new is not old:
            self.changes.append((graph, node, new))

    def apply(self, names: Names, ctx: Context) -> None:
        for graph, node, new in self.changes:
            stem = node.name or node.outputs[0].name or node.op_type
            builder = Builder(graph, names, stem, ctx.maker, self.version)
            inputs = [_value(item, builder) for item in new.inputs]
            for made in builder.made:
                made.metadata_props["aigcc.made_by"] = ctx.maker
            graph.insert_before(node, builder.made)
            _become(node, new, inputs)
            if node.op_type == "Dropout" and len(node.outputs) > 1:
                node.outputs[1].type = None  # of the mask, which nothing uses: it was another one
        self.root.opset_imports.pop("ai.onnx", None)
        self.root.opset_imports[""] = self.version


def _check_kernel(new: Call, version: int, ctx: Context) -> None:
    low, high = ctx.opsets(new.op_type)
    if not low <= version <= high:
        raise Blocked(f"does not run in opset {version}")


def _check_constants(new: Call, version: int) -> None:
    """Refuse what a function, which has no initializers, cannot hold."""
    for item in new.inputs:
        if isinstance(item, Call):
            _check_constants(item, version)
        elif isinstance(item, np.ndarray) and not has_constants(ir.tensor(item).dtype, version):
            raise Blocked(f"needs a constant of whole numbers, which opset {version} has not")


def _steps(current: int, version: int) -> Iterator[Mapping[str, Any]]:
    if current < version:
        yield from (RAISE.get(step, {}) for step in range(current + 1, version + 1))
    else:
        yield from (LOWER.get(step, {}) for step in range(current, version, -1))


def _value(item: Operand, builder: Builder) -> ir.Value | None:
    if isinstance(item, Call):
        inputs = [_value(inner, builder) for inner in item.inputs]
        made: ir.Value = builder.node(
            item.op_type, inputs, {name: a.value for name, a in item.attributes.items()}
        )
        return made
    return builder.constant(item) if isinstance(item, np.ndarray) else item


def _become(node: ir.Node, new: Call, inputs: list[ir.Value | None]) -> None:
    node.op_type, node.domain = new.op_type, ""
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
    for name in [name for name in node.attributes if name not in new.attributes]:
        del node.attributes[name]
    for attribute in new.attributes.values():
        node.attributes.add(attribute)


def _fitted(new: Call, node: ir.Node, current: int, version: int) -> Call:
    """A call without attributes that the version does not have, if those say nothing.

    Raises:
        Blocked: the version lacks the operator, an input, an attribute or a type.
    """
    schema = _schema(new.op_type, version)
    if schema is None or is_withdrawn(schema):
        raise Blocked(f"does not exist in opset {version}")
    if not schema.min_input <= len(new.inputs) <= schema.max_input:
        raise Blocked(f"has another number of inputs in opset {version}")
    if any(given is None for given in new.inputs[: schema.min_input]):
        raise Blocked(f"leaves out an input that opset {version} needs")
    idle = [name for name in new.attributes if name in _SAYS_NOTHING]
    unknown = [n for n in new.attributes if n not in schema.attributes and n not in idle]
    before = _schema(new.op_type, current)
    for name in unknown:
        default = (
            before.attributes[name].default_value if before and name in before.attributes else None
        )
        if default is None or not _says_nothing(new, name, default):
            raise Blocked(f"has an attribute {name} that opset {version} lacks")
    if version < current:
        _check_types(node, schema)
    return new.replace(drop=[*unknown, *idle]) if unknown or idle else new


def _says_nothing(new: Call, name: str, default: onnx.AttributeProto) -> bool:
    attribute = new.known(name)
    if attribute is None or default.type == onnx.AttributeProto.UNDEFINED:
        return False
    neutral = onnx.helper.get_attribute_value(default)
    return bool(attribute.value == (neutral.decode() if isinstance(neutral, bytes) else neutral))


def _check_types(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for place, value in enumerate(values):
            name = _type_name(value.type) if value is not None else ""
            if name and name not in formals[min(place, len(formals) - 1)].types:
                raise Blocked(f"takes no {name} before")


def _type_name(given: ir.TypeProtocol | None) -> str:
    """A type as schemas write it, such as `seq(tensor(float))`; empty where it is not known."""
    if isinstance(given, ir.SequenceType | ir.OptionalType):
        kind = "seq" if isinstance(given, ir.SequenceType) else "optional"
        inner = _type_name(given.elem_type)
        return f"{kind}({inner})" if inner else ""
    return f"tensor({given.dtype.name.lower()})" if isinstance(given, ir.TensorType) else ""


@functools.cache
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
