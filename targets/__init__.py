"""The catalogue of targets."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from aigcc.catalogue import Catalogue
from aigcc.errors import PipelineError
from aigcc.options import build, read_calls
from aigcc.target import Capabilities, Target

TARGETS: Catalogue[Target] = Catalogue(
    {
        "cpu": "aigcc.targets.cpu:Cpu",
        "gpu": "aigcc.targets.gpu:Gpu",
        "jetson": "aigcc.targets.jetson:Jetson",
        "mobile": "aigcc.targets.mobile:Mobile",
    }
)


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


@functools.cache
def reference() -> Capabilities:
    """What ONNX Runtime takes, in which a module is compared with the one that it was made of."""
    return make_target("mobile").can
