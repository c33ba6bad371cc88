"""The catalogue of targets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from aigcc.errors import PipelineError
from aigcc.options import build, read_calls
from aigcc.target import Target

_CLASSES = {
    "cpu": "aigcc.targets.cpu:Cpu",
    "gpu": "aigcc.targets.gpu:Gpu",
    "jetson": "aigcc.targets.jetson:Jetson",
    "mobile": "aigcc.targets.mobile:Mobile",
}


class _Catalogue(Mapping[str, type[Target]]):
    """Target classes by name, imported when asked for."""

    def __getitem__(self, name: str) -> type[Target]:
        module, _, cls = _CLASSES[name].partition(":")
        found: type[Target] = getattr(importlib.import_module(module), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


TARGETS: Mapping[str, type[Target]] = _Catalogue()


def make_target(text: str, catalogue: Mapping[str, type[Target]] = TARGETS) -> Target:
    """The target that a text such as `mobile(weights=fp16)` names.

    Raises:
        PipelineError: unknown target or option, or not exactly one target.
    """
    calls = read_calls(text)
    if len(calls) != 1:
        raise PipelineError(
            f"{text!r} names {len(calls)} targets",
            hint="name one, for example mobile(weights=fp16)",
        )
    return build(calls[0], catalogue, "target")
