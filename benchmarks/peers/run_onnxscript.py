"""onnxscript's optimizer with its default rewrite rules."""

import sys

import onnx_ir
import onnxscript.optimizer
import onnxscript.rewriter

model = onnx_ir.load(sys.argv[1])
onnxscript.optimizer.optimize_ir(model)
model = onnxscript.rewriter.rewrite(model)
onnx_ir.save(model, sys.argv[2])
