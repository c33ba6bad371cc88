"""Reads a Llama in llama.cpp's format, a `.gguf` file, whatever its weights are quantised to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy, nn

from aigcc.errors import ModelError

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_llama(path: Path) -> nn.Module:
    """The model at `path` as transformers' `LlamaForCausalLM`, with float32 weights.

    Raises:
        ModelError: The file holds another architecture.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if (architecture := field("general.architecture")) != "llama":
        raise ModelError(f"the architecture is {architecture!r}, not 'llama'", at=str(path))
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    heads = {
        "q": field("llama.attention.head_count"),
        "k": field("llama.attention.head_count_kv"),
    }
    config = LlamaConfig(
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads["q"],
        num_key_value_heads=heads["k"],
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
        tie_word_embeddings=tied,
    )
    state = {}
    for tensor in reader.tensors:
        weight = from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for kind, count in heads.items():
            if tensor.name.endswith(f"attn_{kind}.weight"):
                weight = _halves(weight, count)
        state[_name(tensor.name)] = weight
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model: nn.Module = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _name(name: str) -> str:
    """llama.cpp's name of a weight -> transformers' name."""
    outer = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in outer:
        return outer[name]
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.{suffix}"


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Put rotary pairs half a head apart, as transformers has them; the file has them adjacent."""
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
