"""Which inputs steer a model: their numbers decide sizes, places or rounds, and are not free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes

_ALL = frozenset(range(64))

# Operators with the inputs that say how large something is, where it lies or how often it is done.
# What a runtime reads without looking is among them.
_STEERED: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(
        ("CenterCropPad", "CumSum", "Expand", "Gather", "GatherElements", "GatherND", "GridSample",
         "OneHot", "Reshape", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND",
         "SequenceAt", "SequenceErase", "Split", "SplitToSequence", "Squeeze", "TopK", "Trilu",
         "Unsqueeze", "Upsample", "MaxRoiPool", "Compress"),
        frozenset({1}),
    ),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
         "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        frozenset({1}),
    ),
    **dict.fromkeys(
        ("AffineGrid", "DeformConv", "DFT", "MaxUnpool", "MelWeightMatrix", "NonMaxSuppression",
         "Pad", "Resize", "RoiAlign", "Slice", "STFT", "TensorScatter", "Tile"),
        _ALL - {0},
    ),
    **dict.fromkeys(
        ("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow"), frozenset({0})
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), frozenset({4})),
    "Attention": frozenset({6}),
    "Loop": frozenset({0, 1}),
    "Range": _ALL,
    "RotaryEmbedding": frozenset({3}),
    "SequenceInsert": frozenset({2}),
}  # fmt: skip

# Whole numbers in these may stop the process: a division by 0, or of the lowest one by -1.
_DIVIDES = frozenset({"BitShift", "Div", "Mod"})

# Operators whose results lie within what the sizes of their inputs allow.
_BOUNDED = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})


def steering_inputs(module: Module) -> frozenset[str]:
    """The names of a module's inputs that something depends on other than a number.

    With other numbers than a sample's, what hangs on them may become huge, never end, or read what
    is not there.
    """
    module = module.clone()
    infer_shapes(module.model)  # what divides floats is free
    owners = {graph: node for node in module.nodes() for graph in held_graphs(node)}
    calls: dict[ir.OperatorIdentifier, list[ir.Node]] = defaultdict(list)
    for node in module.nodes():
        calls[node.op_identifier()].append(node)
    owned = {
        value: calls[function.identifier()]
        for function in module.model.functions.values()
        for value in function.inputs
    }
    waiting = [value for node in module.nodes() for value in _steered(node)]
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        found: list[ir.Value | None] = []
        maker = value.producer()
        if maker is not None:
            if not _is_bounded(maker, value):
                found = [*maker.inputs, *(o for graph in held_graphs(maker) for o in graph.outputs)]
        elif value in owned:
            found = [each for call in owned[value] for each in call.inputs]
        elif value.graph in owners:
            found = list(owners[value.graph].inputs)
        fresh = [each for each in found if each is not None and each not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return frozenset(value.name or "" for value in module.graph.inputs if value in seen)


def _is_bounded(maker: ir.Node, value: ir.Value) -> bool:
    return maker.op_type in _BOUNDED or (maker.op_type == "TopK" and value.index() == 1)


def _steered(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node that are more to it than numbers, and what ends a loop."""
    is_known = node.domain in ("", "ai.onnx")
    places = _STEERED.get(node.op_type, frozenset()) if is_known else frozenset()
    for place, value in enumerate(node.inputs):
        if value is None:
            continue
        is_whole = value.dtype is None or value.dtype.is_integer()
        is_risk = is_whole and (node.op_type in _DIVIDES or not is_known)
        if place in places or is_risk:
            yield value
    if node.op_type == "Loop":
        yield from (graph.outputs[0] for graph in held_graphs(node) if graph.outputs)
