"""The walk over a graph: each value gets a handle, each node is folded or recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from aigcc.errors import CompileError, ModelError, describe
from aigcc.ir.fxview.bodies import body_of, definition
from aigcc.ir.fxview.recording import Expr, Recorder
from aigcc.ir.fxview.refusals import refusal
from aigcc.ir.fxview.registry import CONVERTERS, Converter, key
from aigcc.ir.fxview.site import (
    SMALL,
    Handle,
    Site,
    Sizes,
    Stored,
    is_small,
    origin,
    place,
    tensor_of,
)
from aigcc.ir.fxview.sizes import SIZES
from aigcc.ir.fxview.unsigned import narrowed
from aigcc.ir.fxview.weights import Loader, is_trained
from aigcc.ir.weights import constant

# What torch and Python raise for numbers that do not fit together.
_ILLEGAL = (RuntimeError, IndexError, ValueError, ZeroDivisionError)


@dataclasses.dataclass
class Conversion:
    """What all graphs of one conversion share.

    Attributes:
        functions: The model-local functions, which are converted where they are called.
        paths: What each constant is called; those of the bodies of calls come to it.
        straight_through: Whether rounding lets gradients pass.
        loader: Makes the weights.
    """

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    paths: dict[ir.Value, str]
    straight_through: bool
    loader: Loader = dataclasses.field(default_factory=Loader)


class Frame:
    """One graph, or one call of a function.

    Args:
        conversion: What is shared.
        recorder: Where calls are recorded.
        imports: The opset of each domain.
        parent: The frame around, for a sub-graph.
    """

    def __init__(
        self,
        conversion: Conversion,
        recorder: Recorder,
        imports: Mapping[str, int],
        parent: Frame | None = None,
    ) -> None:
        self.conversion = conversion
        self.recorder = recorder
        self.imports = imports
        self.parent = parent
        self._handles: dict[ir.Value, Handle] = {}

    def define(self, value: ir.Value, handle: Handle) -> None:
        """Say what stands for a value."""
        self._handles[value] = handle

    def lookup(self, value: ir.Value) -> Handle:
        """What stands for a value of this graph or of one around it."""
        if value not in self._handles:
            tensor = constant(value) if value.const_value is None else value.const_value
            path = self.conversion.paths.get(value)
            if tensor is not None and path is not None:
                self._handles[value] = Stored(value, tensor, path)
            elif self.parent is None:
                raise ModelError(f"torch makes no value {value.name!r}, which is used")
            else:
                self._handles[value] = self._capture(self.parent.lookup(value))
        return self._handles[value]

    def _capture(self, handle: Handle) -> Handle:
        if isinstance(handle, Sizes):
            items = tuple(self.recorder.capture(list(handle.items)))
            return dataclasses.replace(handle, items=items)
        captured: Handle = self.recorder.capture(handle)
        return captured

    def folded(self, handle: Handle) -> torch.Tensor:
        """The tensor of a small constant."""
        if isinstance(handle, Stored):
            return self.conversion.loader.load(handle.tensor)
        assert not isinstance(handle, fx.Proxy)
        return handle.tensor() if isinstance(handle, Sizes) else handle

    def tensor(self, handle: Handle) -> Expr:
        """The proxy of a tensor."""
        if isinstance(handle, Stored):
            return self.recorder.attribute(handle.path, lambda: self._weight(handle))
        if isinstance(handle, Sizes):
            items: Any = list(handle.items) if handle.is_vector else handle.items[0]
            if handle.is_known():
                return self.recorder.buffer(handle.tensor())
            return tensor_of(items, handle.dtype, self.recorder.device)
        return self.recorder.buffer(handle) if isinstance(handle, torch.Tensor) else handle

    def _weight(self, stored: Stored) -> torch.Tensor:
        tensor = self.conversion.loader.load(stored.tensor)
        return nn.Parameter(tensor) if is_trained(stored.value, stored.tensor) else tensor

    def run(self, nodes: Iterable[ir.Node]) -> None:
        """Convert nodes, in their order."""
        for node in nodes:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                self._constant(node)
                continue
            self.recorder.meta = origin(node)
            try:
                self._node(node)
            except CompileError:
                raise
            except Exception as error:
                raise ModelError(
                    f"{node.op_type} cannot become torch: {describe(error)}", at=place(node)
                ) from error
        self.recorder.meta = {}

    def _constant(self, node: ir.Node) -> None:
        """A Constant that is no weight of the model; others are looked up by their path."""
        (value,) = node.outputs
        if value in self.conversion.paths:
            return
        tensor = constant(value)
        if tensor is None:
            raise ModelError("torch has no such constant", at=place(node))
        self.define(value, self.conversion.loader.load(tensor))

    def _node(self, node: ir.Node) -> None:
        version = self.imports.get(key(node)[0], 1)
        function = self.conversion.functions.get(node.op_identifier())
        converter = CONVERTERS.get(key(node))
        if function is None and converter is None:
            function = definition(node, version)
        if function is not None:
            outputs: Sequence[Any] = self._call(node, function)
        else:
            reason = refusal(node, version)  # of the body of a function, only now all is known
            if reason is not None or converter is None:
                raise ModelError(f"the module cannot become torch: {reason}", at=place(node))
            outputs = self._convert(Site(node, self, version, converter), converter)
        for value, handle in zip(node.outputs, outputs, strict=False):
            if handle is None:
                continue
            self.define(value, handle)
            if isinstance(handle, fx.Proxy) and value.name:
                _rename(handle, value.name, self.recorder)

    def _convert(self, site: Site, converter: Converter) -> tuple[Any, ...]:
        try:
            made = self._now(site, converter)
        except _ILLEGAL:
            made = None  # an error of the branch that it is in, if that ever runs
        site.is_folding = False
        return self._apply(site, converter) if made is None else made

    def _now(self, site: Site, converter: Converter) -> tuple[Any, ...] | None:
        """What can be computed at once, as a small tensor or as sizes; None if that cannot be."""
        node = site.node
        handles = [site.handle(index) for index in range(len(node.inputs))]
        if converter.folds and handles and all(map(is_small, handles)):
            site.is_folding = True
            outputs = self._apply(site, converter)
            site.is_folding = False
            if all(not isinstance(x, torch.Tensor) or x.numel() <= SMALL for x in outputs):
                return outputs
        if node.op_type in SIZES and node.domain in ("", "ai.onnx"):
            sizes = SIZES[node.op_type](site, *handles)
            return None if sizes is None else (sizes,)
        return None

    def _apply(self, site: Site, converter: Converter) -> tuple[Any, ...]:
        args: list[Any] = []
        for index in range(len(site.node.inputs)):
            if index in converter.settings:
                continue
            if index in converter.sizes:
                args.append(site.sizes(index))
            elif index in converter.numbers:
                args.append(site.number(index))
            else:
                args.append(site.tensor(index))
        # Of numbers alone torch would make no tensor, and forget their type.
        positions = converter.numbers
        if (
            args
            and positions == tuple(range(len(args)))
            and not any(map(site.gives_tensor, positions))
        ):
            args[0] = site.tensor(0)
        made = converter.function(site, *args)
        outputs = made if isinstance(made, tuple) else (made,)
        return tuple(
            x if x is None else narrowed(x, value.dtype, converter.wide)
            for x, value in zip(outputs, site.node.outputs, strict=False)
        )

    def _call(self, node: ir.Node, function: ir.Function) -> list[Handle]:
        given = ((index, value) for index, value in enumerate(node.inputs) if value is not None)
        handles = {index: self.lookup(value) for index, value in given}
        known = {
            index: self.folded(handle).numpy()
            for index, handle in handles.items()
            if is_small(handle)
        }
        body = body_of(node, function, self.conversion.functions, known)
        paths = self.conversion.paths
        paths |= {v: paths[original] for v, original in body.originals.items() if original in paths}
        frame = Frame(self.conversion, self.recorder, body.imports)
        for index, handle in handles.items():
            frame.define(body.function.inputs[index], handle)
        frame.run(body.function)
        return [frame.lookup(value) for value in body.function.outputs[: len(node.outputs)]]

    def body(self, graph: ir.Graph) -> tuple[Frame, list[fx.Proxy]]:
        """A frame for a sub-graph, and the placeholders of its inputs."""
        frame = Frame(self.conversion, Recorder(self.recorder), self.imports, self)
        inputs = [frame.recorder.placeholder(value.name or "input") for value in graph.inputs]
        for value, proxy in zip(graph.inputs, inputs, strict=True):
            frame.define(value, proxy)
        return frame, inputs

    def finish(self, graph: ir.Graph, name: str) -> fx.GraphModule:
        """Convert a graph whose inputs are defined; its outputs come as a tuple."""
        self.run(graph)
        outputs = tuple(self.tensor(self.lookup(value)) for value in graph.outputs)
        return self.recorder.finish(outputs, name)


def _rename(proxy: fx.Proxy, name: str, recorder: Recorder) -> None:
    """Call a node as the ONNX value that it makes, unless it makes another one already."""
    node = proxy.node
    if proxy.tracer is recorder and node.meta is not None and "onnx_value" not in node.meta:
        if node.op in ("placeholder", "get_attr"):
            return
        node.meta["onnx_value"] = name
        node._rename(name)
