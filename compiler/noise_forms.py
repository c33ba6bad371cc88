"""What random operators make of numbers from a table, in operators that do not draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import scalar
from aigcc.noise_tables import Noise, Shape
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    if attribute.is_ref():
        raise NoMatch(f"{name} is a parameter of the function")
    return attribute.value


def _cast(op: Builder, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """A value as a type, with a node of its own even where it has it already."""
    if dtype is None:
        raise NoMatch("its type is not known")
    made: ir.Value = op.Cast(value, to=int(dtype))
    return made


def _dtype(node: ir.Node, like: ir.Value | None) -> ir.DataType | None:
    """What a node gives: as it says itself, or as its input is."""
    said = _attribute(node, "dtype", None)
    if said is not None:
        return ir.DataType(said)
    if like is not None and like.dtype is not None:
        return like.dtype
    return node.outputs[0].dtype or (ir.DataType.FLOAT if like is None else None)


def _normally(node: ir.Node, noise: Noise, shape: Shape, dtype: ir.DataType | None) -> ir.Value:
    """mean + scale · n"""
    scale, mean = _attribute(node, "scale", 1.0), _attribute(node, "mean", 0.0)
    return _moved(noise.op, noise.normal(shape), scale, mean, dtype)


def _uniformly(node: ir.Node, noise: Noise, shape: Shape, dtype: ir.DataType | None) -> ir.Value:
    """low + (high - low) · u"""
    low, high = _attribute(node, "low", 0.0), _attribute(node, "high", 1.0)
    return _moved(noise.op, noise.uniform(shape), high - low, low, dtype)


def _moved(
    op: Builder, noise: ir.Value, scale: float, mean: float, dtype: ir.DataType | None
) -> ir.Value:
    scaled = op.Mul(noise, np.asarray(scale, np.float32))
    return _cast(op, op.Add(scaled, np.asarray(mean, np.float32)), dtype)


def _random_normal(node: ir.Node, noise: Noise) -> list[ir.Value]:
    return [_normally(node, noise, _attribute(node, "shape", ()), _dtype(node, None))]


def _random_normal_like(node: ir.Node, noise: Noise) -> list[ir.Value]:
    (x,) = node.inputs
    return [_normally(node, noise, noise.like(x), _dtype(node, x))]


def _random_uniform(node: ir.Node, noise: Noise) -> list[ir.Value]:
    return [_uniformly(node, noise, _attribute(node, "shape", ()), _dtype(node, None))]


def _random_uniform_like(node: ir.Node, noise: Noise) -> list[ir.Value]:
    (x,) = node.inputs
    return [_uniformly(node, noise, noise.like(x), _dtype(node, x))]


def _bernoulli(node: ir.Node, noise: Noise) -> list[ir.Value]:
    """1 where u < p"""
    op, (x,) = noise.op, node.inputs
    is_one = op.Less(noise.uniform(noise.like(x)), op.Cast(x, to=int(ir.DataType.FLOAT)))
    return [_cast(op, is_one, _dtype(node, x))]


def _multinomial(node: ir.Node, noise: Noise) -> list[ir.Value]:
    """argmax (log p + g), with a g for each sample and class"""
    op, (x,) = noise.op, node.inputs
    shape, count = noise.like(x), _attribute(node, "sample_size", 1)
    whole: Shape
    if isinstance(shape, ir.Value):
        batch, classes = op.Slice(shape, [0], [1]), op.Slice(shape, [1], [2])
        whole = op.Concat(batch, np.asarray([count], np.int64), classes, axis=0)
    else:
        whole = [shape[0], count, shape[1]]
    logits = op.Unsqueeze(op.Cast(x, to=int(ir.DataType.FLOAT)), [1])
    best = op.ArgMax(op.Add(logits, noise.gumbel(whole)), axis=2, keepdims=0)
    return [_cast(op, best, ir.DataType(_attribute(node, "dtype", ir.DataType.INT32)))]


def _dropout(node: ir.Node, noise: Noise) -> list[ir.Value]:
    """x · m / (1 - ratio), m = (u >= ratio), and where it is not in training x, m = 1"""
    op, x, training = noise.op, node.inputs[0], node.inputs[2]
    assert x is not None
    given = node.inputs[1]
    one = np.asarray(1, np.float32)
    ratio: Any = np.asarray(0.5, np.float32)
    if given is not None:
        ratio = op.Cast(given, to=int(ir.DataType.FLOAT))
    if scalar(training) is None:  # it is computed
        ratio = op.Mul(ratio, op.Cast(training, to=int(ir.DataType.FLOAT)))
    kept = op.Not(op.Less(noise.uniform(noise.like(x)), ratio))
    factor = op.Mul(op.Cast(kept, to=int(ir.DataType.FLOAT)), op.Div(one, op.Sub(one, ratio)))
    return [op.Mul(x, _cast(op, factor, x.dtype)), kept]


FORMS: Mapping[str, Callable[[ir.Node, Noise], list[ir.Value]]] = {
    "Bernoulli": _bernoulli,
    "Dropout": _dropout,
    "Multinomial": _multinomial,
    "RandomNormal": _random_normal,
    "RandomNormalLike": _random_normal_like,
    "RandomUniform": _random_uniform,
    "RandomUniformLike": _random_uniform_like,
}
"""By operator: the values that stand for a node's outputs.

Raises:
    NoMatch: the opset has no such form, or something about the node is not known.
"""
