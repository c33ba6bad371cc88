"""What a node costs in each scheme on this machine: measured alone, and remembered on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from aigcc.benchmark import interleave
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.kernels import inexact
from aigcc.machine import processor
from aigcc.options import show
from aigcc.passes.quant.isolate import isolate, noise_for
from aigcc.passes.quant.memory import Memory
from aigcc.passes.quant.placement import Scheme, weight_of
from aigcc.passes.quant.quantise import FULL
from aigcc.passes.quant.region import Regions
from aigcc.pipeline.rules import remove_dead, replace_value
from aigcc.target import Session, Target

_SECONDS = 0.1
_HOPELESS = 1.5  # times as long in the first run: not worth a second look
_RANGE = (-4.0, 4.0)
_PER_SECOND = 1e12  # products; only ratios of estimates are of use


@dataclasses.dataclass
class Latencies:
    """Seconds of single nodes, by what decides them; equal nodes are measured once.

    For a device that this machine is not, they are estimates: products by the cost in its table.

    Attributes:
        target: Whose programs are timed.
        threads: Threads within an operator.
        memory: Where measurements are kept.
    """

    target: Target
    threads: int | None
    memory: Memory

    def of(
        self, nodes: Sequence[ir.Node], imports: dict[str, int], schemes: Sequence[Scheme]
    ) -> Mapping[str, float] | None:
        """Seconds by scheme, "full" among them; None where a shape is not known.

        Args:
            nodes: Equal ones that read the same activation, which is quantised once for all of
                them: each takes its share of the time.
            imports: The versions of operator sets.
            schemes: What to measure.
        """
        alone = isolate(nodes, imports)
        if alone is None:
            return None
        measured = self.memory.recall(
            self._key(alone, schemes), functools.partial(self._measure, alone, schemes)
        )
        return _estimate(alone, schemes) if measured is None else measured

    def _measure(self, alone: Module, schemes: Sequence[Scheme]) -> dict[str, float] | None:
        """Each scheme runs once; those that are not far slower than the node as it is, again."""
        feeds, count = noise_for(alone), len(list(alone.graph))
        modules = {FULL: alone, **{s.name: _quantised(alone, s) for s in schemes}}
        programs: dict[str, Callable[[], object]] = {}
        seconds: dict[str, float] = {}
        for name, module in modules.items():
            session = self.target.open(module, self.threads)
            if session is None:
                return None
            program = functools.partial(_run, session, feeds)
            seconds[name] = _once(program)
            if seconds[name] < _HOPELESS * seconds[FULL]:
                programs[name] = program
        timings = interleave(programs, seconds=_SECONDS * len(programs))
        seconds |= {name: timing.low for name, timing in timings.items()}
        return {name: whole / count for name, whole in seconds.items()}

    def _key(self, alone: Module, schemes: Sequence[Scheme]) -> str:
        nodes = [
            (
                node.op_identifier(),
                sorted((name, str(a.value)) for name, a in node.attributes.items()),
                [(str(v.type), str(v.shape)) if v is not None else None for v in node.inputs],
            )
            for node in alone.graph
        ]
        facts = [
            nodes,
            [repr(scheme) for scheme in schemes],
            show(self.target, self.target.name, explicit=True),
            self.target.runtime(),
            machine(),
            self.threads or os.cpu_count(),
        ]
        return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


def _estimate(alone: Module, schemes: Sequence[Scheme]) -> dict[str, float]:
    node = next(iter(alone.graph))
    # each number that a transposed convolution reads is multiplied, of others each that is written
    is_spread = node.op_type == "ConvTranspose"
    value = node.inputs[0] if is_spread else node.outputs[0]
    weight = weight_of(node)
    assert weight is not None and value is not None and value.shape is not None
    channels = weight.tensor.shape.numpy()[weight.in_axis if is_spread else weight.out_axis]
    products = math.prod(value.shape.numpy()) * weight.tensor.size / channels
    seconds = products / _PER_SECOND
    return {FULL: seconds, **{scheme.name: seconds * scheme.cost for scheme in schemes}}


def _quantised(alone: Module, scheme: Scheme) -> Module:
    """Isolated nodes in a scheme; the ranges of their activations are made up."""
    made = alone.clone()
    regions = Regions(made.graph, Names(made), "latency", made.opset, lambda value, scheme: _RANGE)
    for node in list(made.graph):
        weight = weight_of(node)
        assert weight is not None
        region = regions.make(node, weight, scheme)
        made.graph.insert_before(node, [*region.shared, *region.made])
        replace_value(made.graph, node.outputs[0], region.result, regions.names, fresh=True)
        remove_dead([node])
    return made


def _once(program: Callable[[], object]) -> float:
    """Seconds of the faster of two runs: the first one may have more to do."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        program()
        times.append(time.perf_counter() - started)
    return min(times)


def _run(session: Session, feeds: Mapping[str, object]) -> object:
    return session.run(feeds)  # type: ignore[arg-type]


def machine() -> str:
    """What decides how fast and how exact kernels are here: the processor, and how it multiplies.

    The same model may be told to hide instructions, as virtual machines do.
    """
    wrong = [dataclasses.astuple(product) for product in sorted(inexact(optimise=True))]
    return f"{processor()} {wrong}"
