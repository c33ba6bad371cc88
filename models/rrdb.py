"""ESRGAN's upscaler RRDBNet (Wang et al., 2018); random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it, added to the input at a fifth."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + index * growth, growth if index < 4 else width, 3, padding=1)
            for index in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, height, width] -> the same shape."""
        *inner, last = self.convs
        features = x
        for conv in inner:
            grown = functional.leaky_relu(conv(features), 0.2)
            features = torch.cat([features, grown], dim=1)
        added: Tensor = last(features)
        return x + 0.2 * added


class ResidualBlock(nn.Module):
    """Three dense blocks, added to the input at a fifth."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, height, width] -> the same shape."""
        added: Tensor = self.blocks(x)
        return x + 0.2 * added


class RRDBNet(nn.Module):
    """Float32 [batch, 3, height, width] images in [0, 1] -> four times the size.

    Args:
        width: Channels between the blocks.
        growth: Channels that each convolution of a dense block adds.
        blocks: Residual blocks.
    """

    output_names = ("upscaled",)

    def __init__(self, width: int = 64, growth: int = 32, blocks: int = 23) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, growth) for _ in range(blocks)))
        self.body_end = nn.Conv2d(width, width, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.high_resolution = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Upscale `image`."""
        features = self.first(image)
        features = features + self.body_end(self.body(features))
        for up in self.ups:
            larger = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = functional.leaky_relu(up(larger), 0.2)
        features = functional.leaky_relu(self.high_resolution(features), 0.2)
        upscaled: Tensor = self.last(features)
        return upscaled


def example(model: nn.Module) -> Example:
    """`model` with two noise images of 32 px; batch, height and width may change."""
    image = noise(2, 3, 32, 32).mul(0.2).add(0.5).clamp(0.0, 1.0)
    shape = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    return Example(model, {"image": image}, {"image": shape})


def tiny() -> Example:
    """2 blocks, 16 channels: 0.1M parameters; 32 px in, 128 px out."""
    return example(seeded(lambda: RRDBNet(width=16, growth=8, blocks=2)))


def full() -> Example:
    """The 23 blocks of ESRGAN: 16.7M parameters; 32 px in, 128 px out."""
    return example(seeded(RRDBNet))
