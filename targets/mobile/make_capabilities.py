"""Write `capabilities.toml` from the kernels that the installed ONNX Runtime has for CPUs.

Run it as `python -m aigcc.targets.mobile.make_capabilities` on x86-64 after an upgrade of ONNX
Runtime. Equal versions of ONNX Runtime give equal files.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
OLDEST = 7
"""ONNX Runtime runs every model since this opset."""

_OPEN_END = 2**31 - 1
_ATTRIBUTES = {"INT": 1, "INTS": [1], "FLOAT": 1.0, "FLOATS": [1.0]}
# ONNX Runtime itself puts casts around an operator that has no kernel for such a type.
_CONVERTED = {"float16": "float"}

# Rules of legalize that make a model faster, with their options. Attention by
# com.microsoft.MultiHeadAttention is slower up to 512 queries and keys, and faster from 1024 on;
# GroupNormalization and Swish have no kernels, and what they expand to is not fused again.
_PREFER: dict[str, dict[str, int]] = {
    "flash-attention": {"scores": 1 << 20},
    "group-norm": {},
    "skip-norm": {},
    "square": {},
    "swish": {},
    "upsample-conv": {"channels": 128},
}
# What its kernels refuse of operators that they take otherwise.
_WHOLE = [f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")]
_LIMITS: dict[str, list[dict[str, list[Any]]]] = {
    "Attention": [{"left_window_size": [], "right_window_size": []}],  # not even without a window
    "GRU": [{"layout": [0]}],
    "LSTM": [{"layout": [0]}],
    "Mod": [{"fmod": [1]}, {"dtypes": _WHOLE}],
    "RNN": [{"layout": [0]}],
    "StringNormalizer": [{"case_change_action": ["NONE"]}],  # others need a locale of the system's
}
# What ONNX Runtime puts in by itself.
_INTERNAL = {("", "MemcpyFromHost"), ("", "MemcpyToHost")}

Key = tuple[str, str]
Types = frozenset[str]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one operator.

    Attributes:
        types: On any input or output; none where it cannot run.
        opsets: The first and the last opset in which it runs, where it exists.
        slots: Inputs and outputs that take fewer types than `types` and the standard.
    """

    types: Types
    opsets: tuple[int, int]
    slots: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class Registry:
    """The kernels and the schemas of the installed ONNX Runtime.

    Attributes:
        newest: The newest opset that it loads.
        kernels: For each operator, the versions and the types of each kernel.
        schemas: For each operator, its schemas by version, up to `newest`.
    """

    def __init__(self) -> None:
        self.newest = max(v for v in range(OLDEST, onnx.defs.onnx_opset_version() + 1) if _loads(v))
        self.kernels: dict[Key, list[tuple[tuple[int, int], dict[str, Types]]]] = defaultdict(list)
        for kernel in state.get_all_opkernel_def():
            if kernel.provider == "CPUExecutionProvider" and kernel.domain in DOMAINS:
                types = {name: element_types(t) for name, t in kernel.type_constraints.items()}
                self.kernels[kernel.domain, kernel.op_name].append((kernel.version_range, types))
        self.schemas: dict[Key, dict[int, Any]] = defaultdict(dict)
        for schema in state.get_all_operator_schema():
            version = schema.since_version
            if schema.domain in DOMAINS and (schema.domain or version <= self.newest):
                self.schemas[schema.domain, schema.name][version] = schema

    def latest(self, key: Key) -> int | None:
        """The newest version of an operator that has a kernel."""
        ranges = [versions for versions, _ in self.kernels[key]]
        with_kernel = (v for v in self.schemas[key] if any(_covers(r, v) for r in ranges))
        return max(with_kernel, default=None)

    def types(self, key: Key, version: int) -> dict[str, Types]:
        """The types of each constraint, over all kernels of a version of an operator."""
        merged: dict[str, Types] = {}
        for versions, types in self.kernels[key]:
            if _covers(versions, version):
                for name, allowed in types.items():
                    merged[name] = merged.get(name, frozenset()) | allowed
        return merged


def element_types(types: Iterable[str]) -> Types:
    """`tensor(float)`, `seq(tensor(float))` and so on as element types."""
    return frozenset(re.sub(r".*\(|\)+$|.*,", "", text) for text in types)


def make_table(registry: Registry) -> dict[str, Any]:
    """The contents of `capabilities.toml`."""
    entries: dict[str, Entry] = {}
    for key in sorted(registry.schemas.keys() - _INTERNAL):
        has_kernel = registry.latest(key) is not None
        entry = (_with_kernel if has_kernel else _without_kernel)(registry, key)
        if entry.types:
            entries["::".join(filter(None, key))] = entry
    every = frozenset[str]().union(*(entry.types for entry in entries.values()))
    entries["Constant"] = Entry(every, (OLDEST, registry.newest))  # becomes an initializer
    entries = dict(sorted(entries.items()))
    return {
        "onnxruntime": ort.__version__,
        "opset": [OLDEST, registry.newest],
        "dtypes": sorted(every),
        "converted": _CONVERTED,
        "prefer": _PREFER,
        "ops": {
            name: [] if entry.types == every else sorted(entry.types)
            for name, entry in entries.items()
        },
        "limits": _LIMITS,
        "slots": {name: entry.slots for name, entry in entries.items() if entry.slots},
        "versions": {
            name: list(entry.opsets)
            for name, entry in entries.items()
            if entry.opsets[1] < registry.newest
        },
    }


def _with_kernel(registry: Registry, key: Key) -> Entry:
    version, schemas = registry.latest(key), registry.schemas[key]
    assert version is not None
    types, slots = _types_by_slot(schemas[version], registry.types(key, version))
    if key[0]:
        return Entry(types, (OLDEST, registry.newest), slots)
    oldest = max(OLDEST, *schemas)
    more = _expands(registry, key, oldest) & _expands(registry, key, registry.newest)
    newer = [other for other in schemas if other > version]
    last = min(newer) - 1 if newer and not more else registry.newest
    return Entry(types | more, (max(OLDEST, min(schemas)), last), slots)


def _without_kernel(registry: Registry, key: Key) -> Entry:
    schemas = registry.schemas[key]
    for version in sorted(schemas, reverse=True):
        opsets = range(max(OLDEST, version), registry.newest + 1)
        types = _expands(registry, key, opsets[0])
        if types:
            last = max(opset for opset in opsets if types <= _expands(registry, key, opset))
            _, *others = _constraints(schemas[version]).values()
            return Entry(types.union(*others), (opsets[0], last))
    return Entry(frozenset(), (0, 0))


def _types_by_slot(schema: Any, kernel: dict[str, Types]) -> tuple[Types, dict[str, list[str]]]:
    """All types of an operator, and the inputs and outputs that take fewer than the schema says."""
    constraints = {
        t.type_param_str: element_types(t.allowed_type_strs) for t in schema.type_constraints
    }
    allowed: dict[str, tuple[Types, Types]] = {}
    for prefix, formals in (("in", schema.inputs), ("out", schema.outputs)):
        for index, formal in enumerate(formals):
            standard = constraints.get(formal.typeStr, element_types([formal.typeStr]))
            taken = kernel.get(formal.typeStr, kernel.get(formal.name, standard))
            allowed[f"{prefix}{index}"] = (standard, taken)
    every = frozenset[str]().union(*(taken for _, taken in allowed.values()))
    grouped: dict[Types, list[str]] = defaultdict(list)
    for slot, (standard, taken) in allowed.items():
        if not standard & every <= taken:
            grouped[taken].append(slot)
    return every, {" ".join(places): sorted(types) for types, places in grouped.items()}


def _expands(registry: Registry, key: Key, opset: int) -> Types:
    """Types of an operator's first constraint for which ONNX Runtime replaces it by others."""
    version = max(v for v in registry.schemas[key] if v <= opset)
    schema = registry.schemas[key][version]
    if key[0] or not schema.type_constraints or not onnx.defs.has(key[1], opset):
        return frozenset()
    name = schema.type_constraints[0].type_param_str
    kernels = registry.types(key, version).get(name, frozenset())
    types = sorted(_constraints(schema)[name] - set(_CONVERTED) - kernels)
    return frozenset(dtype for dtype in types if _runs(_one_node(schema, name, dtype, opset)))


def _constraints(schema: Any) -> dict[str, Types]:
    return {t.type_param_str: element_types(t.allowed_type_strs) for t in schema.type_constraints}


def _one_node(schema: Any, constraint: str, dtype: str, opset: int) -> onnx.ModelProto | None:
    """A model of one node, with `dtype` for a type constraint; None where it needs a sub-graph."""
    required = [a for a in schema.attributes.values() if a.required]
    kinds = {a.name: str(a.type).rpartition(".")[2] for a in required}
    if not set(kinds.values()) <= set(_ATTRIBUTES):
        return None
    constraints = _constraints(schema)

    def info(formal: Any, name: str) -> onnx.ValueInfoProto:
        choices = constraints.get(formal.typeStr, element_types([formal.typeStr]))
        if formal.typeStr == constraint:
            choices = frozenset({dtype})
        kind = next(t for t in ("int64", "float", *sorted(choices)) if t in choices)
        element = onnx.TensorProto.DataType.Value(kind.upper())
        return helper.make_tensor_value_info(name, element, None)

    single = [formal for formal in schema.inputs if str(formal.option).endswith("Single")]
    inputs = [info(formal, f"in{index}") for index, formal in enumerate(single)]
    attributes = {name: _ATTRIBUTES[kind] for name, kind in kinds.items()}
    node = helper.make_node(schema.name, [i.name for i in inputs], ["out0"], **attributes)
    result = schema.outputs[0]
    is_same = result.typeStr == constraint  # else it may be told by an attribute
    output = info(result, "out0") if is_same else onnx.ValueInfoProto(name="out0")
    return _model([node], inputs, [output], opset)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "probe", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _loads(opset: int) -> bool:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    return _runs(_model([], [value], [value], opset))


def _runs(model: onnx.ModelProto | None) -> bool:
    if model is None:
        return False
    options = ort.SessionOptions()
    options.log_severity_level = 4
    errors = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented)
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except errors:
        return False
    return True


def _covers(versions: tuple[int, int], since: int) -> bool:
    """ONNX Runtime's own test: an open-ended kernel serves no version but the first."""
    first, last = versions
    return first == since or (first < since <= last and last != _OPEN_END)


def to_toml(table: dict[str, Any]) -> str:
    """The table as text, one operator a line."""
    return "\n".join(_lines(table)) + "\n"


def _lines(table: dict[str, Any]) -> Iterator[str]:
    yield "# What ONNX Runtime's CPU kernels take on x86-64; Arm has some for float16 besides."
    yield "# Made by: python -m aigcc.targets.mobile.make_capabilities"
    yield f'onnxruntime = "{table["onnxruntime"]}"'
    yield f"opset = {table['opset']}"
    yield f"dtypes = {_list(table['dtypes'])}"
    yield ""
    yield "# Types that the runtime casts by itself around an operator without a kernel for them."
    yield "[converted]"
    yield from (f'{old} = "{new}"' for old, new in table["converted"].items())
    yield ""
    yield "# Other forms that are faster, for legalize."
    yield "[prefer]"
    yield from (f"{_name(name)} = {_inline(options)}" for name, options in table["prefer"].items())
    yield ""
    yield "# Types on any input or output; an empty list means all of `dtypes`."
    yield "[ops]"
    yield from (f"{_name(name)} = {_list(types)}" for name, types in table["ops"].items())
    yield ""
    yield "# What a node must fulfil besides: see compiler/limits.py."
    yield "[limits]"
    for name, alternatives in table["limits"].items():
        yield f"{_name(name)} = [{', '.join(map(_inline, alternatives))}]"
    yield ""
    yield "# Inputs and outputs that take fewer types than the standard and the line above."
    for name, slots in table["slots"].items():
        yield f"[slots.{_name(name)}]"
        yield from (f'"{places}" = {_list(types)}' for places, types in slots.items())
    yield ""
    yield "# The first and the last opset in which an operator runs, where it is not the newest."
    yield "[versions]"
    yield from (f"{_name(name)} = {opsets}" for name, opsets in table["versions"].items())


def _list(types: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in types) + "]"


def _inline(options: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{key} = {value}" for key, value in options.items())
    return f"{{ {pairs} }}" if pairs else "{}"


def _name(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name) else f'"{name}"'


if __name__ == "__main__":
    path = Path(__file__).with_name("capabilities.toml")
    path.write_text(to_toml(make_table(Registry())), "utf-8")
    print(f"wrote {path}")
