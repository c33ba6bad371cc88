"""NNCF's post-training quantisation as OpenVINO recommends it: KIND MODEL SAMPLES OUT.

KIND is "transformer" for what NNCF's guide calls so (language and diffusion models). For others it
is a preset: "performance", the default, in which all is symmetric, or "mixed", with zero points for
activations, which the guide recommends where these are not made by ReLU.
"""

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino

kind, source, samples, out = sys.argv[1:]
files = sorted(Path(samples).glob("*.npz"))
quantised = nncf.quantize(
    openvino.Core().read_model(source),
    nncf.Dataset(files, lambda file: dict(np.load(file))),
    preset=None if kind == "transformer" else nncf.QuantizationPreset(kind),
    model_type=nncf.ModelType.TRANSFORMER if kind == "transformer" else None,
    subset_size=len(files),
)
openvino.save_model(quantised, out, compress_to_fp16=False)
