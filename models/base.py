"""What every factory returns, and how random weights are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Example(NamedTuple):
    """A model that is ready for `torch.export` and `torch.onnx.export`.

    Attributes:
        module: The model in evaluation mode. Its `output_names` attribute names the outputs.
        inputs: Keyword arguments of `module.forward`, by name.
        dynamic_shapes: The dimensions that may change, as `torch.export.export` takes them, or
            None when every shape is fixed.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic_shapes: dict[str, Any] | None


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """Run `build` with a fixed seed, leaving the global random state as it was.

    Returns:
        The module that `build` made, in evaluation mode and without gradients.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal float32 noise that is the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(vocabulary: int, *shape: int, seed: int = 1) -> Tensor:
    """Random int64 token numbers in [0, vocabulary) that are the same in every run."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))
