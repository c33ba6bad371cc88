"""Recording: FX nodes that know the ONNX node they came from, and calls that record themselves."""

from __future__ import annotations

import functools
import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

Expr = Any
"""A proxy that records what is done to it; a tensor or a number while constants are folded."""

OWN_NAME = re.compile(r"_(constant|branch|loop|scan)\d+")
"""What the buffers and modules are called that no weight of the model is."""

F = TypeVar("F", bound=Callable[..., Any])


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Record a call, or make it at once where no argument is a proxy."""
    proxy = next(_proxies((args, kwargs)), None)
    if proxy is None:
        return function(*args, **kwargs)
    return proxy.tracer.create_proxy("call_function", function, args, kwargs)


def recorded(function: F) -> F:
    """Let a function stand as one node in the graph, however it is computed."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(_proxies((args, kwargs)), None) is None:
            return function(*args, **kwargs)
        return call(wrapper, *args, **kwargs)

    return cast(F, wrapper)


def _proxies(thing: Any) -> Iterator[fx.Proxy]:
    if isinstance(thing, fx.Proxy):
        yield thing
    elif isinstance(thing, tuple | list):
        for item in thing:
            yield from _proxies(item)
    elif isinstance(thing, dict):
        yield from _proxies(list(thing.values()))
    elif isinstance(thing, slice):
        yield from _proxies((thing.start, thing.stop, thing.step))


class Recorder(GraphAppendingTracer):
    """Writes one FX graph.

    Args:
        parent: The recorder of the graph around, for the body of an If, Loop or Scan.

    Attributes:
        root: Holds the tensors and modules that the graph names.
        meta: Goes to every node that is made.
        captured: Proxies of the graph around that this one reads, in the order of its last
            placeholders.
    """

    def __init__(self, parent: Recorder | None = None) -> None:
        super().__init__(fx.Graph())
        self.root = nn.Module()
        self.meta: Mapping[str, Any] = {}
        self.parent = parent
        self.captured: list[fx.Proxy] = []
        self._inner: dict[fx.Node, fx.Proxy] = {}
        self._attributes: dict[str, fx.Proxy] = {}
        self._counts: Counter[str] = Counter()
        self._arguments = {"self"}
        self._last: fx.Node | None = None
        self._device: Any = torch.device("cpu")

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node that carries `meta`."""
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta.update(self.meta)
        return node

    def create_arg(self, a: Any) -> Any:
        """Make an argument; a tensor becomes a buffer."""
        if isinstance(a, torch.Tensor):
            return self.buffer(a).node
        return super().create_arg(a)

    def placeholder(self, name: str) -> fx.Proxy:
        """A new input, after those that there are, by a name that Python takes."""
        legal = re.sub(r"\W", "_", name)
        legal = legal if legal.isidentifier() else f"_{legal}"
        while keyword.iskeyword(legal) or legal in self._arguments:
            legal += "_"
        self._arguments.add(legal)
        first = next(iter(self.graph.nodes), None)
        if self._last is not None:
            place = self.graph.inserting_after(self._last)
        else:
            place = self.graph.inserting_before(first)
        with place:
            made = self.create_proxy("placeholder", legal, (), {})
        self._last = made.node
        return made

    def take_device(self, source: fx.Proxy) -> None:
        """Make new tensors where input `source` is."""
        assert self._last is not None
        with self.graph.inserting_after(self._last):
            self._device = self.create_proxy("call_function", getattr, (source, "device"), {})

    @property
    def device(self) -> Any:
        """Where new tensors are made: where the first input is."""
        return self._device if self.parent is None else self.capture(self.parent.device)

    def capture(self, thing: Any) -> Any:
        """What the graph around knows, as this one sees it: proxies become placeholders."""
        if isinstance(thing, list):
            return [self.capture(item) for item in thing]
        if not isinstance(thing, fx.Proxy) or thing.tracer is self:
            return thing
        if thing.node not in self._inner:
            self.captured.append(thing)
            self._inner[thing.node] = self.placeholder(thing.node.name)
        return self._inner[thing.node]

    def attribute(self, path: str, tensor: Callable[[], torch.Tensor]) -> fx.Proxy:
        """The tensor at `path` of the root of the outermost graph, put there at its first use."""
        if self.parent is not None:
            return cast(fx.Proxy, self.capture(self.parent.attribute(path, tensor)))
        if path not in self._attributes:
            assign(self.root, path, tensor())
            self._attributes[path] = self.create_proxy("get_attr", path, (), {})
        return self._attributes[path]

    def buffer(self, tensor: torch.Tensor) -> fx.Proxy:
        """A small constant as a tensor in the graph; a copy, which nobody else can change."""
        name = self._fresh("constant")
        assign(self.root, name, tensor.clone())
        return self.create_proxy("get_attr", name, (), {})

    def module(self, stem: str, module: nn.Module, *args: Any) -> fx.Proxy:
        """A call of a module that is put below the root under a name that starts with `stem`."""
        name = self._fresh(stem)
        self.root.add_module(name, module)
        return self.create_proxy("call_module", name, args, {})

    def _fresh(self, stem: str) -> str:
        """A name that no weight has (see `OWN_NAME`)."""
        self._counts[stem] += 1
        return f"_{stem}{self._counts[stem] - 1}"

    def finish(self, outputs: Any, name: str) -> fx.GraphModule:
        """The module that computes `outputs`; nodes that none of them needs are left out."""
        self.graph.output(self.create_arg(outputs))
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
        return fx.GraphModule(self.root, self.graph, name)


def assign(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
    """Put a parameter or a buffer at a dotted path, below modules made as needed."""
    *parts, name = path.split(".")
    for part in parts:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor)
