"""The IR of record: a module wraps an `onnx_ir.Model` whose weights stay memory-mapped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.edit import held_graphs

T = TypeVar("T")
GraphLike = ir.Graph | ir.Function


class Module:
    """A model under compilation.

    Args:
        model: The `onnx_ir` model; the module owns it and changes it in place.
        path: The file it came from, for messages and for resolving data references.

    Attributes:
        frozen: The values of inputs that are constants now, by name; see `aigcc.freeze`.
    """

    def __init__(self, model: ir.Model, path: Path | None = None) -> None:
        self.model = model
        self.path = path
        self.frozen: Mapping[str, npt.NDArray[Any]] = {}
        self._facts: dict[Callable[[Module], Any], Any] = {}

    def __repr__(self) -> str:
        kinds = (("inputs", self.inputs), ("outputs", self.outputs))
        values = (f"{name}=[{', '.join(map(_signature, found))}]" for name, found in kinds)
        place = f"{str(self.path)!r}, " if self.path else ""
        count = sum(1 for _ in self.nodes())
        return f"<Module {place}opset {self.opset}, {count} nodes, {', '.join(values)}>"

    @classmethod
    def load(cls, path: str | Path, *, roots: Iterable[Path] = ()) -> Module:
        """Read `.onnx` (weights mapped, inline or external) or `.onnxtxt` (the text form).

        Args:
            path: The file.
            roots: Folders besides its own in which a text may name data.

        Raises:
            ModelError: the file is missing, truncated, not a model, or refers to data outside of
                its folder.
        """
        path = Path(path)
        if path.suffix == ".onnxtxt":
            from aigcc.ir.text.printer import read_text

            return cls(read_text(path, roots=roots), path)
        from aigcc.ir.storage.loading import load_model

        return cls(load_model(path), path)

    @classmethod
    def parse(cls, text: str, base_dir: Path | None = None) -> Module:
        """Read the text form from a string; data references are relative to `base_dir`.

        Raises:
            ModelError: the text is not a module; says at which line and column.
        """
        from aigcc.ir.text.parser import parse_model

        return cls(parse_model(text, base_dir))

    def save(self, path: str | Path, *, external: bool | None = None) -> None:
        """Write `.onnx` or `.onnxtxt`, whole or not at all.

        Where the old file at `path` had weights in `<path>.data` and the new one has not, that
        file goes.

        Args:
            path: Where to; the ending decides the form.
            external: Weights beside the file (True), inside it (False), or beside it when they are
                larger than 1 GiB (None). Ignored for the text form.

        Raises:
            ModelError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".onnxtxt":
            from aigcc.ir.text.printer import write_text

            write_text(self.model, path)
            return
        if path.suffix != ".onnx":
            raise ModelError(
                f"cannot tell the format of {path.name!r}",
                at=str(path),
                hint="end the name with .onnx (binary) or .onnxtxt (text)",
            )
        from aigcc.ir.storage.saving import save_model

        save_model(self.model, path, external)

    def text(self) -> str:
        """The module in the text form, to read: weights that lie in no file are left out."""
        from aigcc.ir.text.printer import INLINE_LIMIT, print_model

        return print_model(self.model, inline_limit=INLINE_LIMIT)

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        imports = self.model.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))

    @property
    def inputs(self) -> list[ir.Value]:
        """The inputs that a caller must feed: graph inputs that have no default value."""
        return [value for value in self.graph.inputs if value.name not in self.graph.initializers]

    @property
    def outputs(self) -> list[ir.Value]:
        """The graph's outputs."""
        return list(self.graph.outputs)

    def graphs(self) -> Iterator[GraphLike]:
        """The main graph, model-local functions, and all their sub-graphs; outer before inner."""
        pending: list[GraphLike] = [self.graph, *self.model.functions.values()]
        for graph in pending:
            yield graph
            for node in graph:
                pending.extend(held_graphs(node))

    def roots(self) -> Iterator[tuple[GraphLike, int]]:
        """The main graph and the model-local functions, each with the opset that its nodes have."""
        yield self.graph, self.opset
        for function in self.model.functions.values():
            imports = function.opset_imports
            yield function, imports.get("", imports.get("ai.onnx", self.opset))

    def nodes(self) -> Iterator[ir.Node]:
        """Every node of every graph, sub-graph and function."""
        for graph in self.graphs():
            yield from graph

    def clone(self) -> Module:
        """A copy of the structure; weights are shared, since they are never changed in place."""
        made = Module(self.model.clone(), self.path)
        made.frozen = self.frozen
        for graph in made.graphs():
            values = list(graph.inputs)
            if not isinstance(graph, ir.Function):
                values.extend(graph.initializers.values())
            for node in graph:
                values.extend(node.outputs)
            for value in values:
                value.type = copy.deepcopy(value.type)  # which `value.dtype = ...` would change
        return made

    def get(self, analysis: Callable[[Module], T]) -> T:
        """The result of an analysis, kept until a pass that does not preserve it changes things."""
        if analysis not in self._facts:
            self._facts[analysis] = analysis(self)
        result: T = self._facts[analysis]
        return result

    def invalidate(self, keep: tuple[Callable[..., Any], ...] = ()) -> None:
        """Forget all analyses except those in `keep`."""
        self._facts = {key: fact for key, fact in self._facts.items() if key in keep}


def _signature(value: ir.Value) -> str:
    """A value of a module's signature: `x: FLOAT[N,4]`."""
    dtype = "?" if value.dtype is None else value.dtype.name
    return f"{value.name}: {dtype}{'' if value.shape is None else value.shape}"
