"""GPT-2 (Radford et al., 2019), with and without a key/value cache; random weights."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded, tokens

TINY: dict[str, Any] = {
    "vocab_size": 256,
    "n_positions": 128,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


class Decoder(nn.Module):
    """Int64 [batch, sequence] tokens -> float32 [batch, sequence, vocabulary] logits."""

    output_names = ("logits",)

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Run the model on `input_ids` with a causal mask."""
        logits: Tensor = self.language_model(input_ids, use_cache=False).logits
        return logits


def cached_names(prefix: str, layers: int) -> list[str]:
    """`<prefix>_key_0`, `<prefix>_value_0`, `<prefix>_key_1` and so on."""
    return [f"{prefix}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]


class CachedDecoder(nn.Module):
    """The same with a cache: takes the past keys and values, returns them grown by the sequence.

    Inputs are `input_ids` int64 [batch, sequence], `attention_mask` int64 [batch, past + sequence]
    and, for each layer, `past_key_<i>` and `past_value_<i>` float32 [batch, heads, past, width].
    Outputs are `logits`, `present_key_<i>` and `present_value_<i>`.
    """

    def __init__(self, language_model: nn.Module, layers: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.output_names = ("logits", *cached_names("present", layers))
        self.forward = self._named_forward(cached_names("past", layers))

    def _named_forward(self, past_names: list[str]) -> MethodType:
        """`run` with one named argument for each cached tensor, which is what exporters read."""

        def forward(self: CachedDecoder, *arguments: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
            return self.run(*signature.bind(self, *arguments, **named).args[1:])

        names = ["self", "input_ids", "attention_mask", *past_names]
        signature = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        forward.__signature__ = signature  # type: ignore[attr-defined]
        return MethodType(forward, self)

    def run(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Run the model on `input_ids`, which follow what `past` holds."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        logits = self.language_model(
            input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        ).logits
        present = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
        return (logits, *present)


def _plain(options: dict[str, Any], sequence: int) -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = seeded(lambda: Decoder(GPT2LMHeadModel(GPT2Config(**options))))
    return Example(
        model,
        {"input_ids": tokens(256, 2, sequence)},
        {"input_ids": {0: Dim("batch"), 1: Dim("sequence")}},
    )


def _cached(options: dict[str, Any], sequence: int, past: int) -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**options)
    model = seeded(lambda: CachedDecoder(GPT2LMHeadModel(config), config.n_layer))
    batch, past_length = Dim("batch"), Dim("past")
    inputs = {
        "input_ids": tokens(256, 2, sequence),
        "attention_mask": torch.ones(2, past + sequence, dtype=torch.int64),
    }
    dynamic: dict[str, Any] = {
        "input_ids": {0: batch, 1: Dim("sequence")},
        # The exporter assumes at least two past and two new tokens; what it makes takes fewer.
        "attention_mask": {0: batch, 1: Dim("total", min=4)},
    }
    for index, name in enumerate(cached_names("past", config.n_layer)):
        inputs[name] = noise(2, config.n_head, past, config.n_embd // config.n_head, seed=index)
        dynamic[name] = {0: batch, 2: past_length}
    return Example(model, inputs, dynamic)


def tiny() -> Example:
    """2 layers, 64 wide, 256 tokens: 0.12M random parameters; [2, 16] tokens in."""
    return _plain(TINY, sequence=16)


def full() -> Example:
    """GPT-2 small, 124M random parameters; [2, 32] tokens in."""
    return _plain({}, sequence=32)


def tiny_cache() -> Example:
    """`tiny` with a key/value cache: 3 new tokens after 5 cached ones."""
    return _cached(TINY, sequence=3, past=5)


def full_cache() -> Example:
    """`full` with a key/value cache: 3 new tokens after 29 cached ones."""
    return _cached({}, sequence=3, past=29)
