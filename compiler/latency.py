"""How long a program takes beside its original, and which target is faster where it loses."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aigcc.benchmark import Timing, interleave
from aigcc.errors import CompileError
from aigcc.figures import seconds
from aigcc.ir.module import Module
from aigcc.machine import describe_processor
from aigcc.narrow import has_narrow, in_float32
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import NoKernelError, OrtSession
from aigcc.samples import Samples
from aigcc.target import Feeds, NodeTime, Session, Target

Calls = dict[str, Callable[[], object]]

_BEFORE, _AFTER = "before", "after"
_SHARE = 0.3  # of a call from which on what is not the model's is worth a word
_ROWS = 30  # nodes that are listed

_STAND_IN = "the original computed in float32: ONNX Runtime has no kernels for its narrow floats"

# A program that computes next to nothing: what it takes is the runtime's own.
_NOTHING = """<ir_version: 10, opset_import: ["" : 20]>
nothing (float[1] x) => (float[1] y) { y = Neg (x) }"""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds a run, measured in turn on one machine.

    Attributes:
        before: The original in ONNX Runtime with all of its optimisations.
        after: The program.
        others: Other targets that run here, by name, where the program is slower than the original.
        own: Seconds that each call of the runtime takes, whatever it computes; None if unknown.
        nodes: Where the time goes, longest first, where the runtime tells.
        machine: The processor.
        stand_in: What was timed in the place of the original, which ONNX Runtime does not run.
    """

    before: Timing
    after: Timing
    others: Mapping[str, Timing]
    own: float | None
    nodes: list[NodeTime]
    machine: str
    stand_in: str = ""

    def describe(self, target: str) -> dict[str, Any]:
        """The facts that the manifest keeps."""
        return {**dataclasses.asdict(self), "notes": list(self.notes(target))}

    def notes(self, target: str) -> Iterator[str]:
        """What has to be known of these figures, a sentence each."""
        after = self.after
        if self.stand_in:
            yield f"before is {self.stand_in}"
        if is_slower(after):
            spread = f"{after.ratio_low:.2f} to {after.ratio_high:.2f}"
            said = f"{target} takes {after.ratio:.2f}x the time of ONNX Runtime with the original "
            said += f"on this machine ({spread}): "
            best = min(self.others, key=lambda name: self.others[name].ratio, default=None)
            if best is not None and self.others[best].ratio_high < after.ratio:
                yield f"{said}--target {best} is faster, {self.others[best].ratio:.2f}x"
            else:
                yield f"{said}no target that runs here is faster"
        if self.own is not None and self.own > _SHARE * after.median:
            yield (
                f"{seconds(self.own)} of the {seconds(after.median)} a run are what each call of "
                f"{target} takes, whatever it computes"
            )


def is_slower(after: Timing) -> bool:
    """Whether a program is slower than its original in at least three of four rounds."""
    return after.ratio_low > 1


def measure_latency(
    original: Module,
    target: Target,
    folder: Path,
    entry: str,
    samples: Samples,
    threads: int | None = None,
) -> Latency | None:
    """Time a program and its original in turn; None where one of them cannot run here.

    Raises:
        CompileError: one of them fails.
    """
    session = target.session(folder, entry, threads)
    if session is None:
        return None
    feeds = next(iter(samples))
    try:
        reference, stand_in = OrtSession(original, threads=threads), ""
    except NoKernelError:
        if not has_narrow(original):
            return None
        reference, stand_in = OrtSession(in_float32(original), threads=threads), _STAND_IN
    calls: Calls = {_BEFORE: lambda: reference.run(feeds), _AFTER: lambda: session.run(feeds)}
    timings = interleave(calls)
    if is_slower(timings[_AFTER]):
        others = _others(original, target, feeds, threads)
        if others:
            timings = interleave({**calls, **others})
    both = timings[_BEFORE], timings[_AFTER]
    found = {name: timing for name, timing in timings.items() if name not in (_BEFORE, _AFTER)}
    with contextlib.suppress(CompileError):  # how long it takes is known without it
        nodes = target.profile(folder, entry, feeds, threads)
        nodes = sorted(nodes, key=lambda node: -node.seconds)[:_ROWS]
        own = _own(target, threads)
        return Latency(*both, found, own, nodes, describe_processor(), stand_in)
    return Latency(*both, found, None, [], describe_processor(), stand_in)


def _own(target: Target, threads: int | None) -> float | None:
    """What a call takes that computes next to nothing."""
    nothing = Module.parse(_NOTHING)
    session = target.open(nothing, threads)
    if session is None:
        return None
    feeds = next(iter(_feeds(nothing)))
    return interleave({"nothing": lambda: session.run(feeds)}, rounds=50)["nothing"].median


def _feeds(module: Module) -> Iterator[Feeds]:
    from aigcc.samples import load_samples

    yield from load_samples(None, module)


def _others(original: Module, target: Target, feeds: Feeds, threads: int | None) -> Calls:
    """What other targets that run here make of the original, by name."""
    from aigcc.targets import TARGETS

    found: Calls = {}
    for name in TARGETS:
        if name == target.name or not TARGETS[name].runs_here:
            continue
        with contextlib.suppress(CompileError):  # it cannot run this model, and is no help then
            session = _opened(original, TARGETS[name](), threads)
            if session is not None:
                session.run(feeds)
                found[name] = lambda session=session: session.run(feeds)  # type: ignore[misc]
    return found


def _opened(original: Module, target: Target, threads: int | None) -> Session | None:
    target.check_tools()
    ctx = Context(target=target, threads=threads)
    module = target.prepare(original, ctx).clone()
    PassManager(parse(target.pipeline())).run(module, ctx)
    return None if target.check(module) else target.open(module, threads)
