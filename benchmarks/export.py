"""Export one of aigcc.models as a user of torch would: python export.py module:callable OUT."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from aigcc.ir.trace import load_callable


def main() -> None:
    reference, out = sys.argv[1:]
    module, inputs, dynamic_shapes = load_callable(reference)()
    warnings.simplefilter("ignore")
    program = torch.onnx.export(
        module,
        kwargs=inputs,
        dynamic_shapes=dynamic_shapes,
        dynamo=True,
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    large = sum(p.numel() * p.element_size() for p in module.parameters()) > 1 << 30
    program.save(Path(out), external_data=large)


if __name__ == "__main__":
    main()
