"""Diffusion transformers over text and image: SD3 (Esser et al., 2024), Flux; random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from aigcc.models.base import Example, noise, seeded


class SD3Denoiser(nn.Module):
    """The velocity of a latent image, given its time step and a text.

    `sample` is float32 [batch, 16, size, size], `timestep` float32 [batch] in [0, 1000],
    `encoder_hidden_states` float32 [batch, tokens, width] and `pooled_projections` float32
    [batch, width]; returns the shape of `sample`.
    """

    output_names = ("velocity",)

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
    ) -> Tensor:
        """Predict the velocity."""
        velocity: Tensor = self.transformer(
            sample, encoder_hidden_states, pooled_projections, timestep, return_dict=False
        )[0]
        return velocity


class FluxDenoiser(nn.Module):
    """The velocity of a packed latent image, given its time step and a text.

    `sample` is float32 [batch, patches, 16], `timestep` float32 [batch] in [0, 1],
    `encoder_hidden_states` float32 [batch, tokens, width], `pooled_projections` float32
    [batch, width] and `guidance` float32 [batch]; returns the shape of `sample`. Where each patch
    and token lies is fixed when the model is made.
    """

    output_names = ("velocity",)
    image_positions: Tensor
    text_positions: Tensor

    def __init__(self, transformer: nn.Module, size: int, text_tokens: int) -> None:
        super().__init__()
        self.transformer = transformer
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
        self.register_buffer("image_positions", positions.reshape(-1, 3).float())
        self.register_buffer("text_positions", torch.zeros(text_tokens, 3))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """Predict the velocity."""
        velocity: Tensor = self.transformer(
            sample,
            encoder_hidden_states,
            pooled_projections,
            timestep,
            self.image_positions,
            self.text_positions,
            guidance,
            return_dict=False,
        )[0]
        return velocity


def tiny_sd3() -> Example:
    """2 blocks, 64 wide: 0.3M parameters; 16 px latents, 8 text tokens."""
    from diffusers import SD3Transformer2DModel

    transformer = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=64,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
        )
    )
    inputs = {
        "sample": noise(2, 16, 16, 16),
        "timestep": torch.tensor([10.0, 500.0]),
        "encoder_hidden_states": noise(2, 8, 32, seed=2),
        "pooled_projections": noise(2, 32, seed=3),
    }
    return Example(SD3Denoiser(transformer).eval(), inputs, _dynamic_batch(inputs))


def tiny_flux() -> Example:
    """1 double and 2 single blocks, 64 wide: 0.3M parameters; 8x8 patches, 8 text tokens."""
    from diffusers import FluxTransformer2DModel

    transformer = seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    )
    inputs = {
        "sample": noise(2, 64, 16),
        "timestep": torch.tensor([0.01, 0.5]),
        "encoder_hidden_states": noise(2, 8, 32, seed=2),
        "pooled_projections": noise(2, 32, seed=3),
        "guidance": torch.tensor([3.5, 3.5]),
    }
    model = FluxDenoiser(transformer, size=8, text_tokens=8).eval()
    return Example(model, inputs, _dynamic_batch(inputs))


def _dynamic_batch(inputs: dict[str, Tensor]) -> dict[str, dict[int, Dim]]:
    batch = Dim("batch")
    return {name: {0: batch} for name in inputs}
