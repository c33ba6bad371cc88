"""DCGAN's generator of 64 px images (Radford et al., 2016); random weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class Generator(nn.Module):
    """Float32 [batch, 100, 1, 1] noise -> [batch, 3, 64, 64] images in [-1, 1].

    Args:
        width: Channels at 32 px; they double at each lower resolution.
    """

    output_names = ("image",)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 100
        for index, wider in enumerate((8, 4, 2, 1)):
            stride, padding = (2, 1) if index else (1, 0)
            layers += [
                nn.ConvTranspose2d(channels, wider * width, 4, stride, padding, bias=False),
                nn.BatchNorm2d(wider * width),
                nn.ReLU(),
            ]
            channels = wider * width
        layers += [nn.ConvTranspose2d(channels, 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """Draw one image for each latent."""
        image: Tensor = self.main(latent)
        return image


def example(generator: Generator) -> Example:
    """`generator` with two latents; the batch may change."""
    return Example(generator, {"latent": noise(2, 100, 1, 1)}, {"latent": {0: Dim("batch")}})


def _random(width: int) -> Example:
    generator = seeded(lambda: Generator(width))
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches seen
    # Random weights with the statistics of nothing would draw grey images.
    generator.train()(noise(64, 100, 1, 1, seed=2))
    return example(generator.eval())


def tiny() -> Example:
    """8 channels at 32 px: 0.15M parameters."""
    return _random(8)


def full() -> Example:
    """64 channels at 32 px, as in the paper: 3.6M parameters."""
    return _random(64)
