"""Real-ESRGAN's small video upscaler SRVGGNet (Wang et al., 2021); random weights."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor, nn

from aigcc.models.base import Example, seeded
from aigcc.models.rrdb import example


class SRVGGNet(nn.Module):
    """Float32 [batch, 3, height, width] images in [0, 1] -> four times the size.

    Args:
        width: Channels between the convolutions.
        convs: Convolutions between the first and the last.
    """

    output_names = ("upscaled",)

    def __init__(self, width: int = 64, convs: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(convs):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        layers += [nn.Conv2d(width, 3 * 16, 3, padding=1), nn.PixelShuffle(4)]
        self.body = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Add the learned detail to `image` enlarged to the nearest pixel."""
        enlarged = functional.interpolate(image, scale_factor=4.0, mode="nearest")
        upscaled: Tensor = self.body(image) + enlarged
        return upscaled


def tiny() -> Example:
    """2 convolutions, 16 channels: 0.01M parameters; 32 px in, 128 px out."""
    return example(seeded(lambda: SRVGGNet(width=16, convs=2)))


def full() -> Example:
    """The published shape: 0.6M parameters; 32 px in, 128 px out."""
    return example(seeded(SRVGGNet))
