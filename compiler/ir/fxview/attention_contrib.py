"""Converters of ONNX Runtime's own attention and rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from aigcc.ir.fxview.attention import merge_heads, split_heads, turn
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_MICROSOFT = ("com.microsoft",)


@converts(
    "MultiHeadAttention",
    domains=_MICROSOFT,
    attributes=("mask_filter_value", "num_heads", "scale", "unidirectional"),
)
def multi_head_attention(
    node: Site,
    q: Expr,
    k: Expr,
    v: Expr,
    bias: Expr = None,
    padding: Expr = None,
    mask: Expr = None,
    past_key: Expr = None,
    past_value: Expr = None,
    *more: Expr,
) -> Expr:
    """ONNX Runtime's attention, with biases, a padding mask and a cache."""
    heads = node.attribute("num_heads")
    if any(extra is not None for extra in more):
        node.refuse("its cache is a shared buffer")
    if node.rank(0) == 5 or node.rank(1) == 5:
        node.refuse("its inputs are packed")
    q = split_heads(q, heads)
    if node.need_rank(1) == 3:
        k, v = split_heads(k, heads), split_heads(v, heads)
    if bias is not None:
        width = q.size(1) * q.size(3)
        parts = torch.split(bias, [width, width, v.size(1) * v.size(3)])
        q, k, v = (x + parts[i].reshape(heads, 1, -1) for i, x in enumerate((q, k, v)))
    offset: Any = 0
    if past_key is not None:
        offset = past_key.size(2)
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    is_causal = node.flag("unidirectional")
    if padding is not None or (is_causal and (mask is not None or past_key is not None)):
        low = node.attribute("mask_filter_value", -10000.0)
        mask = padding_mask(q, k, padding, mask, is_causal, offset, low)
        is_causal = False
    options: dict[str, Any] = {"is_causal": is_causal, "scale": node.attribute("scale")}
    options = {name: option for name, option in options.items() if option}
    y = F.scaled_dot_product_attention(q, k, v, mask, **options)
    return merge_heads(y), k, v


@recorded
def padding_mask(
    q: torch.Tensor,
    k: torch.Tensor,
    padding: torch.Tensor | None,
    bias: torch.Tensor | None,
    is_causal: bool,
    offset: int,
    low: float,
) -> torch.Tensor:
    """What ONNX Runtime adds to the scores: `bias`, and `low` where a key is not to be seen.

    Args:
        q: [batch, heads, queries, size].
        k: [batch, heads, keys, size].
        padding: 1 where a key is seen: [batch, keys] or [batch, queries, keys]; or the number of
            keys: [batch].
        bias: Added to the scores.
        is_causal: Query i sees the keys up to i + offset.
        offset: See `is_causal`.
        low: Added where a key is not seen because of `padding`.
    """
    keys = torch.arange(k.size(2), device=q.device)
    made = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
    if padding is not None:
        if padding.dim() == 1:
            seen = (keys < padding[:, None])[:, None, None]
        else:
            seen = (padding[:, None, None] if padding.dim() == 2 else padding[:, None]) > 0
        made = made + torch.where(seen, 0.0, low).to(q.dtype)
    if is_causal:
        queries = torch.arange(q.size(2), device=q.device)[:, None]
        made = made.masked_fill(keys > queries + offset, -torch.inf)
    return made


@converts(
    "RotaryEmbedding",
    domains=_MICROSOFT,
    attributes=("interleaved", "num_heads", "rotary_embedding_dim"),
    neutral={"is_packed_batching": 0, "scale": 1.0},
)
def rotary_of_runtime(node: Site, x: Expr, positions: Expr, cos: Expr, sin: Expr) -> Expr:
    """The same as ONNX Runtime has it; one position stands for the first of consecutive ones."""
    is_flat, size = node.need_rank(0) == 3, node.attribute("rotary_embedding_dim", 0)
    heads = node.attribute("num_heads", 0)
    table = node.dims(2)
    if is_flat and not heads and table is not None and table[1] is not None:
        y = x.unflatten(-1, (-1, 2 * table[1])).transpose(1, 2)
    else:
        y = split_heads(x, heads) if is_flat else x
    if node.rank(1) == 1:
        positions = positions + following(y)
    y = turn(y, cos[positions], sin[positions], size, node.flag("interleaved"))
    return merge_heads(y) if is_flat else y


@recorded
def following(x: torch.Tensor) -> torch.Tensor:
    """The place of each token: [1, tokens]."""
    return torch.arange(x.size(2), device=x.device)[None]


@converts(
    "GroupQueryAttention",
    domains=_MICROSOFT,
    attributes=("do_rotary", "kv_num_heads", "num_heads", "rotary_interleaved", "scale"),
    neutral={
        "local_window_size": -1,
        "smooth_softmax": 0,
        "softcap": 0.0,
        "k_quant_type": "NONE",
        "kv_cache_bit_width": 0,
        "qk_output": 0,
        "v_quant_type": "NONE",
    },
)
def group_query_attention(
    node: Site,
    q: Expr,
    k: Expr = None,
    v: Expr = None,
    past_key: Expr = None,
    past_value: Expr = None,
    last: Expr = None,
    total: Expr = None,
    cos: Expr = None,
    sin: Expr = None,
    *more: Expr,
) -> Expr:
    """ONNX Runtime's attention with a cache, whose queries share keys."""
    if any(extra is not None for extra in more):
        node.refuse("it has positions, a bias or a sink of its own")
    if node.has(3) != node.has(4):
        node.refuse("it lacks a half of its cache")
    heads, groups = node.attribute("num_heads"), node.attribute("kv_num_heads")
    table = (cos, sin) if node.flag("do_rotary") else None
    options = (heads, groups, node.attribute("scale") or None, node.flag("rotary_interleaved"))
    made = grouped(q, k, v, past_key, past_value, last, table, options)
    return made[0], made[1], made[2]


@recorded
def grouped(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    past_key: torch.Tensor | None,
    past_value: torch.Tensor | None,
    last: torch.Tensor,
    table: tuple[torch.Tensor, torch.Tensor] | None,
    options: tuple[int, int, float | None, bool],
) -> list[torch.Tensor]:
    """Causal attention over a cache.

    Args:
        q: [batch, tokens, heads * size], or queries, keys and values side by side.
        k: [batch, tokens, groups * size].
        v: As `k`.
        past_key: [batch, groups, past, size].
        past_value: As `past_key`.
        last: The place of the last token of each batch: [batch] or [batch, 1].
        table: Cosines and sines, a row for each position.
        options: Heads, groups, scale, and whether neighbours make a pair.
    """
    heads, groups, scale, interleaved = options
    if k is None or v is None:
        size = q.size(-1) // (heads + 2 * groups)
        q, k, v = torch.split(q, [heads * size, groups * size, groups * size], -1)
    q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    past = 0 if past_key is None else past_key.size(2)
    place = torch.arange(q.size(2), device=q.device)
    positions = (last.reshape(-1, 1).to(torch.int64) + 1 - q.size(2)).clamp(min=0) + place
    if table is not None:
        cos, sin = (part[positions] for part in table)
        q, k = turn(q, cos, sin, 0, interleaved), turn(k, cos, sin, 0, interleaved)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys = torch.arange(k.size(2), device=q.device)
    seen = (keys <= place[:, None] + past) & (keys <= last.reshape(-1, 1, 1, 1))
    y = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=heads != groups)
    return [merge_heads(y), k, v]
