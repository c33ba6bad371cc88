"""DiT, a class-conditional diffusion transformer (Peebles and Xie, 2023); random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded, tokens


class Denoiser(nn.Module):
    """The noise in a latent image and its variance, given its time step and a class.

    `sample` is float32 [batch, 4, size, size], `timestep` and `class_labels` are int64 [batch];
    returns float32 [batch, 8, size, size], the noise and the variance along the channels.
    """

    output_names = ("noise_and_variance",)

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Predict the noise and its variance."""
        predicted: Tensor = self.transformer(
            sample, timestep=timestep, class_labels=class_labels, return_dict=False
        )[0]
        return predicted


def _dit(**options: Any) -> Example:
    from diffusers import DiTTransformer2DModel

    transformer = seeded(lambda: DiTTransformer2DModel(in_channels=4, out_channels=8, **options))
    size = transformer.config.sample_size
    batch = Dim("batch")
    return Example(
        Denoiser(transformer).eval(),
        {
            "sample": noise(2, 4, size, size),
            "timestep": torch.tensor([10, 500]),
            "class_labels": tokens(transformer.config.num_embeds_ada_norm, 2),
        },
        {"sample": {0: batch}, "timestep": {0: batch}, "class_labels": {0: batch}},
    )


def tiny() -> Example:
    """2 layers, 64 wide, 10 classes: 0.2M parameters; 16 px latents."""
    return _dit(
        sample_size=16,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=16,
        num_embeds_ada_norm=10,
    )


def full() -> Example:
    """DiT-XL/2 for 256 px: 750M parameters; 32 px latents."""
    return _dit(sample_size=32, num_layers=28)
