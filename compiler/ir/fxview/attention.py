"""Converters of attention and of rotary embedding."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from aigcc.ir.fxview.dtypes import TORCH
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site


def split_heads(x: Expr, heads: int) -> Expr:
    """[batch, tokens, heads * size] as [batch, heads, tokens, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Expr) -> Expr:
    """[batch, heads, tokens, size] as [batch, tokens, heads * size]."""
    return x.transpose(1, 2).flatten(2)


_SCORES = ("qk_matmul_output_mode", "scale", "softcap", "softmax_precision")
_SEEN = ("is_causal", "left_window_size", "right_window_size")


@converts("Attention", attributes=("kv_num_heads", "q_num_heads", *_SCORES, *_SEEN))
def attention(
    node: Site,
    q: Expr,
    k: Expr,
    v: Expr,
    mask: Expr = None,
    past_key: Expr = None,
    past_value: Expr = None,
    lengths: Expr = None,
) -> Expr:
    """ONNX's attention: with groups of queries, a cache, a mask, windows, a cap."""
    is_flat = node.need_rank(0) == 3
    heads, groups = node.attribute("q_num_heads"), node.attribute("kv_num_heads")
    if is_flat:
        q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    else:
        heads, groups = ((node.dims(index) or [None] * 2)[1] for index in (0, 1))
    offset: Any = 0
    if past_key is not None:
        offset = past_key.size(2)
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    cap = node.attribute("softcap", 0.0)
    scores_used = len(node.node.outputs) > 3 and node.node.outputs[3].name != ""
    window = _window(node)
    is_causal = window == (-1, 0)
    precision = ir.DataType(node.attribute("softmax_precision", node.dtype(0)))
    is_explicit = bool(cap) or scores_used or precision != node.dtype(0)
    is_masked = mask is not None or past_key is not None or not is_causal
    if lengths is not None or (window != (-1, -1) and (is_masked or is_explicit)):
        mask = attention_mask(q, k, mask, lengths, window, offset)
        is_causal = False
    scale, is_grouped = node.attribute("scale"), heads is None or heads != groups
    scores = None
    if is_explicit:
        mode = node.attribute("qk_matmul_output_mode", 0)
        y, scores = explicit(q, k, v, mask, scale, cap, mode, TORCH[precision])
    else:
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": is_grouped}
        options = {name: option for name, option in options.items() if option}
        y = F.scaled_dot_product_attention(q, k, v, mask, **options)
    return merge_heads(y) if is_flat else y, k, v, scores


def _window(node: Site) -> tuple[int, int]:
    """How many keys before and after its own place a query sees; -1 for all."""
    left, right = (node.attribute(f"{side}_window_size", -1) for side in ("left", "right"))
    return left, (0 if node.flag("is_causal") else right)


@recorded
def attention_mask(
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    window: tuple[int, int],
    offset: int,
) -> torch.Tensor | None:
    """What is added to the scores: the mask, the window, and what lies past `lengths`.

    Args:
        q: [batch, heads, queries, size].
        k: [batch, heads, keys, size].
        mask: True where a key is seen, or what is added; it broadcasts to the scores.
        lengths: How many keys of each batch are there: [batch].
        window: Query i is at i + offset, and sees so many keys before and after that; -1 for all.
        offset: See `window`; with `lengths` it is the number of keys before the queries.
    """
    place: Any = torch.arange(q.size(2), device=q.device)[:, None] + offset
    keys = torch.arange(k.size(2), device=q.device)
    seen = torch.ones_like(keys, dtype=torch.bool)
    if lengths is not None:
        counts = lengths.reshape(-1, 1, 1, 1)
        seen = keys < counts
        place = place + counts - q.size(2)
    before, after = window
    if before >= 0:
        seen = seen & (keys >= place - before)
    if after >= 0:
        seen = seen & (keys <= place + after)
    if mask is None:
        return seen
    if mask.size(-1) < k.size(2):
        beyond = False if mask.dtype == torch.bool else -torch.inf
        mask = F.pad(mask, (0, k.size(2) - mask.size(-1)), value=beyond)
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


@recorded
def explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    cap: float,
    mode: int,
    precision: torch.dtype,
) -> list[torch.Tensor]:
    """Attention step by step, for what torch's own does not do: capped scores, or their output.

    `precision` is the type that the softmax is computed in.

    Returns:
        The result, and the scores as `mode` asks for them: 0 raw, 1 capped, 2 masked, 3 softmax.
    """
    repeats = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    root = math.sqrt(1 / math.sqrt(q.size(-1)) if scale is None else scale)
    scores = [(q * root) @ (k * root).transpose(-2, -1)]
    scores.append((scores[0] / cap).tanh() * cap if cap else scores[0])
    bias: Any = 0.0 if mask is None else mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    scores.append(scores[1] + bias)
    nothing = torch.isneginf(scores[2]).all(-1, keepdim=True)
    shares = scores[2].to(precision).softmax(-1).masked_fill(nothing, 0)
    scores.append(shares.to(q.dtype))
    return [scores[3] @ v, scores[mode]]


@converts("RotaryEmbedding", attributes=("interleaved", "num_heads", "rotary_embedding_dim"))
def rotary(node: Site, x: Expr, cos: Expr, sin: Expr, positions: Expr = None) -> Expr:
    """Pairs of features, turned by an angle that grows with the position."""
    heads = node.attribute("num_heads", 0)
    is_flat = node.need_rank(0) == 3
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    y = split_heads(x, heads) if is_flat else x
    y = turn(y, cos, sin, node.attribute("rotary_embedding_dim", 0), node.flag("interleaved"))
    return merge_heads(y) if is_flat else y


@recorded
def turn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, interleaved: bool
) -> torch.Tensor:
    """Rotary embedding (https://arxiv.org/abs/2104.09864).

    Args:
        x: [batch, heads, tokens, features].
        cos: [batch, tokens, size / 2], as `sin`.
        sin: See `cos`.
        size: How many features are turned; all if 0.
        interleaved: A pair is two neighbours, not one feature of each half.
    """
    size = size or x.size(-1)
    part, rest = x[..., :size], x[..., size:]
    cos, sin = cos[..., : size // 2].unsqueeze(1), sin[..., : size // 2].unsqueeze(1)
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        made = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        made = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([made, rest], -1) if rest.size(-1) else made
