"""Sentence-BERT (Reimers and Gurevych, 2019) with mean pooling; random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, seeded, tokens


class SentenceEncoder(nn.Module):
    """Int64 [batch, sequence] tokens and mask -> float32 [batch, width] vectors of length 1."""

    output_names = ("sentence_embedding",)

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The direction of the mean over the tokens that the mask keeps."""
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * kept).sum(dim=1) / kept.sum(dim=1), dim=1)


def example(bert: nn.Module, positions: int) -> Example:
    """`bert` as a sentence encoder, with two texts of 16 tokens of which one is padded.

    Batch and sequence may change, the sequence up to `positions`.
    """
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    inputs = {"input_ids": tokens(256, 2, 16), "attention_mask": mask}
    shape = {0: Dim("batch"), 1: Dim("sequence", max=positions)}
    return Example(SentenceEncoder(bert).eval(), inputs, dict.fromkeys(inputs, shape))


def tiny() -> Example:
    """2 layers, 64 wide: 0.09M parameters; [2, 16] tokens in."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    bert = seeded(lambda: BertModel(config, add_pooling_layer=False))
    return example(bert, config.max_position_embeddings)
