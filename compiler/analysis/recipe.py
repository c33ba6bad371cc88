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
            CompileError: it is missing, is no TOML, has no table of precisions, or has something
                else than a recipe has.
        """
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise CompileError(
                f"the recipe cannot be read: {error.strerror}",
                at=str(path),
                hint="aigcc build --budget writes one into the artifact: OUT/recipe.toml",
            ) from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CompileError(
                f"the recipe is no TOML: {error}",
                at=str(path),
                hint='a line of it is such as "node" = "w8a8"',
            ) from error
        if table.get("format", _FORMAT) != _FORMAT:
            raise CompileError(
                f"the recipe has format {table['format']!r}, which this aigcc does not know",
                at=str(path),
                hint="make it again with aigcc build --budget",
            )
        precision = table.get("precision")
        if not isinstance(precision, dict) or not all(
            isinstance(scheme, str) for scheme in precision.values()
        ):
            raise CompileError(
                "the recipe has no table [precision] of node names and schemes",
                at=str(path),
                hint='write one: [precision], then a line such as "node" = "w8a8"',
            )
        facts = table.get("measured", {})
        if not isinstance(facts, dict):
            raise CompileError(
                "[measured] of the recipe is no table",
                at=str(path),
                hint="leave it out: nothing reads it",
            )
        return cls(precision, str(table.get("target", "")), facts)

    def save(self, path: str | Path) -> None:
        """Write the recipe; the file appears whole or not at all."""
        lines = [f"format = {_FORMAT}", f"target = {json.dumps(self.target)}", "", "[measured]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.facts.items()]
        lines += ["", "[precision]"]
        lines += [f"{json.dumps(n)} = {json.dumps(s)}" for n, s in self.precision.items()]
        with replacing(Path(path)) as (file,):
            file.write(("\n".join(lines) + "\n").encode())


class BudgetMissed(CompileError):
    """No mixture keeps a budget.

    Args:
        what: By how much the best one misses it.
        hint: What to do about it.
        recipe: The best one.
    """

    def __init__(self, what: str, *, hint: str, recipe: Recipe) -> None:
        super().__init__(what, hint=hint)
        self.recipe = recipe
