"""ONNX Runtime's quantisation as it recommends it: METHOD MODEL SAMPLES OUT.

METHOD is "dynamic"; or static for "all" operators, for "products", which are convolutions and all
matrix products, or for products with "weights" alone. Where symbolic shape inference, a part of its
pre-processing that may be skipped, does not know an operator, it is skipped.
"""

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
try:
    quant_pre_process(model, prepared)
except Exception as error:  # it raises nothing more special
    if "symbolic shape" not in str(error):
        raise
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
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
        extra_options={"MatMulConstBOnly": method == "weights"},
    )
prepared.unlink()
