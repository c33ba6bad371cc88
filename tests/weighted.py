"""Modules from texts with weights from arrays, and how far two of them are apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aigcc.exact import exact
from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.passes.quant.exact import offered
from aigcc.runtime import OrtSession
from aigcc.target import Target

Weights = dict[str, np.ndarray]
Feeds = dict[str, np.ndarray]


def module(text: str, weights: Weights, opset: int = 21) -> Module:
    """A module from a text in which `<W>` stands for the weights, which are float or float16."""
    held = []
    for name, array in weights.items():
        dtype = "float16" if array.dtype == np.float16 else "float"
        dims = f"[{','.join(map(str, array.shape))}]" if array.shape else ""
        held.append(f"{dtype}{dims} {name} = {{{','.join('0' * array.size)}}}")
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    made = Module.parse(head + text.replace("<W>", f"<{', '.join(held)}>"))
    for name, array in weights.items():
        made.graph.initializers[name].const_value = ir.tensor(array, name=name)
    infer_shapes(made.model)
    return made


def floats(*shape: int, seed: int = 0, spread: float = 0.0) -> np.ndarray:
    """Normal noise; with `spread`, the slices of the last axis differ in size."""
    random = np.random.default_rng(seed)
    array = random.standard_normal(shape) * np.exp(spread * random.standard_normal(shape[-1]))
    return array.astype(np.float32)


def here(scheme: str, target: Target, op: str) -> str:
    """A scheme, or the first one that stands in for it where this machine's kernels clip."""
    known = offered(target)
    if op in getattr(known.get(scheme), "kernels", ()):
        return scheme
    return next(n for n, s in known.items() if s.instead_of == scheme and op in s.kernels)


def sqnr(before: Module, after: Module, feeds: Feeds) -> dict[str, float]:
    """By output, the ratio of signal to noise in dB, without ONNX Runtime's optimisations."""
    old, new = (OrtSession(exact(each), optimise=False).run(feeds) for each in (before, after))
    made = {}
    for name, array in old.items():
        signal, noise = array.astype(np.float64), new[name].astype(np.float64) - array
        made[name] = 10 * np.log10(np.square(signal).sum() / max(np.square(noise).sum(), 1e-30))
    return made
