"""Classes by the names that texts give them, each imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Catalogue(Mapping[str, type[T]]):
    """Passes or targets by name: to list the names imports none of them.

    Args:
        places: Name to class, or to where it is, as `module:class`.
    """

    def __init__(self, places: Mapping[str, type[T] | str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[T]:
        place = self._places[name]
        if not isinstance(place, str):
            return place
        module, _, cls = place.partition(":")
        found: type[T] = getattr(importlib.import_module(module), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __or__(self, more: Mapping[str, type[T]]) -> Catalogue[T]:
        return Catalogue({**self._places, **more})
