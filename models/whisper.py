"""Whisper's audio encoder (Radford et al., 2022); random weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class AudioEncoder(nn.Module):
    """Float32 [batch, mels, frames] log-mel spectrograms -> [batch, frames / 2, width].

    Args:
        options: Fields of transformers' `WhisperConfig`.
    """

    output_names = ("last_hidden_state",)

    def __init__(self, **options: Any) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.encoder = WhisperEncoder(WhisperConfig(**options))

    def forward(self, input_features: Tensor) -> Tensor:
        """Encode `input_features`."""
        hidden: Tensor = self.encoder(input_features).last_hidden_state
        return hidden


def example(model: nn.Module, mels: int, frames: int) -> Example:
    """`model` with two spectrograms of noise; the batch may change, the frames may not."""
    inputs = {"input_features": noise(2, mels, frames).mul(0.3)}
    return Example(model, inputs, {"input_features": {0: Dim("batch")}})


def tiny() -> Example:
    """2 layers, 64 wide, 16 mels: 0.08M parameters; 64 frames in."""
    model = seeded(
        lambda: AudioEncoder(
            d_model=64,
            num_mel_bins=16,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            max_source_positions=32,
        )
    )
    return example(model, mels=16, frames=64)


def state_of(
    weights: dict[str, NDArray[Any]], half: Literal["encoder", "decoder"], layers: int
) -> dict[str, Tensor]:
    """CTranslate2's weights of the encoder or the decoder, as transformers calls them; float32."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(weights[f"{half}/{name}"].astype("float32"))

    state = {"embed_positions.weight": tensor("position_encodings/encodings")}
    norms, linears = {"layer_norm": "layer_norm"}, dict[str, str]()
    if half == "encoder":
        linears |= {"conv1": "conv1", "conv2": "conv2"}
    else:
        state["embed_tokens.weight"] = tensor("embeddings/weight")
    for index in range(layers):
        source, target = f"layer_{index}", f"layers.{index}"
        norms[f"{source}/ffn/layer_norm"] = f"{target}.final_layer_norm"
        linears[f"{source}/ffn/linear_0"] = f"{target}.fc1"
        linears[f"{source}/ffn/linear_1"] = f"{target}.fc2"
        attentions = {"self_attention": "self_attn"}
        if half == "decoder":
            attentions["attention"] = "encoder_attn"
        for theirs, ours in attentions.items():
            norms[f"{source}/{theirs}/layer_norm"] = f"{target}.{ours}_layer_norm"
            last = 1 if ours == "self_attn" else 2  # behind one fused linear, or behind two
            linears[f"{source}/{theirs}/linear_{last}"] = f"{target}.{ours}.out_proj"
            for kind in ("weight", "bias"):
                fused = [tensor(f"{source}/{theirs}/linear_{i}/{kind}") for i in range(last)]
                query, key, value = torch.cat(fused).chunk(3)
                state[f"{target}.{ours}.q_proj.{kind}"] = query
                state[f"{target}.{ours}.v_proj.{kind}"] = value
                if kind == "weight":  # Whisper's keys have no bias; the fused one holds zeros.
                    state[f"{target}.{ours}.k_proj.{kind}"] = key
    for source, target in norms.items():
        state[f"{target}.weight"] = tensor(f"{source}/gamma")
        state[f"{target}.bias"] = tensor(f"{source}/beta")
    for source, target in linears.items():
        for kind in ("weight", "bias"):
            state[f"{target}.{kind}"] = tensor(f"{source}/{kind}")
    return state
