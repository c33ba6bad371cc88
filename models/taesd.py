"""The decoder of TAESD, which previews Stable Diffusion's latents; random weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class LatentDecoder(nn.Module):
    """Float32 [batch, 4, height, width] latents -> [batch, 3, scale height, scale width] images.

    `scale` is two for each resolution but the first.
    """

    output_names = ("image",)

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `latents`."""
        image: Tensor = self.decoder(latents)
        return image


def _decoder(size: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> Example:
    from diffusers import AutoencoderTiny

    def build() -> LatentDecoder:
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks[::-1],
            num_decoder_blocks=blocks,
        )
        return LatentDecoder(autoencoder.decoder)

    batch = Dim("batch", max=63)
    return Example(seeded(build), {"latents": noise(2, 4, size, size)}, {"latents": {0: batch}})


def tiny() -> Example:
    """Two resolutions, 16 channels: 0.02M parameters; 16 px latents, 32 px images."""
    return _decoder(16, widths=(16, 16), blocks=(1, 1))


def full() -> Example:
    """The published shape: 1.2M parameters; 32 px latents, 256 px images."""
    return _decoder(32, widths=(64, 64, 64, 64), blocks=(3, 3, 3, 1))
