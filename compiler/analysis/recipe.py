"""Recipes: which node runs in which precision, as a TOML file that can be edited and replayed."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigcc.errors import CompileError
from aigcc.ir.storage.atomic import replacing

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The precision of nodes, and where the choice came from.

    Attributes:
        precision: Node name to the name of a scheme, or "full" for the model's own precision.
        target: For whom it was made.
        facts: What was measured when it was made: quality, latency, size, the budget.
    """

    precision: Mapping[str, str]
    target: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            CompileError: it is missing, is no TOML, or has no table of precisions.
        """
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CompileError(f"the recipe cannot be read: {error}", at=str(path)) from error
        precision = table.get("precision")
        if not isinstance(precision, dict) or not all(
            isinstance(scheme, str) for scheme in precision.values()
        ):
            raise CompileError(
                "the recipe has no table [precision] of node names and schemes",
                at=str(path),
                hint='write one: [precision], then a line such as "node" = "w8a8"',
            )
        return cls(precision, str(table.get("target", "")), table.get("measured", {}))

    def save(self, path: str | Path) -> None:
        """Write the recipe; the file appears whole or not at all."""
        lines = [f"format = {_FORMAT}", f"target = {json.dumps(self.target)}", "", "[measured]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.facts.items()]
        lines += ["", "[precision]"]
        lines += [f"{json.dumps(n)} = {json.dumps(s)}" for n, s in self.precision.items()]
        with replacing(Path(path)) as (file,):
            file.write(("\n".join(lines) + "\n").encode())
