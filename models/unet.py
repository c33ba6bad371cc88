"""Stable Diffusion's U-Net (Rombach et al., 2022); random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class Denoiser(nn.Module):
    """The noise in a latent image, given its time step and a text.

    `sample` is float32 [batch, 4, height, width], `timestep` int64 [batch] and
    `encoder_hidden_states` float32 [batch, tokens, width]; returns the shape of `sample`.
    """

    output_names = ("noise",)

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Predict the noise."""
        predicted: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return predicted


def _unet(text_tokens: int, **options: Any) -> Example:
    from diffusers import UNet2DConditionModel

    unet = seeded(lambda: UNet2DConditionModel(**options))
    size = unet.config.sample_size
    batch = Dim("batch", max=63)  # diffusers takes another path for 64 images and more
    return Example(
        Denoiser(unet).eval(),
        {
            "sample": noise(2, 4, size, size),
            "timestep": torch.tensor([10, 500]),
            "encoder_hidden_states": noise(2, text_tokens, unet.config.cross_attention_dim, seed=2),
        },
        {"sample": {0: batch}, "timestep": {0: batch}, "encoder_hidden_states": {0: batch}},
    )


def tiny() -> Example:
    """Two resolutions, 32 and 64 channels: 0.8M parameters; 16 px latents, 8 text tokens."""
    return _unet(
        text_tokens=8,
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def medium() -> Example:
    """Stable Diffusion's four resolutions, one layer each: 92M parameters; 32 px latents."""
    return _unet(
        text_tokens=77,
        sample_size=32,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=1,
        cross_attention_dim=256,
        attention_head_dim=8,
    )


def full() -> Example:
    """Stable Diffusion 1.5: 860M parameters; 64 px latents, 77 text tokens."""
    return _unet(text_tokens=77, sample_size=64, cross_attention_dim=768, attention_head_dim=8)
