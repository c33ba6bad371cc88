"""Type and shape inference with symbolic dims."""
