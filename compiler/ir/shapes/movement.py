"""Operators that make, pick and move traced elements without computing with them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from aigcc.ir.shapes.dims import product
from aigcc.ir.shapes.elements import MAX_ELEMENTS, READABLE, Rules, array_of
from aigcc.ir.shapes.site import Array, Site, Untraceable

# A bound beyond this means "to the end" in a Slice.
FAR = 2**31 - 1


def _read(tensor: ir.TensorProtocol) -> Array:
    if tensor.dtype not in READABLE or tensor.size > MAX_ELEMENTS:
        raise Untraceable
    return tensor.numpy().astype(object)


def _constant(site: Site) -> Array:
    if "value" in site.node.attributes:
        return _read(site.attribute("value"))
    for name in ("value_int", "value_float", "value_ints", "value_floats"):
        if name in site.node.attributes:
            value = site.attribute(name)
            return array_of(value) if name.endswith("s") else array_of([value]).reshape(())
    raise Untraceable


def _constant_of_shape(site: Site) -> Array:
    shape, value = site.ints("", 0), site.attribute("value")
    if math.prod(shape) > MAX_ELEMENTS:
        raise Untraceable
    fill = 0.0 if value is None else _read(value).item()
    return np.full(shape, fill, dtype=object)


def _range(site: Site) -> Array:
    bounds = [site.ints("", index) for index in range(3)]
    if any(len(bound) != 1 for bound in bounds) or bounds[2] == [0]:
        raise Untraceable
    elements = range(*(bound[0] for bound in bounds))
    if len(elements) > MAX_ELEMENTS:
        raise Untraceable
    return array_of(list(elements))


def _shape(site: Site) -> Array:
    dims = site.dims(0)
    if dims is None:
        raise Untraceable
    return array_of(dims[site.attribute("start", 0) : site.attribute("end", len(dims))])


def _size(site: Site) -> Array:
    dims = site.dims(0)
    if dims is None:
        raise Untraceable
    return array_of([product(dims)]).reshape(())


def _gather(site: Site) -> Array:
    indices = site.array(1)
    if not all(isinstance(index, int) for index in indices.flat):
        raise Untraceable
    return site.array(0).take(indices.astype(np.int64), axis=site.attribute("axis", 0))


def _slice(site: Site) -> Array:
    array = site.array(0)
    starts, ends = site.ints("starts", 1), site.ints("ends", 2)
    axes = site.ints("axes", 3, range(len(starts)))
    steps = site.ints("steps", 4, [1] * len(starts))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        array = array.take(sliced(array.shape[axis], start, end, step), axis=axis)
    return array


def sliced(size: int, start: int, end: int, step: int) -> range:
    """What a slice picks of `size` elements, its bounds clamped to what there is.

    Raises:
        Untraceable: The standard, its evaluator and runtimes differ in what these bounds mean.
    """
    if step < 0 and (start < -size or end >= FAR):
        raise Untraceable
    first, last = (0, size) if step > 0 else (-1, size - 1)
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    return range(min(max(start, 0), last), min(max(end, first), last), step)


def _concat(site: Site) -> Array:
    arrays = [site.array(index) for index in range(len(site.node.inputs))]
    return np.concatenate(arrays, axis=site.attribute("axis", 1))


def _unsqueeze(site: Site) -> Array:
    axes = site.ints("axes", 1)
    if site.opset < 11 and min(axes) < 0:
        raise Untraceable
    return np.expand_dims(site.array(0), tuple(axes))


def _squeeze(site: Site) -> Array:
    axes = site.ints("axes", 1)
    if axes == []:
        raise Untraceable  # the standard does not say whether none or all go
    return np.squeeze(site.array(0), None if axes is None else tuple(axes))


def _reshape(site: Site) -> Array:
    array, shape = site.array(0), site.ints("shape", 1)
    if not site.attribute("allowzero", 0):
        shape = [array.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return array.reshape(shape)


def _expand(site: Site) -> Array:
    array, shape = site.array(0), tuple(site.ints("", 1))
    if math.prod(shape) > MAX_ELEMENTS:
        raise Untraceable
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, shape))


def _split(site: Site) -> Array:
    array, count = site.array(0), len(site.node.outputs)
    axis = site.attribute("axis", 0)
    size = array.shape[axis]
    sizes = site.ints("split", 1)
    if sizes is None:
        chunk = -(-size // count)
        if site.opset < 18 and chunk * count != size:
            raise Untraceable
        sizes = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 0:
        raise Untraceable
    return np.split(array, np.cumsum(sizes)[:-1].tolist(), axis=axis)[site.output]


def _transpose(site: Site) -> Array:
    return site.array(0).transpose(site.attribute("perm"))


def _identity(site: Site) -> Array:
    return site.array(0)


MOVEMENT: Rules = {
    "Concat": (_concat, frozenset({"axis"})),
    "Constant": (
        _constant,
        frozenset({"value", "value_int", "value_float", "value_ints", "value_floats"}),
    ),
    "ConstantOfShape": (_constant_of_shape, frozenset({"value"})),
    "Expand": (_expand, frozenset()),
    "Gather": (_gather, frozenset({"axis"})),
    "Identity": (_identity, frozenset()),
    "Range": (_range, frozenset()),
    "Reshape": (_reshape, frozenset({"allowzero", "shape"})),
    "Shape": (_shape, frozenset({"start", "end"})),
    "Size": (_size, frozenset()),
    "Slice": (_slice, frozenset({"starts", "ends", "axes"})),
    "Split": (_split, frozenset({"axis", "split", "num_outputs"})),
    "Squeeze": (_squeeze, frozenset({"axes"})),
    "Transpose": (_transpose, frozenset({"perm"})),
    "Unsqueeze": (_unsqueeze, frozenset({"axes"})),
}
