"""How attention heads are split from the width of a value, and how a value before that is found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from aigcc.analysis.positions import same_dim
from aigcc.ir.weights import scalar
from aigcc.pipeline.rules import Builder

_SPLIT = [0, 2, 1, 3]
_NORMS = frozenset({"RMSNormalization", "LayerNormalization"})


def keys_from(op: Builder, transposed: ir.Value) -> ir.Value:
    """The keys [.., tokens, width] of a value [.., width, tokens] (3 or 4 dims)."""
    assert transposed.shape is not None
    rank = len(transposed.shape)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    source, perm = _through_transpose(transposed)
    merged = swap if perm is None else [perm[axis] for axis in swap]
    value: ir.Value = source if merged == sorted(merged) else op.Transpose(source, perm=merged)
    return value


def joined(op: Builder, value: ir.Value | None) -> ir.Value | None:
    """The rows [batch, tokens, heads * width] from which [batch, heads, tokens, width] was split.

    Looks through what can be done before the split as well: joining tokens, rotary embeddings and
    norms of each head. None if the value was not made by splitting rows.
    """
    node = value.producer() if value is not None else None
    if value is None or node is None or value.shape is None or len(value.shape) != 4:
        return None
    heads, width = value.shape[1], value.shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    source, perm = _through_transpose(value)
    if perm == _SPLIT:
        return _rows(op, source, heads * width)
    if (packed := _unpacked(op, node, heads * width)) is not None:
        return packed
    if len(value.consumers()) > 1 or value.is_graph_output():
        return None
    return _before(op, node, heads, width)


def _before(op: Builder, node: ir.Node, heads: int, width: int) -> ir.Value | None:
    """`joined` for a node that may as well run before the split."""
    if node.op_type == "Concat" and node.attributes["axis"].as_int() in (2, -2):
        parts = [joined(op, part) for part in node.inputs]
        made = op.Concat(*parts, axis=1) if all(part is not None for part in parts) else None
        return made if isinstance(made, ir.Value) else None
    if node.op_type not in _NORMS and node.op_type != "RotaryEmbedding":
        return None
    rows = joined(op, node.inputs[0])
    if rows is None:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "RotaryEmbedding":
        turned: ir.Value = op.RotaryEmbedding(
            rows, *node.inputs[1:], **{**attributes, "num_heads": heads}
        )
        return turned
    if attributes.get("axis", -1) not in (-1, 3) or len(node.outputs) > 1:
        return None
    attributes["axis"] = -1
    split = op.Reshape(rows, [0, 0, heads, width])
    normed = op.node(node.op_type, [split, *node.inputs[1:]], attributes)
    value: ir.Value = op.Reshape(normed, [0, 0, heads * width])
    return value


def same_rows(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    """Whether [batch, tokens, width] and [batch, tokens, ..] of equal sizes have the same rows.

    The widths must be known to be equal; then one of batch and tokens follows from the other.
    """
    if a is None or b is None or len(a) < 3 or len(b) < 3:
        return False
    widths = [_product(shape[2:]) for shape in (a, b)]
    if widths[0] is None or widths[0] != widths[1]:
        return False
    return same_dim(a[0], b[0]) or same_dim(a[1], b[1])


def _product(dims: Sequence[int | ir.SymbolicDim]) -> int | None:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _rows(op: Builder, split: ir.Value | None, width: int) -> ir.Value:
    """[batch, tokens, width] from [batch, tokens, heads, width / heads]."""
    assert split is not None
    node = split.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Reshape" else None
    if source is not None and _rank(source) == 3 and same_rows(source.shape, split.shape):
        return source
    value: ir.Value = op.Reshape(split, [0, 0, width])
    return value


def _unpacked(op: Builder, node: ir.Node, width: int) -> ir.Value | None:
    """One of the three parts that Transpose(Reshape(x, [b, s, 3, h, d]), [2, 0, 3, 1, 4]) packs."""
    picked = _picked(node)
    if picked is None:
        return None
    packed, place = picked
    source, perm = _through_transpose(packed)
    split = source.producer()
    if perm != [2, 0, 3, 1, 4] or split is None or split.op_type != "Reshape":
        return None
    rows, five = split.inputs[0], source.shape
    if rows is None or rows.shape is None or five is None or len(rows.shape) != 3:
        return None
    if not same_rows(rows.shape, five) or not isinstance(five[2], int) or five[2] <= max(place, 1):
        return None
    for made in op.made:
        if made.op_type == "Split" and made.inputs[0] is rows:
            return made.outputs[place]
    parts: list[ir.Value] = op.Split(rows, [width] * five[2], axis=2, _outputs=five[2])
    return parts[place]


def _picked(node: ir.Node) -> tuple[ir.Value, int] | None:
    """What Squeeze(Slice(x, i, i + 1, 0), 0) or Gather(x, i, axis=0) picks from, and i."""
    source = node.inputs[0] if node.inputs else None
    if source is None or len(node.inputs) < 2:
        return None
    if node.op_type == "Gather":
        place, axis, index = scalar(node.inputs[1]), node.attributes.get("axis"), node.inputs[1]
        flat = index is not None and index.shape == ir.Shape([])
        if not flat or place is None or place < 0 or (axis is not None and axis.as_int() != 0):
            return None
        return source, int(place)
    cut = source.producer()
    if node.op_type != "Squeeze" or cut is None or cut.op_type != "Slice":
        return None
    inputs = [*cut.inputs, None, None][:5]
    start, axis_cut, squeezed = scalar(inputs[1]), scalar(inputs[3]), scalar(node.inputs[1])
    step = 1 if inputs[4] is None else scalar(inputs[4])
    one = cut.outputs[0].shape
    if inputs[0] is None or start is None or start < 0 or one is None or one[0] != 1:
        return None
    return (inputs[0], int(start)) if (axis_cut, squeezed, step) == (0, 0, 1) else None


def _through_transpose(value: ir.Value) -> tuple[ir.Value, list[int] | None]:
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return value, None
    perm = node.attributes.get("perm")
    return (value, None) if perm is None else (node.inputs[0], list(perm.as_ints()))
