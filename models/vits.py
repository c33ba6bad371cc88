"""VITS, text to speech in one pass (Kim et al., 2021); random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from aigcc.models.base import Example, seeded, tokens

_WINDOW = 4  # how far apart two phonemes may be and still know by how much
_BOUND = 5.0  # beyond it the spline is the identity
_BINS = 10
_LONGEST = 64  # frames of a phoneme


class Vits(nn.Module):
    """Phonemes to a waveform; how long each one sounds, and the voice's noise, are drawn.

    Int64 [batch, phonemes] -> float32 [batch, samples], where `samples` follows from the phonemes.

    Args:
        width: Channels of the text encoder and of the flow.
        layers: Blocks of attention.
        upsample: By how much each stage of the decoder lengthens the sound.
    """

    output_names = ("sound",)

    def __init__(
        self, width: int = 192, layers: int = 6, upsample: tuple[int, ...] = (8, 8, 2, 2)
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(178, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.prior = nn.Conv1d(width, 2 * width, 1)
        self.durations = _Durations(width)
        self.flow = nn.ModuleList(_Coupling(width) for _ in range(4))
        self.decoder = _Decoder(width, upsample)

    def forward(self, phonemes: Tensor, scales: Tensor) -> Tensor:
        """Speak; `scales` are float32 [3]: noise of the voice, slowness, and noise of durations."""
        hidden = self.embed(phonemes).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        mean, deviation = self.prior(hidden).chunk(2, 1)
        lengths = torch.exp(self.durations(hidden, scales[2])) * scales[1]
        frames = torch.ceil(lengths).long().clamp(1, _LONGEST)
        ends = torch.cumsum(frames, -1)
        count = ends[:, :, -1].max().item()
        torch._check(count >= 2)  # type: ignore[no-untyped-call]
        place = torch.arange(count, device=ends.device)
        begins = ends - frames
        path = (place[:, None] >= begins) & (place[:, None] < ends)
        mean = mean @ path.to(mean.dtype).transpose(1, 2)
        deviation = deviation @ path.to(mean.dtype).transpose(1, 2)
        voice = mean + torch.randn_like(mean) * torch.exp(deviation) * scales[0]
        for coupling in reversed(self.flow):
            voice = coupling(voice.flip(1))
        sound: Tensor = self.decoder(voice)
        return sound[:, 0]


class _Block(nn.Module):
    """Attention that knows relative positions (Shaw et al., 2018), and two convolutions."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.attend = nn.Conv1d(width, 3 * width, 1)
        self.out = nn.Conv1d(width, width, 1)
        self.near = nn.Parameter(torch.randn(2 * _WINDOW + 1, width // heads) / 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed = nn.Sequential(
            nn.Conv1d(width, 4 * width, 3, padding=1), nn.ReLU(), nn.Conv1d(4 * width, width, 1)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[2]
        query, key, value = (
            part.unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part in self.attend(hidden).chunk(3, 1)
        )
        query = query / math.sqrt(query.shape[-1])
        place = torch.arange(length, device=hidden.device)
        apart = (place[None, :] - place[:, None]).clamp(-_WINDOW, _WINDOW) + _WINDOW
        by_distance = query @ self.near.T
        scores = query @ key.transpose(2, 3)
        scores = scores + torch.gather(by_distance, 3, apart.expand_as(scores))
        mixed = (scores.softmax(-1) @ value).transpose(2, 3).flatten(1, 2)
        hidden = _normed(self.norms[0], hidden + self.out(mixed))
        return _normed(self.norms[1], hidden + self.feed(hidden))


def _normed(norm: nn.Module, hidden: Tensor) -> Tensor:
    made: Tensor = norm(hidden.transpose(1, 2)).transpose(1, 2)
    return made


class _Durations(nn.Module):
    """Draws the logarithm of each phoneme's length from noise, by a spline that text bends."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.Conv1d(width, width, 3, padding=1)
        self.bend = nn.Conv1d(width, 3 * _BINS - 1, 1)
        self.gate = nn.Conv1d(width, 1, 1)

    def forward(self, hidden: Tensor, noise: Tensor) -> Tensor:
        hidden = F.gelu(self.before(hidden))
        drawn = torch.randn_like(self.gate(hidden)) * noise
        bent = _spline(drawn[:, 0], self.bend(hidden).transpose(1, 2))
        return torch.sigmoid(self.gate(hidden)) + 0.2 * bent[:, None]


def _spline(x: Tensor, shape: Tensor) -> Tensor:
    """A monotonic spline of rational quadratics (Durkan et al., 2019), inverted.

    Args:
        x: [batch, n].
        shape: [batch, n, 3 * _BINS - 1]: widths, heights and slopes, before they are normed.
    """
    inside = (x >= -_BOUND) & (x <= _BOUND)
    made = torch.where(inside, torch.zeros_like(x), x)
    widths, heights, slopes = torch.split(shape[inside], [_BINS, _BINS, _BINS - 1], -1)
    made[inside] = _inverse(x[inside], widths, heights, slopes)
    return made


def _inverse(y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    left, width = _edges(widths)
    low, height = _edges(heights)
    slope = F.pad(F.softplus(slopes), (1, 1), value=1.0)
    bin_ = ((y[:, None] >= low).sum(-1, keepdim=True) - 1).clamp(0, _BINS - 1)
    x0, w, y0, h, d0 = (part.gather(-1, bin_)[:, 0] for part in (left, width, low, height, slope))
    d1 = slope[:, 1:].gather(-1, bin_)[:, 0]
    steep = h / w
    rise = (y - y0) * (d0 + d1 - 2 * steep)
    a, b, c = h * (steep - d0) + rise, h * d0 - rise, -steep * (y - y0)
    return x0 + w * 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=0)))


def _edges(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Where bins begin and how wide they are, between the bounds."""
    size = 0.01 + (1 - 0.01 * _BINS) * parts.softmax(-1)
    size = 2 * _BOUND * size
    return F.pad(size.cumsum(-1)[:, :-1], (1, 0)) - _BOUND, size


class _Coupling(nn.Module):
    """Half of the channels shift the other half, by gated convolutions (van den Oord, 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.Conv1d(width // 2, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 5, padding=2) for _ in range(2))
        self.after = nn.Conv1d(width, width // 2, 1)

    def forward(self, voice: Tensor) -> Tensor:
        first, second = voice.chunk(2, 1)
        hidden = self.before(first)
        for layer in self.gated:
            turn, gate = layer(hidden).chunk(2, 1)
            hidden = hidden + torch.tanh(turn) * torch.sigmoid(gate)
        return torch.cat([first, second - self.after(hidden)], 1)


class _Decoder(nn.Module):
    """HiFi-GAN's generator (Kong et al., 2020)."""

    def __init__(self, width: int, upsample: tuple[int, ...]) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv1d(width, 2 * width, 7, padding=3)]
        for index, factor in enumerate(upsample):
            wide, narrow = 2 * width >> index, width >> index
            stages += [
                nn.LeakyReLU(0.1),
                nn.ConvTranspose1d(wide, narrow, 2 * factor, factor, factor // 2),
                _Residual(narrow),
            ]
        self.stages = nn.Sequential(*stages, nn.LeakyReLU(), nn.Conv1d(narrow, 1, 7, padding=3))

    def forward(self, voice: Tensor) -> Tensor:
        return torch.tanh(self.stages(voice))


class _Residual(nn.Module):
    """Convolutions that look further and further."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=wide, dilation=wide) for wide in (1, 3, 5)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = hidden + layer(F.leaky_relu(hidden, 0.1))
        return hidden


def example(vits: Vits) -> Example:
    """`vits` with 12 phonemes, of which there may be others, and no noise."""
    inputs = {"phonemes": tokens(178, 1, 12), "scales": torch.tensor([0.0, 1.0, 0.0])}
    return Example(vits, inputs, {"phonemes": {1: Dim("phonemes", min=2)}, "scales": None})


def tiny() -> Example:
    """32 channels and 2 blocks: 0.21M parameters."""
    return example(seeded(lambda: Vits(32, 2)))


def full() -> Example:
    """192 channels and 6 blocks of attention: 10.2M parameters."""
    return example(seeded(Vits))
