"""Reads a compiled OpenVINO model: which kernel each ONNX node runs in, and in which types."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aigcc.ir.module import Module
from aigcc.target import node_label

KERNELS = "kernels.json"

# Layers that multiply matrices or convolve.
_PRODUCTS = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "FullyConnected",
        "LSTMCell",
        "LSTMSequence",
        "MatMul",
        "RNNCell",
        "RNNSeq",
        "ScaledDotProductAttention",
    }
)
_PRODUCT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CONVERSIONS = frozenset({"Convert", "Reorder"})

# Layers that are no work: what enters, what leaves, and constants.
_ENDS = frozenset({"Const", "Input", "Output", "Parameter", "Result"})

_ONNX_NAMES = {
    "boolean": "bool",
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float",
    "f64": "double",
    "f8e4m3": "float8e4m3fn",
    "f8e5m2": "float8e5m2",
    **{f"{kind}{bits}": f"{name}int{bits}" for kind, name in (("i", ""), ("u", "u"))
       for bits in (4, 8, 16, 32, 64)},
}  # fmt: skip
OWN_NAMES = {name: own for own, name in _ONNX_NAMES.items()}
"""OpenVINO's names of element types, by those of ONNX."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One executed layer of a compiled model.

    Attributes:
        kind: OpenVINO's layer type, such as "FullyConnected" or "Subgraph" (fused code made for
            this model: elementwise chains, attention).
        kernel: The implementation, such as "brgemm_avx512_amx_bf16".
        inputs: Element types that it reads, constants not included; ONNX's names.
        weights: The element type of the constant second factor of a product; empty without.
        outputs: Element types that it writes.
        nodes: The ONNX nodes that were fused into it.
    """

    kind: str
    kernel: str
    inputs: tuple[str, ...]
    weights: str
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it is a product or a convolution; attention in a Subgraph is not told apart."""
        return self.kind in _PRODUCTS

    @property
    def computes_in(self) -> str:
        """The element type of what enters; of a Subgraph all of them, such as "float+int8".

        A product multiplies in the type of its first factor: weights of another type are converted
        to it. What is fused behind a product is computed in float32, whatever enters.
        """
        if self.kind == "Subgraph":
            return "+".join(sorted(set(self.inputs))) or "unknown"
        return (*self.inputs, *self.outputs, "unknown")[0]


def read_kernels(compiled: Any, labels: Collection[str]) -> list[Kernel]:
    """The kernels of an `openvino.CompiledModel`, in the order in which they run.

    What is computed once when the model is loaded, such as weights in another layout, is left out.
    Where dims are dynamic, kernels are chosen at the first inference: run the model before.

    Args:
        compiled: The compiled model.
        labels: The names of the ONNX nodes.
    """
    known = frozenset(labels)
    constants: set[str] = set()
    kernels = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(value) for key, value in op.get_rt_info().items()}
        kind = facts.get("layerType", "")
        sources = [port.get_source_output() for port in op.inputs()]
        fixed = [source.get_node().get_name() in constants for source in sources]
        if kind == "Const" or (sources and all(fixed)):
            constants.add(op.get_name())
        elif kind not in _ENDS:
            types = [_type(source) for source in sources]
            has_weights = kind in _PRODUCTS and len(types) > 1 and fixed[1]
            kernels.append(
                Kernel(
                    kind,
                    facts.get("primitiveType", ""),
                    tuple(t for t, is_fixed in zip(types, fixed, strict=True) if not is_fixed),
                    types[1] if has_weights else "",
                    tuple(_type(output) for output in op.outputs()),
                    _owners(facts.get("originalLayersNames", ""), known),
                )
            )
    return kernels


def with_products(kernels: Sequence[Kernel], module: Module) -> list[Kernel]:
    """The kernels, where each product that OpenVINO lost belongs to what follows it.

    A product with compressed weights and the Add of its bias become one layer, which is called
    after the Add alone.
    """
    products = {node_label(node): node for node in module.graph if node.op_type in _PRODUCT_OPS}
    owned = {name for kernel in kernels if kernel.multiplies for name in kernel.nodes}
    heirs: dict[str, str] = {}
    for label, node in products.items():
        users = [use.node for use in node.outputs[0].uses()]
        if label not in owned and len(users) == 1:
            heirs[node_label(users[0])] = label
    result = []
    for kernel in kernels:
        lost = [heirs[name] for name in kernel.nodes if name in heirs]
        if kernel.multiplies and lost and not products.keys() & kernel.nodes:
            kernel = dataclasses.replace(kernel, nodes=(*lost, *kernel.nodes))
        result.append(kernel)
    return result


def summarise(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Counts for the artifact: layers by type, and what the products multiply."""
    return {
        "total": len(kernels),
        "by_kind": _counts(kernel.kind for kernel in kernels),
        "products": _counts(
            f"{kernel.computes_in} x {kernel.weights}" if kernel.weights else kernel.computes_in
            for kernel in kernels
            if kernel.multiplies
        ),
        "conversions": sum(kernel.kind in _CONVERSIONS for kernel in kernels),
    }


def write_table(kernels: Iterable[Kernel], path: Path) -> None:
    """Write one line a kernel."""
    lines = [json.dumps(dataclasses.asdict(kernel)) for kernel in kernels]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


def read_back(folder: Path) -> Mapping[str, str]:
    """What each ONNX node of a built artifact runs in: node to `Kernel.computes_in`.

    A node that is fused into a kernel has that kernel's type; one that was folded away or that
    OpenVINO replaced without keeping its name is missing.
    """
    table = json.loads((folder / KERNELS).read_text("utf-8"))
    found: dict[str, str] = {}
    kernels = [Kernel(**row) for row in table]
    for kernel in sorted(kernels, key=lambda kernel: not kernel.multiplies):
        for node in kernel.nodes:
            found.setdefault(node, kernel.computes_in)
    return found


def _owners(names: str, known: Collection[str]) -> tuple[str, ...]:
    """The ONNX nodes of layers called `node`, `node/part` or `node_original`."""
    owners = (_owner(name, known) for name in names.split(","))
    return tuple(dict.fromkeys(owner for owner in owners if owner))


def _owner(name: str, known: Collection[str]) -> str:
    while name not in known:
        cut = max(name.rfind("/"), name.rfind("_original"))
        if cut <= 0:
            return ""
        name = name[:cut]
    return name


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _type(port: Any) -> str:
    name = str(port.get_element_type().get_type_name())
    return _ONNX_NAMES.get(name, name)


def _counts(items: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(items).items()))
