"""`to_fx`: a module as a differentiable `torch.fx.GraphModule`."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

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
from aigcc.ir.fxview.bodies import one_spelling
from aigcc.ir.fxview.frame import Conversion, Frame
from aigcc.ir.fxview.recording import Recorder
from aigcc.ir.fxview.refusals import check
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
        ModelError: operators have no converter, or attributes, inputs or types that theirs does
            not follow: all of them are listed.
    """
    inferred = module.clone()
    infer_shapes(inferred.model, only_missing=True)
    check(inferred.model, str(module.path) if module.path else None)
    paths = {value: path for path, value in weight_names(inferred).items()}
    conversion = Conversion(inferred.model.functions, paths, straight_through)
    recorder = Recorder()
    frame = Frame(conversion, recorder, one_spelling(inferred.model.opset_imports))
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
