"""What a node may look like: its opset, inputs, outputs, attributes, types and sub-graphs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from aigcc.errors import did_you_mean
from aigcc.ir.shapes.contrib import CONTRIB

# An input as a signature holds it: its type in the words of the schemas, or one of these.
LEFT_OUT = "left out"
UNTYPED = "untyped"

_TENSOR_TYPES = tuple(f"tensor({dtype.name.lower()})" for dtype in ir.DataType)
_ATTRIBUTE_TYPES = tuple(kind.name for kind in ir.AttributeType)
_OPTION = onnx.defs.OpSchema.FormalParameterOption


@dataclasses.dataclass(frozen=True)
class Complaint:
    """What is wrong with a node, and what to do about it."""

    what: str
    hint: str | None = None


def type_text(kind: ir.TypeProtocol | None) -> str:
    """A type in the words of the schemas, such as `seq(tensor(float))`."""
    if isinstance(kind, ir.TensorType):
        return _TENSOR_TYPES[kind.dtype]
    if isinstance(kind, ir.SequenceType):
        return f"seq({type_text(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({type_text(kind.elem_type)})"
    return UNTYPED


def node_text(node: ir.Node) -> str:
    """How messages name a node: by its name, or by what it makes."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    outputs = ", ".join(repr(value.name) for value in node.outputs if value.name)
    return f"the {node.op_type} that makes {outputs or 'nothing'}"


def check_imports(imports: Mapping[str, int]) -> Iterator[Complaint]:
    """Opset versions that ONNX does not know, or not yet."""
    for domain, version in imports.items():
        newest = _newest_versions().get("" if domain == "ai.onnx" else domain)
        name = domain or "the default domain"
        if version < 1:
            yield Complaint(f"opset {version} of {name} does not exist")
        elif newest is not None and version > newest:
            yield Complaint(
                f"opset {version} of {name} is newer than onnx {onnx.__version__} knows",
                f"convert the model to opset {newest}, or install a newer onnx",
            )


@functools.cache
def _newest_versions() -> Mapping[str, int]:
    versions: dict[str, int] = {"": onnx.defs.onnx_opset_version()}
    for schema in onnx.defs.get_all_schemas():
        versions[schema.domain] = max(versions.get(schema.domain, 0), schema.since_version)
    return versions


def check_node(node: ir.Node, opset: int) -> Sequence[Complaint]:
    """Where a node breaks its schema; the many nodes that look alike are checked once.

    Args:
        node: A node that is no call of a model-local function.
        opset: The version of the node's domain.
    """
    # This runs for every node after every pass, so the common case takes no further call.
    inputs = tuple(
        [
            LEFT_OUT
            if value is None
            else _TENSOR_TYPES[kind.dtype]
            if type(kind := value.type) is ir.TensorType
            else type_text(kind)
            for value in node.inputs
        ]
    )
    outputs = tuple([type_text(value.type) if value.name else LEFT_OUT for value in node.outputs])
    attributes = node.attributes.data
    kinds = tuple([_ATTRIBUTE_TYPES[attribute.type] for attribute in attributes.values()])
    return _check(node.domain, node.op_type, opset, inputs, outputs, tuple(attributes), kinds)


@functools.lru_cache(maxsize=65536)
def _check(
    domain: str,
    op_type: str,
    opset: int,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    attributes: tuple[str, ...],
    kinds: tuple[str, ...],
) -> tuple[Complaint, ...]:
    known = _versions_of_ops(domain)
    if not known:
        return ()
    schema = _schema(domain, op_type, opset)
    if schema is None:
        if (domain, op_type) in CONTRIB:
            return ()
        return (_missing_op(domain, op_type, opset, known),)
    if is_withdrawn(schema):
        return (
            Complaint(
                f"{op_type} was withdrawn in opset {schema.since_version}",
                "replace it, or import an older opset",
            ),
        )
    return (
        *_check_count("input", schema, inputs, schema.min_input, schema.max_input),
        *_check_count("output", schema, outputs, schema.min_output, schema.max_output),
        *_check_required(schema, inputs),
        *_check_attributes(schema, dict(zip(attributes, kinds, strict=True))),
        *_check_types(schema, inputs, outputs),
    )


@functools.cache
def _versions_of_ops(domain: str) -> Mapping[str, int]:
    """The ops of a domain, with the opset that each came with."""
    versions: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == domain:
            since = versions.get(schema.name, schema.since_version)
            versions[schema.name] = min(since, schema.since_version)
    return versions


@functools.cache
def _schema(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    since = _versions_of_ops(domain).get(op_type)
    if since is None or since > opset:
        return None
    return onnx.defs.get_schema(op_type, opset, domain)


def is_withdrawn(schema: onnx.defs.OpSchema) -> bool:
    """Whether an operator ends with this version of it.

    GroupNormalization of opset 18 is deprecated too, and all that there is before opset 21.
    """
    first = _versions_of_ops(schema.domain)[schema.name]
    return bool(schema.deprecated) and first < schema.since_version


def _missing_op(domain: str, op_type: str, opset: int, known: Mapping[str, int]) -> Complaint:
    name = f"the domain {domain}" if domain else "ONNX"
    if op_type in known:
        return Complaint(
            f"{op_type} came with opset {known[op_type]}, the model imports {opset}",
            f"convert the model to opset {known[op_type]} or newer",
        )
    return Complaint(f"{name} has no op {op_type!r}", near(op_type, known))


def near(name: str, known: Iterable[str]) -> str | None:
    """The hint that a misspelt name deserves, if anything known is near it."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did you mean") else None


def _check_count(
    noun: str, schema: onnx.defs.OpSchema, present: tuple[str, ...], least: int, most: int
) -> Iterator[Complaint]:
    count = len(present)
    if not least <= count <= most:
        wanted = f"at least {least}" if count < least else f"at most {most}"
        yield Complaint(
            f"{schema.name} of opset {schema.since_version} has {wanted} {noun}s, "
            f"this node has {count}"
        )


def _check_required(schema: onnx.defs.OpSchema, inputs: tuple[str, ...]) -> Iterator[Complaint]:
    for index, (formal, actual) in enumerate(zip(schema.inputs, inputs, strict=False)):
        if formal.option == _OPTION.Single and actual is LEFT_OUT:
            yield Complaint(f"{schema.name} needs its input {index} ({formal.name})")


def _check_attributes(
    schema: onnx.defs.OpSchema, present: Mapping[str, str]
) -> Iterator[Complaint]:
    for name, kind in present.items():
        formal = schema.attributes.get(name)
        if formal is None:
            yield Complaint(
                f"{schema.name} of opset {schema.since_version} has no attribute {name!r}",
                near(name, schema.attributes),
            )
        elif kind not in ("UNDEFINED", formal.type.name):
            yield Complaint(
                f"attribute {name!r} is a {kind}, {schema.name} wants {formal.type.name}"
            )
    for name, formal in schema.attributes.items():
        if formal.required and name not in present:
            yield Complaint(f"{schema.name} needs the attribute {name!r}")
    if schema.name == "Constant" and len(present) != 1:
        yield Complaint(f"Constant needs exactly one attribute, this one has {len(present)}")


def _check_types(
    schema: onnx.defs.OpSchema, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Iterator[Complaint]:
    bound: dict[str, tuple[str, str]] = {}
    for noun, formals, actuals in (
        ("input", schema.inputs, inputs),
        ("output", schema.outputs, outputs),
    ):
        for index, actual in enumerate(actuals):
            if actual in (LEFT_OUT, UNTYPED) or not formals:
                continue
            formal = formals[min(index, len(formals) - 1)]
            place = f"{noun} {index} ({formal.name})"
            if actual not in formal.types:
                allowed = ", ".join(sorted(formal.types))
                yield Complaint(
                    f"{place} of {schema.name} may not be {actual}",
                    f"opset {schema.since_version} allows {allowed}",
                )
            elif formal.is_homogeneous:
                first, where = bound.setdefault(formal.type_str, (actual, place))
                if first != actual:
                    yield Complaint(
                        f"{where} and {place} of {schema.name} must have the same type, "
                        f"they are {first} and {actual}",
                        "insert a Cast",
                    )


def check_call(node: ir.Node, function: ir.Function) -> Iterator[Complaint]:
    """Where a call does not fit its function; inputs and attributes may be left out."""
    for noun, actual, formal in (
        ("input", node.inputs, function.inputs),
        ("output", node.outputs, function.outputs),
    ):
        if len(actual) > len(formal):
            yield Complaint(
                f"function {function.name} has {len(formal)} {noun}s, this call has {len(actual)}"
            )
    for name in node.attributes:
        if name not in function.attributes:
            hint = near(name, function.attributes)
            yield Complaint(f"function {function.name} has no attribute {name!r}", hint)


def check_body(node: ir.Node, name: str, body: ir.Graph, opset: int) -> Iterator[Complaint]:
    """Where the sub-graph that is attribute `name` of a control flow operator does not fit it."""
    check = _BODIES.get(node.op_type) if node.domain == "" else None
    if check is not None:
        yield from check(node, name, body, opset)


def _check_branch(node: ir.Node, name: str, body: ir.Graph, opset: int) -> Iterator[Complaint]:
    if body.inputs:
        yield Complaint(f"{name} of If cannot have inputs", "a branch sees the values around it")
    yield from _match(
        f"outputs of {name}", body.outputs, f"outputs of {node.op_type}", node.outputs
    )


def _check_loop(node: ir.Node, name: str, body: ir.Graph, opset: int) -> Iterator[Complaint]:
    carried = node.inputs[2:]
    count = len(carried)
    yield from _match(f"state inputs of {name}", body.inputs[2:], "initial values", carried)
    results = [*node.outputs[:count], *[None] * (len(node.outputs) - count)]
    yield from _match(
        f"outputs of {name} after the condition", body.outputs[1:], "outputs", results
    )


def _check_scan(node: ir.Node, name: str, body: ir.Graph, opset: int) -> Iterator[Complaint]:
    # In opset 8 the first input holds the lengths of the sequences.
    inputs = node.inputs if opset > 8 else node.inputs[1:]
    yield from _match(f"inputs of {name}", body.inputs, "inputs of Scan", inputs)
    yield from _match(f"outputs of {name}", body.outputs, "outputs of Scan", node.outputs)


def _check_map(node: ir.Node, name: str, body: ir.Graph, opset: int) -> Iterator[Complaint]:
    inputs, outputs = (list(map(_element, values)) for values in (node.inputs, node.outputs))
    yield from _match(f"inputs of {name}", body.inputs, "inputs of SequenceMap", inputs)
    yield from _match(f"outputs of {name}", body.outputs, "outputs of SequenceMap", outputs)


def _element(value: ir.Value | None) -> ir.Value | None:
    """A value of the type that the elements of a sequence have; a tensor as it is."""
    if value is None or not isinstance(value.type, ir.SequenceType):
        return value
    return ir.Value(name=value.name, type=value.type.elem_type)


_BODIES = {"If": _check_branch, "Loop": _check_loop, "Scan": _check_scan, "SequenceMap": _check_map}


def _match(
    noun: str,
    inner: Sequence[ir.Value],
    outer_noun: str,
    outer: Sequence[ir.Value | None],
) -> Iterator[Complaint]:
    """That a sub-graph's values pair off with the node's; None matches any type."""
    if len(inner) != len(outer):
        yield Complaint(f"there are {len(inner)} {noun}, but {len(outer)} {outer_noun}")
    for index, (a, b) in enumerate(zip(inner, outer, strict=False)):
        if b is not None and a.type is not None and b.type is not None and a.type != b.type:
            yield Complaint(
                f"{noun} and {outer_noun} differ in type at {index}: "
                f"{type_text(a.type)} and {type_text(b.type)}"
            )
