"""Llama (Touvron et al., 2023): grouped queries, RMSNorm, rotary positions; random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, seeded, tokens


class Decoder(nn.Module):
    """Int64 [batch, sequence] tokens -> float32 [batch, sequence, vocabulary] logits."""

    output_names = ("logits",)

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Run the model on `input_ids` with a causal mask."""
        # One row of positions for each text: from opset 23 on torch exports a RotaryEmbedding,
        # which does not broadcast over the batch.
        positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        logits: Tensor = self.language_model(
            input_ids, position_ids=positions, use_cache=False
        ).logits
        return logits


def example(language_model: nn.Module) -> Example:
    """`language_model` with two texts of 16 tokens; batch and sequence may change."""
    return Example(
        Decoder(language_model).eval(),
        {"input_ids": tokens(256, 2, 16)},
        {"input_ids": {0: Dim("batch"), 1: Dim("sequence")}},
    )


def _random(**options: Any) -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    return example(seeded(lambda: LlamaForCausalLM(LlamaConfig(**options))))


def tiny() -> Example:
    """2 layers, 64 wide, 4 query heads on 2 key heads: 0.13M parameters; [2, 16] tokens in."""
    return _random(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )


def full() -> Example:
    """The shape of Llama-3.2-1B: 1.2G parameters; [2, 16] tokens in."""
    return _random(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        rope_theta=500000.0,
        tie_word_embeddings=True,
    )
