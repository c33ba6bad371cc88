"""Measure the forms that the mobile target prefers against those that they replace.

    python benchmarks/kernels.py [--only group-norm,swish] [--seconds 2] [--threads 1,2]

For each entry of `[prefer]` in targets/mobile/capabilities.toml, a few graphs of real sizes are
legalised with that entry and without it, and run in turn. Prints time with over time without:
median and quartiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.benchmark import Timing, interleave
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.machine import describe_processor
from aigcc.passes.legalize import Legalize
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.runtime import OrtSession
from aigcc.target import Capabilities
from aigcc.targets.mobile import Mobile

# Inputs by these names are weights, and made up.
WEIGHTS = frozenset({"s", "b", "t", "u", "w"})
# At any size, so that a table shows from where on it pays.
ALWAYS = {"flash-attention": {"scores": 0}, "upsample-conv": {"channels": 0}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A graph: what it is about, its inputs with their shapes, and how `y` comes of them."""

    about: str
    inputs: dict[str, str]
    body: str
    opset: int = 23


def attention(queries: int, keys: int, heads: int, width: int) -> Case:
    size = heads * width
    return Case(
        f"{queries} × {keys}, {heads} of {width}",
        {"q": f"1,{queries},{size}", "k": f"1,{keys},{size}", "v": f"1,{keys},{size}"},
        f"y = Attention <q_num_heads = {heads}, kv_num_heads = {heads}> (q, k, v)",
    )


def group_norm(channels: int, size: int) -> Case:
    return Case(
        f"{channels} × {size} × {size}",
        {"x": f"1,{channels},{size},{size}", "s": str(channels), "b": str(channels)},
        "y = GroupNormalization <num_groups = 32> (x, s, b)",
    )


def power(*shape: int) -> Case:
    dims = list(map(str, shape))
    body = "two = Constant <value_float = 2.0> () y = Pow (x, two)"
    return Case(" × ".join(dims), {"x": ",".join(["1", *dims])}, body)


def swish(*shape: int) -> Case:
    dims = list(map(str, shape))
    return Case(" × ".join(dims), {"x": ",".join(["1", *dims])}, "y = Swish (x)", opset=24)


def skip_norm(tokens: int, size: int) -> Case:
    return Case(
        f"{tokens} × {size}",
        {"x": f"1,{tokens},{size}", "z": f"1,{tokens},{size}", "s": str(size), "b": str(size)},
        "a = Add (x, z) y = LayerNormalization <axis = -1> (a, s, b)",
    )


def upsampled(channels: int, size: int) -> Case:
    """Between convolutions with activations, which run in blocks of channels."""
    weight = f"{channels},{channels},3,3"
    return Case(
        f"{channels} × {size} × {size} to {2 * size} × {2 * size}",
        {"x": f"1,{channels},{size},{size}", "t": weight, "u": weight, "w": weight},
        "scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () "
        "c = Conv <pads = [1, 1, 1, 1]> (x, t) d = Relu (c) "
        'e = Resize <mode = "nearest", nearest_mode = "floor",'
        ' coordinate_transformation_mode = "asymmetric"> (d, "", scales) '
        "f = Conv <pads = [1, 1, 1, 1]> (e, u) g = Relu (f) "
        "y = Conv <pads = [1, 1, 1, 1]> (g, w)",
    )


CASES = {
    "flash-attention": [
        attention(256, 256, 8, 40),
        attention(512, 512, 12, 64),
        attention(768, 768, 8, 64),
        attention(1024, 1024, 8, 80),
        attention(1024, 1024, 1, 512),
        attention(2048, 2048, 8, 64),
        attention(4096, 4096, 8, 40),
        attention(4096, 77, 8, 40),
    ],
    "group-norm": [group_norm(1280, 8), group_norm(320, 64), group_norm(128, 256)],
    "skip-norm": [skip_norm(1, 768), skip_norm(128, 384), skip_norm(512, 768)],
    "square": [power(64, 768), power(128, 64, 64)],
    "swish": [swish(256, 1280), swish(320, 64, 64)],
    "upsample-conv": [
        upsampled(64, 64),
        upsampled(64, 256),
        upsampled(128, 64),
        upsampled(256, 16),
        upsampled(256, 128),
        upsampled(512, 32),
        upsampled(1280, 8),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=2, help="for each row and thread count")
    parser.add_argument("--threads", default="1,2")
    arguments = parser.parse_args()
    threads = [int(count) for count in arguments.threads.split(",")]
    print(f"On {describe_processor()}.\n")
    print("| preference | case | " + " | ".join(f"threads: {n}" for n in threads) + " |")
    print("|---|---|" + "---|" * len(threads))
    for name in arguments.only.split(","):
        for case in CASES[name]:
            timings = [_measure(name, case, count, arguments.seconds) for count in threads]
            ratios = [f"{t.ratio:.2f} ({t.ratio_low:.2f} to {t.ratio_high:.2f})" for t in timings]
            print(f"| {name} | {case.about} | {' | '.join(ratios)} |", flush=True)


def _measure(name: str, case: Case, threads: int, seconds: float) -> Timing:
    module = _build(case)
    random = np.random.default_rng(0)
    feeds = {
        str(value.name): random.standard_normal(value.shape.numpy()).astype(np.float32)  # type: ignore[union-attr]
        for value in module.inputs
    }
    sessions = {}
    for label, prefer in (("before", {}), ("after", {name: ALWAYS.get(name, {})})):
        form = module.clone()
        PassManager([Legalize()]).run(form, Context(target=Preferring(prefer=prefer)))
        sessions[label] = OrtSession(form, threads=threads)
    old, new = (session.run(feeds)["y"] for session in sessions.values())
    np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-3)
    calls = {label: functools.partial(session.run, feeds) for label, session in sessions.items()}
    return interleave(calls, seconds=seconds)["after"]


def _build(case: Case) -> Module:
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in case.inputs.items())
    module = Module.parse(
        f'<ir_version: 11, opset_import: ["" : {case.opset}]>\n'
        f"g ({inputs}) => (y) {{ {case.body} }}"
    )
    random = np.random.default_rng(1)
    for value in [value for value in module.inputs if value.name in WEIGHTS]:
        shape = value.shape.numpy()  # type: ignore[union-attr]
        scale = np.prod(shape[1:]) ** -0.5
        module.graph.inputs.remove(value)
        value.const_value = ir.tensor((random.standard_normal(shape) * scale).astype(np.float32))
        module.graph.register_initializer(value)
    infer_shapes(module.model)
    return module


@dataclasses.dataclass(frozen=True)
class Preferring(Mobile):
    """The mobile target with other preferences."""

    prefer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def can(self) -> Capabilities:
        table = super().can
        return dataclasses.replace(table, facts={**table.facts, "prefer": self.prefer})


if __name__ == "__main__":
    main()
