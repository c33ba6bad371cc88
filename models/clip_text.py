"""CLIP's text encoder (Radford et al., 2021), as Stable Diffusion uses it; random weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, seeded, tokens


class TextEncoder(nn.Module):
    """Int64 [batch, tokens] -> float32 [batch, tokens, width], the last hidden state."""

    output_names = ("last_hidden_state",)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids`."""
        hidden: Tensor = self.encoder(input_ids).last_hidden_state
        return hidden


def _clip(**options: Any) -> Example:
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = seeded(lambda: CLIPTextModel(CLIPTextConfig(**options)))
    config = encoder.config
    return Example(
        TextEncoder(encoder).eval(),
        {"input_ids": tokens(config.vocab_size, 2, config.max_position_embeddings)},
        {"input_ids": {0: Dim("batch")}},
    )


def tiny() -> Example:
    """2 layers, 64 wide: 0.08M parameters; [2, 16] tokens in."""
    return _clip(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def full() -> Example:
    """CLIP ViT-L/14's text encoder: 123M parameters; [2, 77] tokens in."""
    return _clip(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
