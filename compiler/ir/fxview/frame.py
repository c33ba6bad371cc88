"""The walk over a graph: each value gets a handle, each node is folded or recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from aigcc.errors import CompileError, ModelError, describe
from aigcc.ir.fxview.recording import Expr, Recorder
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
from aigcc.ir.fxview.weights import Loader, is_trained
from aigcc.ir.weights import constant


@dataclasses.dataclass
class Conversion:
    """What all graphs of one conversion share.

    Attributes:
        functions: The model-local functions, which are converted where they are called.
        paths: What each constant is called.
        straight_through: Whether rounding lets gradients pass.
        loader: Makes the weights.
    """

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    paths: Mapping[ir.Value, str]
    straight_through: bool
    loader: Loader = dataclasses.field(default_factory=Loader)


class Frame:
    """One graph, or one call of a function.

    Args:
        conversion: What is shared.
        recorder: Where calls are recorded.
        imports: The opset of each domain.
        parent: The frame around, for a sub-graph.
        attributes: The attributes that a function was called with.
    """

    def __init__(
        self,
        conversion: Conversion,
        recorder: Recorder,
        imports: Mapping[str, int],
        parent: Frame | None = None,
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> None:
        self.conversion = conversion
        self.recorder = recorder
        self.imports = imports
        self.parent = parent
        self.attributes = attributes
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
            else:
                assert self.parent is not None, value.name
                self._handles[value] = self._capture(self.parent.lookup(value))
        return self._handles[value]

    def _capture(self, handle: Handle) -> Handle:
        if isinstance(handle, Sizes):
            items = tuple(self.recorder.capture(list(handle.items)))
            return dataclasses.replace(handle, items=items)
        captured: Handle = self.recorder.capture(handle)
        return captured

    def attribute(self, node: ir.Node, name: str) -> ir.Attr | None:
        """An attribute of a node, or the one of the call that it refers to."""
        found = node.attributes.data.get(name)
        if found is None or found.ref_attr_name is None:
            return found
        return (self.attributes or {}).get(found.ref_attr_name)

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
        """A Constant whose attribute is given by the caller of a function; others are looked up."""
        for name, attribute in node.attributes.data.items():
            if attribute.ref_attr_name is None:
                continue
            given = self.attribute(node, name)
            if given is None:
                raise ModelError(f"the function's attribute {name!r} is not given", at=place(node))
            made = ir.node("Constant", [], {name: given.value})
            tensor = constant(made.outputs[0])
            assert tensor is not None
            self.define(node.outputs[0], self.conversion.loader.load(tensor))

    def _node(self, node: ir.Node) -> None:
        function = self.conversion.functions.get(node.op_identifier())
        if function is not None:
            outputs: Sequence[Any] = self._call(node, function)
        else:
            domain, _ = key(node)
            site = Site(node, self, self.imports.get(domain, 1))
            made = self._convert(site, CONVERTERS[key(node)])
            outputs = made if isinstance(made, tuple) else (made,)
        for value, handle in zip(node.outputs, outputs, strict=False):
            if handle is None:
                continue
            self.define(value, handle)
            if isinstance(handle, fx.Proxy) and value.name:
                _rename(handle, value.name, self.recorder)

    def _convert(self, site: Site, converter: Converter) -> Any:
        node = site.node
        handles = [site.handle(index) for index in range(len(node.inputs))]
        if converter.folds and handles and all(map(is_small, handles)):
            site.is_folding = True
            made = self._apply(site, converter)
            outputs = made if isinstance(made, tuple) else (made,)
            if all(not isinstance(x, torch.Tensor) or x.numel() <= SMALL for x in outputs):
                return made
            site.is_folding = False
        if node.op_type in SIZES and node.domain in ("", "ai.onnx"):
            sizes = SIZES[node.op_type](site, *handles)
            if sizes is not None:
                return sizes
        return self._apply(site, converter)

    def _apply(self, site: Site, converter: Converter) -> Any:
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
        return converter.function(site, *args)

    def _call(self, node: ir.Node, function: ir.Function) -> list[Handle]:
        attributes = {**function.attributes}
        attributes = {name: a for name, a in attributes.items() if a.value is not None}
        for name in node.attributes.data:
            given = self.attribute(node, name)
            if given is not None:
                attributes[name] = given
        imports = {"" if k == "ai.onnx" else k: v for k, v in function.opset_imports.items()}
        frame = Frame(self.conversion, self.recorder, imports, None, attributes)
        for index, value in enumerate(function.inputs):
            given_value = node.inputs[index] if index < len(node.inputs) else None
            if given_value is not None:
                frame.define(value, self.lookup(given_value))
        frame.run(function)
        return [frame.lookup(value) for value in function.outputs]

    def body(self, graph: ir.Graph) -> tuple[Frame, list[fx.Proxy]]:
        """A frame for a sub-graph, and the placeholders of its inputs."""
        frame = Frame(self.conversion, Recorder(self.recorder), self.imports, self, self.attributes)
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
