"""A small U-Net for rectified flow (Liu et al., 2022) on 28 px digits; random weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded, tokens

_GROUPS = 8
_FREQUENCIES = 32


class FlowUNet(nn.Module):
    """The velocity of an image between noise and digit, given its time and the digit's label.

    `sample` is float32 [batch, 4, 14, 14], four neighbouring pixels as channels; `time` is float32
    [batch], from 0 (noise) to 1 (digit); `label` is int64 [batch]. Returns the shape of `sample`.

    Args:
        width: Channels at 14 px; they double at 7 px.
        labels: How many there are.
    """

    output_names = ("velocity",)

    def __init__(self, width: int = 48, labels: int = 10) -> None:
        super().__init__()
        wide, condition = 2 * width, 2 * width
        self.time = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        self.label = nn.Embedding(labels, condition)
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.fine = Block(width, width, condition)
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList([Block(wide, wide, condition) for _ in range(2)])
        self.attention = Attention(wide)
        self.up = nn.Conv2d(wide, width, 3, padding=1)
        self.joined = Block(2 * width, width, condition)
        self.leave = nn.Sequential(
            nn.GroupNorm(_GROUPS, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1)
        )

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Predict digit minus noise."""
        condition = functional.silu(self.time(_waves(time)) + self.label(label))
        fine = self.fine(self.enter(sample), condition)
        coarse = self.coarse[0](self.down(fine), condition)
        coarse = self.coarse[1](self.attention(coarse), condition)
        enlarged = functional.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        joined = self.joined(torch.cat((enlarged, fine), dim=1), condition)
        velocity: Tensor = self.leave(joined)
        return velocity


class Block(nn.Module):
    """Two normalised convolutions around a residual; the condition scales and shifts between."""

    def __init__(self, channels: int, out: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.condition = nn.Linear(condition, 2 * out)
        self.norm = nn.GroupNorm(_GROUPS, out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Float32 [batch, channels, height, width] -> [batch, out, height, width]."""
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(x)) * (1 + scale) + shift
        made: Tensor = self.skip(x) + self.second(functional.silu(hidden))
        return made


class Attention(nn.Module):
    """Every place looks at every other, in heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.read = nn.Linear(channels, 3 * channels)
        self.write = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [batch, channels, height, width] -> the same shape."""
        height, width = x.shape[2:]
        places = self.norm(x).flatten(2).transpose(1, 2)
        parts = self.read(places).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*parts)
        written = self.write(seen.transpose(1, 2).flatten(2))
        made: Tensor = x + written.transpose(1, 2).unflatten(-1, (height, width))
        return made


def _waves(time: Tensor) -> Tensor:
    """Float32 [batch] -> [batch, 64], sines and cosines."""
    steps = torch.arange(_FREQUENCIES, dtype=torch.float32) / _FREQUENCIES
    angles = 1000 * time[:, None] * torch.exp(-math.log(10000.0) * steps)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def example(unet: FlowUNet) -> Example:
    """`unet` with two samples of noise; the batch may change."""
    batch = Dim("batch")
    return Example(
        unet,
        {
            "sample": noise(2, 4, 14, 14),
            "time": torch.tensor([0.1, 0.8]),
            "label": tokens(10, 2),
        },
        {"sample": {0: batch}, "time": {0: batch}, "label": {0: batch}},
    )


def tiny() -> Example:
    """16 channels at 14 px: 0.08M parameters."""
    return example(seeded(lambda: FlowUNet(16)))


def full() -> Example:
    """48 channels at 14 px: 0.7M parameters."""
    return example(seeded(FlowUNet))
