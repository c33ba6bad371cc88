"""ONNX Runtime's quantisation as it recommends it: METHOD MODEL SAMPLES OUT."""

import os
import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).glob("*.npz"))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return dict(np.load(self.files.pop(0))) if self.files else None


method, *places = sys.argv[1:]
model, samples, out = (str(Path(place).resolve()) for place in places)
os.chdir(Path(out).parent)  # ONNX Runtime leaves scratch files where it runs
prepared = Path(out).with_suffix(".prepared.onnx")
quant_pre_process(model, prepared)
if method == "dynamic":
    quantize_dynamic(prepared, out, per_channel=True)
else:
    quantize_static(
        prepared,
        out,
        Reader(samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=None if method == "all" else ["Conv", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
prepared.unlink()
