"""Trains a model on real data: `python -m aigcc.models.train NAME`.

The weights go into `$AIGCC_CACHE/models`, or `.cache/models` under the current folder, beside the
packages that `aigcc.models.fetch` unpacks. One thread and a fixed seed give the same weights in
every run on one machine; `OMP_NUM_THREADS=1` keeps other libraries from asking for more.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aigcc.errors import CompileError, did_you_mean
from aigcc.ir.storage.atomic import replacing
from aigcc.models import digits
from aigcc.models.fetch import models_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

_STEPS = 2000
_BATCH = 128
_RATE = 2e-3
_WARM = 100  # steps in which the rate rises
_SHOWN = 100  # steps between lines


def trained_weights(name: str) -> Path:
    """The file of the weights that training `name` gives.

    Raises:
        CompileError: It has not been trained; the hint is the command that does it.
    """
    path = _place(name)
    if not path.exists():
        raise CompileError(
            f"{name!r} has not been trained",
            at=str(path),
            hint=f"OMP_NUM_THREADS=1 python -m aigcc.models.train {name}",
        )
    return path


def train(name: str) -> Path:
    """Train a model and write its weights, whether or not there are any.

    Raises:
        CompileError: The name is unknown, or its data has not been fetched.
    """
    if name not in RECIPES:
        raise CompileError(
            f"there is no recipe to train {name!r}",
            hint=did_you_mean(name, RECIPES) or f"one of {', '.join(RECIPES)}",
        )
    from safetensors.torch import save

    path = _place(name)
    state = {key: value.contiguous() for key, value in RECIPES[name]().state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (file,):
        file.write(save(state))
    return path


def _place(name: str) -> Path:
    return models_folder() / f"{name}.safetensors"


def _digits() -> nn.Module:
    """A flow U-Net, on straight paths from noise to digits (Liu et al., 2022)."""
    import torch

    from aigcc.models.flow_unet import FlowUNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = FlowUNet()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.01)
    images, labels = (torch.from_numpy(array) for array in _read(held_out=False))
    start, losses = time.monotonic(), []
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min((step + 1) / _WARM, _decay(step / _STEPS))
        chosen = torch.randint(len(images), (_BATCH,))
        loss = _flow_loss(model, images[chosen], labels[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % _SHOWN == 0:
            mean = sum(losses[-_SHOWN:]) / _SHOWN
            took = time.monotonic() - start
            print(f"step {step + 1} of {_STEPS}: loss {mean:.4f}, {took:.0f} s", flush=True)
    model.eval()
    with torch.no_grad():
        unseen = [torch.from_numpy(array) for array in _read(held_out=True)]
        found = [_flow_loss(model, *unseen).item() for _ in range(4)]
    print(f"loss on digits that were held out: {sum(found) / len(found):.4f}")
    return model


def _read(held_out: bool) -> tuple[digits.Array, digits.Array]:
    images, labels = digits.read(held_out)
    return digits.to_samples(images), labels


def _decay(done: float) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def _flow_loss(model: nn.Module, samples: Tensor, labels: Tensor) -> Tensor:
    """The squared error of the velocity, at a random time for each sample."""
    import torch

    noise = torch.randn_like(samples)
    at = torch.rand(len(samples))
    wide = at[:, None, None, None]
    mixed = ((1 - wide) * noise + wide * samples).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(mixed, at, labels)
    loss: Tensor = (velocity.float() - (samples - noise)).square().mean()
    return loss


RECIPES: dict[str, Callable[[], nn.Module]] = {"digits": _digits}


def main(names: list[str]) -> int:
    """Train `names`, and print where their weights are and what to build."""
    if not names:
        print(f"give one of {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    try:
        for name in names:
            print(f"{name} in {train(name)}\n  aigcc build aigcc.models.trained:{name}")
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
