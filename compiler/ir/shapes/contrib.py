"""Output types of ONNX Runtime's own operators (`com.microsoft`), which ONNX knows nothing of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from aigcc.ir.shapes.dims import UNKNOWN, Dim, add, product, quotient
from aigcc.ir.shapes.operands import Dims, broadcast, matmul, same
from aigcc.ir.shapes.site import Site
from aigcc.ir.shapes.windows import convolution, pooling

Typed = tuple[ir.DataType | None, Dims]
ContribRule = Callable[[Site], Sequence[Typed]]


def _like(dims_of: Callable[[Site], Sequence[Dims]], dtype_of: int = 0) -> ContribRule:
    """Dims as some standard op has them, and the dtype of input `dtype_of`."""

    def rule(site: Site) -> Sequence[Typed]:
        return [(site.dtype(dtype_of), dims) for dims in dims_of(site)]

    return rule


def _all_same(site: Site) -> Sequence[Typed]:
    return [(site.dtype(0), site.dims(0))] * len(site.node.outputs)


def _broadcast(*operands: int, dtype_of: int = 0) -> ContribRule:
    return _like(lambda site: [broadcast(*(site.dims(at) for at in operands))], dtype_of)


def _skip_normalization(site: Site) -> Sequence[Typed]:
    dims, dtype = site.dims(0), site.dtype(0)
    moment = None if dims is None else [*dims[:-1], 1]
    single = ir.DataType.FLOAT
    return [(dtype, dims), (single, moment), (single, moment), (dtype, dims)]


def _layer_normalization(site: Site) -> Sequence[Typed]:
    dims = site.dims(0)
    moment: Dims = None
    if dims is not None:
        axis = site.attribute("axis", -1) % len(dims)
        moment = [*dims[:axis], *[1] * (len(dims) - axis)]
    single = ir.DataType.FLOAT
    return [(site.dtype(0), dims), (single, moment), (single, moment)]


def _embedding(site: Site) -> Sequence[Typed]:
    ids, table, dtype = site.dims(0), site.dims(2), site.dtype(2)
    dims = None if ids is None or table is None else [*ids, table[-1]]
    return [(dtype, dims), (ir.DataType.INT32, ids and ids[:1]), (dtype, dims)]


def _halved_gelu(site: Site) -> Sequence[Typed]:
    dims = site.dims(0)
    return [(site.dtype(0), dims and [*dims[:-1], quotient(dims[-1], 2)])]


def _turned(dims: Dims, is_turned: int, is_batch_turned: int) -> Dims:
    if dims is None or len(dims) < 2:
        return dims
    if is_batch_turned:
        dims = [*dims[1:-1], dims[0], dims[-1]]
    return [*dims[:-2], dims[-1], dims[-2]] if is_turned else dims


def _fused_matmul(site: Site) -> Sequence[Typed]:
    left, right = (
        _turned(
            site.dims(at), site.attribute(f"trans{side}", 0), site.attribute(f"transBatch{side}", 0)
        )
        for at, side in enumerate("AB")
    )
    return [(site.dtype(0), matmul(left, right))]


def _matmul_at(left: int, right: int, dtype_of: int) -> ContribRule:
    return _like(lambda site: [matmul(site.dims(left), site.dims(right))], dtype_of)


def _gemm_dims(site: Site, left: int, right: int) -> Dims:
    return matmul(
        _turned(site.dims(left), site.attribute("transA", 0), 0),
        _turned(site.dims(right), site.attribute("transB", 0), 0),
    )


def _quantized_gemm(site: Site) -> Sequence[Typed]:
    is_float = site.input(8) is None
    return [(ir.DataType.FLOAT if is_float else site.dtype(8), _gemm_dims(site, 0, 3))]


def _block_quantized_matmul(site: Site) -> Sequence[Typed]:
    dims = site.dims(0)
    return [(site.dtype(0), dims and [*dims[:-1], site.attribute("N")])]


def _block_quantized_gather(site: Site) -> Sequence[Typed]:
    data, indices = site.dims(0), site.dims(1)
    if data is None or indices is None:
        return [(site.dtype(2), None)]
    if site.dtype(0) == ir.DataType.UINT8:
        data = [*data[:-1], product((data[-1], 8 // site.attribute("bits", 4)))]
    axis = site.attribute("gather_axis", 0) % len(data)
    return [(site.dtype(2), [*data[:axis], *indices, *data[axis + 1 :]])]


def _quantized_concat(site: Site) -> Sequence[Typed]:
    operands = [site.dims(at) for at in range(2, len(site.node.inputs), 3)]
    known = [dims for dims in operands if dims is not None]
    if len(known) < len(operands):
        return [(site.dtype(2), None)]
    axis = site.attribute("axis") % len(known[0])
    joined = add(*(dims[axis] for dims in known))
    return [(site.dtype(2), [*known[0][:axis], joined, *known[0][axis + 1 :]])]


def _quantized_average_pool(site: Site) -> Sequence[Typed]:
    dims = site.dims(0)
    if site.attribute("channels_last", 0):
        return [(site.dtype(0), dims and [dims[0], *[UNKNOWN] * (len(dims) - 2), dims[-1]])]
    return [(site.dtype(0), pooling(site)[0])]


def _quantized_global_pool(site: Site) -> Sequence[Typed]:
    dims = site.dims(0)
    if dims is not None:
        ones = [1] * (len(dims) - 2)
        is_last = site.attribute("channels_last", 0)
        dims = [dims[0], *ones, dims[-1]] if is_last else [*dims[:2], *ones]
    return [(site.dtype(0), dims)]


def _quantize(site: Site) -> Sequence[Typed]:
    return [(site.dtype(2) if site.input(2) else ir.DataType.UINT8, site.dims(0))]


def _present(batch: Dim, heads: Dim, past: Dims, length: Dim, size: Dim) -> Dims:
    return [batch, heads, add(past[2], length) if past else length, size]


def _attention(weight_at: int, past_at: int, dtype_of: int) -> ContribRule:
    """Self-attention over one packed projection [input, q + k + v]; `past` is [2, B, N, P, H]."""

    def rule(site: Site) -> Sequence[Typed]:
        dims, weight, past = site.dims(0), site.dims(weight_at), site.dims(past_at)
        dtype, heads = site.dtype(dtype_of), site.attribute("num_heads")
        if dims is None or weight is None:
            return [(dtype, None)] * len(site.node.outputs)
        sizes = site.attribute("qkv_hidden_sizes")
        hidden = sizes[2] if sizes else quotient(weight[-1], 3)
        shared = site.attribute("past_present_share_buffer", 0)
        length = add(past[3], dims[1]) if past else dims[1]
        present = [2, dims[0], heads, length, quotient(hidden, heads)]
        return [(dtype, [*dims[:2], hidden]), (dtype, past if shared else present)]

    return rule


def _multi_head_attention(site: Site) -> Sequence[Typed]:
    query, key, value, past = (site.dims(at) for at in (0, 1, 2, 6))
    dtype, heads = site.dtype(0), site.attribute("num_heads")
    if query is None or (site.input(1) and key is None) or (site.input(2) and value is None):
        return [(dtype, None)] * len(site.node.outputs)
    if len(query) == 5:
        # All three are packed as [batch, sequence, heads, 3, size].
        head = value_head = query[4]
        length = query[1]
    else:
        head = quotient(query[2], heads)
        if value is None:
            # Key and value are packed as [batch, sequence, heads, 2, size].
            length, value_head = (key[1], key[4]) if key and len(key) == 5 else (UNKNOWN, head)
        elif len(value) == 4:
            length, value_head = value[2], value[3]
        else:
            length, value_head = value[1], quotient(value[2], heads)
    total = add(past[2], length) if past else length
    return [
        (dtype, [query[0], query[1], product((heads, value_head))]),
        (dtype, _present(query[0], heads, past, length, head)),
        (dtype, _present(query[0], heads, past, length, value_head)),
        (dtype, [query[0], heads, query[1], total]),
    ]


def _grouped_attention(site: Site) -> Sequence[Typed]:
    query, dtype = site.dims(0), site.dtype(0)
    heads, kv_heads = site.attribute("num_heads"), site.attribute("kv_num_heads")
    if query is None:
        return [(dtype, None)] * len(site.node.outputs)
    is_packed = site.input(1) is None
    head = quotient(query[2], heads + 2 * kv_heads if is_packed else heads)
    # Whether the cache grows or is a buffer of fixed length is known only at run time.
    present = [query[0], kv_heads, UNKNOWN, head]
    cache = site.dtype(3) or dtype
    return [(dtype, [*query[:2], product((heads, head))]), (cache, present), (cache, present)]


_MICROSOFT: dict[str, ContribRule] = {
    **dict.fromkeys(
        ("BiasAdd", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "GroupNorm", "Inverse"),
        _like(same),
    ),
    **dict.fromkeys(
        ("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QuickGelu", "RotaryEmbedding"),
        _like(same),
    ),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalization
    ),
    "Attention": _attention(1, 4, 0),
    "BiasSplitGelu": _halved_gelu,
    "DequantizeLinear": _like(same, 1),
    "DynamicQuantizeMatMul": _matmul_at(0, 1, 0),
    "EmbedLayerNormalization": _embedding,
    "FusedConv": _like(convolution(1)),
    "FusedGemm": _like(lambda site: [_gemm_dims(site, 0, 1)]),
    "FusedMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "GatherBlockQuantized": _block_quantized_gather,
    "GroupQueryAttention": _grouped_attention,
    "MatMulBnb4": _block_quantized_matmul,
    "MatMulIntegerToFloat": _matmul_at(0, 1, 2),
    "MatMulNBits": _block_quantized_matmul,
    "MultiHeadAttention": _multi_head_attention,
    "QAttention": _attention(1, 8, 3),
    "QGemm": _quantized_gemm,
    "QLinearAdd": _broadcast(0, 3),
    "QLinearAveragePool": _quantized_average_pool,
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized_global_pool,
    "QLinearMul": _broadcast(0, 3),
    "QLinearWhere": _broadcast(0, 1, 4, dtype_of=1),
    "QuantizeLinear": _quantize,
    "SkipGroupNorm": _all_same,
}

# ONNX Runtime has two of its own ops in the default domain.
CONTRIB: dict[tuple[str, str], ContribRule] = {
    **{("com.microsoft", op): rule for op, rule in _MICROSOFT.items()},
    ("", "LayerNormalization"): _layer_normalization,
    ("", "SimplifiedLayerNormalization"): _layer_normalization,
}
