"""The decoder of Stable Diffusion's autoencoder (Rombach et al., 2022); random weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class LatentDecoder(nn.Module):
    """Float32 [batch, 4, height, width] latents -> [batch, 3, 8 height, 8 width] images."""

    output_names = ("image",)

    def __init__(self, post_quant_conv: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv = post_quant_conv
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `latents`."""
        image: Tensor = self.decoder(self.post_quant_conv(latents))
        return image


def _decoder(size: int, **options: Any) -> Example:
    from diffusers import AutoencoderKL

    def build() -> LatentDecoder:
        autoencoder = AutoencoderKL(latent_channels=4, **options)
        return LatentDecoder(autoencoder.post_quant_conv, autoencoder.decoder)

    batch = Dim("batch", max=63)  # diffusers takes another path for 64 images and more
    return Example(seeded(build), {"latents": noise(2, 4, size, size)}, {"latents": {0: batch}})


def tiny() -> Example:
    """Two resolutions, 32 and 64 channels: 0.4M parameters; 16 px latents, 32 px images."""
    return _decoder(
        16,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )


def full() -> Example:
    """Stable Diffusion 1.5: 49.5M parameters; 32 px latents, 256 px images."""
    return _decoder(
        32,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
