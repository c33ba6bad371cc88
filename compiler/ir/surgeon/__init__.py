"""Surgery on a module with onnx-graphsurgeon."""

from aigcc.ir.surgeon.surgery import surgery

__all__ = ["surgery"]
