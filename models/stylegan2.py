"""StyleGAN2's generator (Karras et al., 2020) in plain torch; random weights.

Its convolution weights are not constants: each style scales them at run time, so a compiler that
only looks at initializers sees no convolution weights at all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from aigcc.models.base import Example, noise, seeded


class EqualLinear(nn.Module):
    """A linear layer whose weight is stored at unit variance and scaled at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.weight_scale = rate / math.sqrt(inputs)
        self.bias_scale = rate

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs] -> [batch, outputs]."""
        return functional.linear(x, self.weight * self.weight_scale, self.bias * self.bias_scale)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 that keeps the variance of its input."""
    return functional.leaky_relu(x, 0.2) * math.sqrt(2.0)


class Mapping(nn.Module):
    """Latent z -> style w, both [batch, latent], through layers that learn 100 times slower."""

    def __init__(self, latent: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(latent, latent, rate=0.01) for _ in range(layers))

    def forward(self, latent: Tensor) -> Tensor:
        """Normalise each latent to unit mean square, then map it."""
        x = latent * torch.rsqrt(latent.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


def smoothing_filter() -> Tensor:
    """The separable filter [1, 3, 3, 1] in both directions, [4, 4], with the sum one."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum() ** 2


class Blur(nn.Module):
    """The smoothing filter with a gain of four, for an image that is one quarter pixels."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 4.0 * smoothing_filter())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> the same with height - 1 and width - 1."""
        kernel = self.kernel.expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, kernel, padding=1, groups=x.shape[1])


class Upsample(nn.Module):
    """Twice the size: zeros in between, then the smoothing filter."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 4.0 * smoothing_filter())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, channels, 2 height, 2 width]."""
        kernel = self.kernel.expand(x.shape[1], 1, 4, 4)
        return functional.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, image by image.

    Scaling the weight equals scaling the input, and lets the weight be normalised
    (*demodulated*) so that each output channel keeps unit variance.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        latent: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.scale = 1.0 / math.sqrt(inputs * size * size)
        self.style = EqualLinear(latent, inputs, bias=1.0)
        self.demodulate = demodulate
        self.blur = Blur() if upsample else None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Convolve x [batch, inputs, height, width] under the style w [batch, latent]."""
        batch, inputs, height, width = x.shape
        weight = self.scale * self.weight * self.style(w).view(batch, 1, inputs, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        outputs, size = weight.shape[1], weight.shape[3]
        # One group for each image is how each gets weights of its own in one convolution.
        x = x.reshape(1, batch * inputs, height, width)
        if self.blur is None:
            kernel = weight.reshape(batch * outputs, inputs, size, size)
            x = functional.conv2d(x, kernel, padding=size // 2, groups=batch)
        else:
            kernel = weight.transpose(1, 2).reshape(batch * inputs, outputs, size, size)
            x = self.blur(functional.conv_transpose2d(x, kernel, stride=2, groups=batch))
        return x.reshape(batch, outputs, x.shape[2], x.shape[3])


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, fixed noise, a bias and a leaky ReLU."""

    noise: Tensor

    def __init__(
        self, inputs: int, outputs: int, resolution: int, latent: int, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, latent, upsample=upsample)
        self.noise_strength = nn.Parameter(torch.full((), 0.1))
        self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[batch, inputs, ...] -> [batch, outputs, resolution, resolution]."""
        return leaky_relu(self.conv(x, w) + self.noise_strength * self.noise + self.bias)


class ToRGB(nn.Module):
    """Features -> colours: a modulated 1x1 convolution that is not demodulated, and a bias."""

    def __init__(self, inputs: int, latent: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, latent, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, 3, height, width]."""
        rgb: Tensor = self.conv(x, w) + self.bias
        return rgb


class Block(nn.Module):
    """One resolution: upsample features and image, refine, add colours."""

    def __init__(self, inputs: int, outputs: int, resolution: int, latent: int) -> None:
        super().__init__()
        self.up = StyledConv(inputs, outputs, resolution, latent, upsample=True)
        self.conv = StyledConv(outputs, outputs, resolution, latent)
        self.to_rgb = ToRGB(outputs, latent)
        self.upsample_rgb = Upsample()

    def forward(self, x: Tensor, rgb: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Features and image at half the resolution -> features and image at this one."""
        x = self.conv(self.up(x, w), w)
        return x, self.upsample_rgb(rgb) + self.to_rgb(x, w)


class Generator(nn.Module):
    """Float32 [batch, latent] normal noise -> [batch, 3, resolution, resolution] images.

    Args:
        resolution: Height and width of the images, a power of two from 8.
        channels: The most channels that a resolution has; from 64 px on they halve each time.
        latent: Width of the latent and of the style.
        mapping: Layers of the mapping network.
    """

    output_names = ("image",)

    def __init__(self, resolution: int, channels: int, latent: int, mapping: int) -> None:
        super().__init__()
        self.mapping = Mapping(latent, mapping)
        self.constant = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.conv = StyledConv(channels, channels, 4, latent)
        self.to_rgb = ToRGB(channels, latent)
        blocks, inputs, size = [], channels, 8
        while size <= resolution:
            outputs = min(channels, channels * 64 // size)
            blocks.append(Block(inputs, outputs, size, latent))
            inputs, size = outputs, size * 2
        self.blocks = nn.ModuleList(blocks)

    def forward(self, latent: Tensor) -> Tensor:
        """Draw one image for each latent."""
        w = self.mapping(latent)
        x = self.conv(self.constant.expand(latent.shape[0], -1, -1, -1), w)
        rgb: Tensor = self.to_rgb(x, w)
        for block in self.blocks:
            x, rgb = block(x, rgb, w)
        return rgb


def _generator(resolution: int, channels: int, latent: int, mapping: int) -> Example:
    generator = seeded(lambda: Generator(resolution, channels, latent, mapping))
    # The batch is fixed: it is the number of groups of the convolutions, an attribute in ONNX.
    return Example(generator, {"latent": noise(1, latent)}, None)


def tiny() -> Example:
    """32 px, 32 channels, 64 wide styles: 0.1M parameters."""
    return _generator(32, channels=32, latent=64, mapping=2)


def full() -> Example:
    """256 px, 512 channels, 512 wide styles, as in the paper: 30M parameters."""
    return _generator(256, channels=512, latent=512, mapping=8)
