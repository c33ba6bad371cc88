"""What OpenVINO refuses, or gets wrong, and a table of operators cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.weights import constant, read
from aigcc.target import Problem, node_label

_LARGEST = (1 << 31) - 1
# Where a number beyond 32 bits is as good as the largest: ends of slices and the like.
_CLAMPED = frozenset({"Clip", "Max", "Min", "NonMaxSuppression", "Reshape", "Slice", "Where"})
_MOVES = frozenset({"Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Whose reader asks how many dims there are.
_RANKED = frozenset(
    {
        "ArgMax", "ArgMin", "Conv", "ConvInteger", "DepthToSpace", "DequantizeLinear",
        "InstanceNormalization", "LpNormalization", "MaxPool", "QLinearConv", "ReverseSequence",
        "RotaryEmbedding", "SpaceToDepth",
    }
)  # fmt: skip
_SMALL = 1 << 16  # constants of more elements are weights


def refusals(module: Module) -> Iterator[Problem]:
    """All that is refused, besides what the capability table says."""
    yield from _doubles(module)
    for value in (*module.inputs, *module.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            yield Problem(
                f"{value.name!r} is no tensor, and OpenVINO takes and gives tensors alone"
            )
    for node in module.nodes():
        for look in _LOOKS.get(node.op_type, (_large_integers,)) if node.domain == "" else ():
            if reason := look(node):
                yield Problem(f"{node.op_type}: {reason}", node=node_label(node))
        yield from _unknown_ranks(node)
    for node in module.graph.all_nodes():  # those of functions are known when these are inlined
        x = node.inputs[0] if node.inputs else None
        if node.op_type in _RANKED and not node.domain and x is not None and x.shape is None:
            yield Problem(
                f"{node.op_type}: the number of dims of {x.name!r} must be known",
                node=node_label(node),
                hint="let the inputs of the model say their dims, by names where sizes vary",
            )


def _doubles(module: Module) -> Iterator[Problem]:
    """Doubles are float32 inside, and their infinities the largest number that a float32 has."""
    for what, values in (("input", module.inputs), ("output", module.outputs)):
        for value in values:
            if value.dtype == ir.DataType.DOUBLE:
                yield Problem(
                    f"{what} {value.name!r} is a double, which OpenVINO holds in float32 with "
                    "infinities made finite",
                    hint=f"let the model {'take' if what == 'input' else 'give'} float32",
                )


def _unknown_ranks(node: ir.Node) -> Iterator[Problem]:
    """Nothing can be computed of a value that may have this many dims or that many."""
    for value in node.outputs:
        if value.shape is not None or not isinstance(value.type, ir.TensorType) or not value.name:
            continue
        if node.op_type == "If" and not node.domain:
            ranks = {
                len(output.shape)
                for graph in held_graphs(node)
                for output in graph.outputs[value.index() or 0 : (value.index() or 0) + 1]
                if output.shape is not None
            }
            if len(ranks) > 1:
                yield Problem(
                    f"If: its branches make {' and '.join(map(str, sorted(ranks)))} dims of "
                    f"{value.name!r}",
                    node=node_label(node),
                    hint="make the condition a constant, so that one of them is left",
                )


def _large_integers(node: ir.Node) -> str:
    """Integers have 32 bits."""
    if _is_clamped(node):
        return ""
    for value in node.inputs:
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > _SMALL:
            continue
        array = tensor.numpy()
        if array.size and max(-int(array.min()) - 1, int(array.max())) > _LARGEST:
            return f"its input {value.name!r} needs more than 32 bits" if value is not None else ""
    return ""


def _is_clamped(node: ir.Node) -> bool:
    """Whether all that is made of a node's numbers, moved as they are, is fine at the largest."""
    if node.op_type not in _MOVES:
        return node.op_type in _CLAMPED
    values = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    users = [use.node for value in values for use in value.uses()]
    is_seen = any(value.is_graph_output() for value in values)
    return not is_seen and all(map(_is_clamped, users))


def _blocks(node: ir.Node) -> str:
    size = node.attributes.get_int("block_size", 0)
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if not size or shape is None:
        return ""
    if node.op_type == "QuantizeLinear" and (len(node.inputs) < 3 or node.inputs[2] is None):
        return "blocks need zero points"
    length = shape[node.attributes.get_int("axis", 1)]
    is_cut = isinstance(length, int) and length % size
    return f"blocks of {size} do not divide an axis of {length}" if is_cut else ""


def _windows(node: ir.Node) -> str:
    """What SAME means for windows with gaps, or between them, differs from runtime to runtime."""
    attributes = node.attributes
    if not attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return ""
    sizes = attributes.get_ints("kernel_shape", ())
    steps = attributes.get_ints("strides", (1,) * len(sizes))
    if max(attributes.get_ints("dilations", (1,)), default=1) > 1:
        return "auto_pad has no one meaning for windows with dilations: give pads"
    if any(step > size for step, size in zip(steps, sizes, strict=False)):
        return "auto_pad has no one meaning for windows smaller than their steps: give pads"
    return ""


def _image_dims(node: ir.Node) -> str:
    shape = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return "" if shape is None or shape[0] == 2 else "only images of two dims can be put together"


def _heads(node: ir.Node) -> str:
    """A key that several queries share is repeated as often as there are more queries."""
    q, k = (*node.inputs, None, None)[:2]
    if q is None or k is None or q.shape is None or k.shape is None or len(q.shape) != 4:
        return ""
    is_open = isinstance(q.shape[1], int) != isinstance(k.shape[1], int)
    return "the numbers of heads, axis 1 of its queries and keys, must be known" if is_open else ""


def _causal_past(node: ir.Node) -> str:
    """Without a mask it lets the first query see one key, however many are in the past."""
    past = node.inputs[4] if len(node.inputs) > 4 else None
    is_causal = bool(node.attributes.get_int("is_causal", 0))
    return "is_causal counts no keys of the past" if is_causal and past is not None else ""


def _spread_scale(node: ir.Node) -> str:
    """Scales and biases must have all dims that are normalised, and none of them 1 for many."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return ""
    dims = list(x.shape)[node.attributes.get_int("axis", -1) :]
    for value in node.inputs[1:3]:
        if value is None or value.shape is None:
            continue
        found = list(value.shape)
        is_spread = any(one == 1 != many for one, many in zip(found, dims, strict=False))
        if len(found) != len(dims) or is_spread:
            return f"{value.name!r} must have the dims that are normalised"
    return ""


def _ties(node: ir.Node) -> str:
    """x / s as x * (1 / s) rounds the other way where it is half a number."""
    if node.attributes.get_int("block_size", 0):
        return ""
    y = node.outputs[0]
    is_grid = all(use.node.op_type == "DequantizeLinear" for use in y.uses())
    if constant(node.inputs[1]) is not None and is_grid and not y.is_graph_output():
        return ""
    return "its scale must be a constant, and its integers be read by DequantizeLinear alone"


def _rotary_cache(node: ir.Node) -> str:
    for value in node.inputs[1:3]:
        if value is None:
            continue
        if value.shape is None or not len(value.shape) or not isinstance(value.shape[-1], int):
            return f"the last dim of {value.name!r} must be known"
    return ""


def _outer_values(node: ir.Node) -> str:
    """A Scan's body may read constants from outside, and nothing else."""
    inside = {value for graph in held_graphs(node) for value in _made_in(graph)}
    for graph in held_graphs(node):
        for inner in graph.all_nodes():
            for value in inner.inputs:
                if value is not None and value not in inside and constant(value) is None:
                    return f"its body reads {value.name!r} from outside: make it a state"
    return ""


def _made_in(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
        for inner in held_graphs(node):
            yield from inner.inputs
            yield from inner.initializers.values()


def _split(node: ir.Node) -> str:
    """Parts must be known, or divide their axis."""
    parts = node.inputs[1] if len(node.inputs) > 1 else None
    if parts is not None:
        return "" if read(parts) is not None else f"its input {parts.name!r} must be a constant"
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if "num_outputs" not in node.attributes or shape is None:
        return ""
    axis = node.attributes.get_int("axis", 0)
    return "" if isinstance(shape[axis], int) else f"the size of its axis {axis} must be known"


def _frame_step(node: ir.Node) -> str:
    step = read(node.inputs[1]) if len(node.inputs) > 1 else None
    return "" if step is None or np.size(step) == 1 else "its step must be one number"


_LOOKS: dict[str, tuple[Callable[[ir.Node], str], ...]] = {
    "Attention": (_heads, _causal_past),
    "AveragePool": (_windows,),
    "Col2Im": (_image_dims,),
    "DequantizeLinear": (_blocks,),
    "LayerNormalization": (_spread_scale,),
    "LpPool": (_windows,),
    "MaxPool": (_windows,),
    "QuantizeLinear": (_blocks, _ties),
    "RMSNormalization": (_spread_scale,),
    "RotaryEmbedding": (_rotary_cache,),
    "Scan": (_outer_values,),
    "Split": (_split,),
    "STFT": (_frame_step,),
}
