"""ONNX Runtime Mobile."""
