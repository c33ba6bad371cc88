"""Whisper's audio encoder (Radford et al., 2022); random weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class AudioEncoder(nn.Module):
    """Float32 [batch, mels, frames] log-mel spectrograms -> [batch, frames / 2, width].

    Args:
        options: Fields of transformers' `WhisperConfig`.
    """

    output_names = ("last_hidden_state",)

    def __init__(self, **options: Any) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.encoder = WhisperEncoder(WhisperConfig(**options))

    def forward(self, input_features: Tensor) -> Tensor:
        """Encode `input_features`."""
        hidden: Tensor = self.encoder(input_features).last_hidden_state
        return hidden


def example(model: nn.Module, mels: int, frames: int) -> Example:
    """`model` with two spectrograms of noise; the batch may change, the frames may not."""
    inputs = {"input_features": noise(2, mels, frames).mul(0.3)}
    return Example(model, inputs, {"input_features": {0: Dim("batch")}})


def tiny() -> Example:
    """2 layers, 64 wide, 16 mels: 0.08M parameters; 64 frames in."""
    model = seeded(
        lambda: AudioEncoder(
            d_model=64,
            num_mel_bins=16,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            max_source_positions=32,
        )
    )
    return example(model, mels=16, frames=64)
