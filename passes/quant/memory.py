"""Measurements kept on disk: no search makes one twice, and one that was killed goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aigcc.ir.storage.atomic import replacing

Row = Mapping[str, Any]


@dataclasses.dataclass
class Memory:
    """Rows of numbers by what decides them.

    Attributes:
        store: The file that they are kept in; None keeps them until the end of the program.
    """

    store: Path | None
    _known: dict[str, Row] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = self._stored()

    def recall(self, key: str, measure: Callable[[], Row | None]) -> Row | None:
        """The row of a key: as it was measured once, or as it is measured now; None is not kept."""
        if key not in self._known:
            row = measure()
            if row is None:
                return None
            # another process may have measured meanwhile
            self._known = {**self._stored(), **self._known, key: row}
            if self.store is not None:
                self.store.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.store) as (file,):
                    file.write(json.dumps(self._known, indent=0).encode())
        return self._known[key]

    def _stored(self) -> dict[str, Row]:
        """What is in the file; nothing of what another program left there."""
        try:
            known = json.loads(self.store.read_text("utf-8")) if self.store is not None else {}
        except (OSError, ValueError):
            return {}
        is_ours = isinstance(known, dict) and all(isinstance(r, dict) for r in known.values())
        return known if is_ours else {}
