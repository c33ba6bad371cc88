"""`to_fx`: a module as a differentiable `torch.fx.GraphModule`."""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir
from torch import fx

from aigcc.errors import ModelError
from aigcc.ir.fxview import (  # noqa: F401 - each fills the table of converters
    activation,
    attention,
    attention_contrib,
    control,
    creation,
    cutting,
    elementwise,
    indexing,
    linear,
    noise,
    norm,
    pool,
    quantise,
    reduce,
    resize,
    shape,
)
from aigcc.ir.fxview.frame import Conversion, Frame
from aigcc.ir.fxview.recording import Recorder
from aigcc.ir.fxview.registry import CONVERTERS, key
from aigcc.ir.fxview.site import place
from aigcc.ir.fxview.weights import weight_names
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes


def to_fx(module: Module, *, straight_through: bool = False) -> fx.GraphModule:
    """The module as torch code: to train, to distil, to ask for gradients.

    Floating-point weights become parameters under their ONNX names (see `weight_names`), other
    constants become buffers, numbers or sizes. A number in elementwise arithmetic, such as the 0.5
    of a Gelu that is spelled out, is no parameter. Weights share the memory of the module's file,
    page by page until they are written to: neither the file nor the module changes. New tensors
    are made on the device of the first input.

    Args:
        module: Any module that verifies; it stays as it is.
        straight_through: Let gradients pass through rounding as if it were not there: from
            QuantizeLinear to DequantizeLinear, and from DynamicQuantizeLinear to the integer
            product and its Cast to floats.

    Returns:
        A module that takes the inputs, in their order or by name, and returns the output, or a
        tuple of several. Each node's `meta` names the ONNX node, value, torch module and source
        line that it came from.

    Raises:
        ModelError: operators have no converter (all of them are listed), or a node has an
            attribute that torch cannot follow.
    """
    _check(module)
    inferred = module.clone()
    infer_shapes(inferred.model, only_missing=True)
    paths = {value: path for path, value in weight_names(inferred).items()}
    conversion = Conversion(inferred.model.functions, paths, straight_through)
    imports = {
        "" if name == "ai.onnx" else name: version
        for name, version in inferred.model.opset_imports.items()
    }
    recorder = Recorder()
    frame = Frame(conversion, recorder, imports)
    for value in inferred.inputs:
        frame.define(value, recorder.placeholder(value.name or "input"))
    tensors = [value for value in inferred.inputs if not isinstance(value.type, ir.SequenceType)]
    if tensors:
        source = frame.lookup(tensors[0])
        assert isinstance(source, fx.Proxy)
        recorder.take_device(source)
    frame.run(inferred.graph)
    outputs = tuple(frame.tensor(frame.lookup(value)) for value in inferred.outputs)
    made = recorder.finish(outputs if len(outputs) != 1 else outputs[0], "GraphModule")
    made.meta["input_names"] = [value.name for value in inferred.inputs]
    made.meta["output_names"] = [value.name for value in inferred.outputs]
    return made


def _check(module: Module) -> None:
    """Raise an error that lists every operator without a converter."""
    missing: dict[tuple[str, str], list[ir.Node]] = defaultdict(list)
    for node in module.nodes():
        known = key(node) in CONVERTERS or key(node) == ("", "Constant")
        if not known and node.op_identifier() not in module.model.functions:
            missing[key(node)].append(node)
    if not missing:
        return
    lines = [
        f"{domain or 'ai.onnx'}::{op}, {len(nodes)} of them, such as {place(nodes[0])}"
        for (domain, op), nodes in sorted(missing.items())
    ]
    count = len(lines)
    raise ModelError(
        f"{count} operator{'s have' if count > 1 else ' has'} no torch form: {'; '.join(lines)}",
        at=str(module.path) if module.path else None,
        hint="aigcc.ir.fxview.registry.converts registers a converter of your own",
    )
