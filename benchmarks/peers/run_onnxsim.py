"""onnxsim, as its command line runs it."""

import sys

import onnx
from onnxsim import simplify

model, ok = simplify(sys.argv[1])
if not ok:
    sys.exit("onnxsim's own check failed")
onnx.save(model, sys.argv[2])
