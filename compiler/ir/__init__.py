"""The IR of record: a module over onnx_ir, its text form, verifier, and ways in."""
