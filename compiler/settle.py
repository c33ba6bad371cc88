"""Sizes of dims that a model takes, where those that are guessed from names contradict it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from aigcc.dims import dynamic_dims, with_sizes
from aigcc.errors import CompileError, ModelError, SampleError
from aigcc.ir.module import Module
from aigcc.ranges import Range, declared, settle_on, symbols
from aigcc.reference import Reference
from aigcc.synthetic import choose_dims, synthetic_feeds

_TRIES = 160  # shapes are inferred as often
_RUNS = 8
_LARGEST = 1 << 12
_USUAL = 32
_STEPS = (2, 4, 8, 16)
_FEW = 64  # numbers of a constant that may be a shape, or of a few nodes
_DEPTH = 8  # nodes between the one that fails and a table
_READ = frozenset(
    {
        "Add",
        "Concat",
        "Conv",
        "Expand",
        "Gather",
        "Gemm",
        "MatMul",
        "Mul",
        "Reshape",
        "Slice",
        "Split",
        "Sub",
        "Tile",
        "Where",
    }
)


def settle(module: Module) -> None:
    """Let synthetic inputs have sizes that the model takes.

    The guess stays if the model runs with it, or has no nodes, as the signature of an artifact.
    Else sizes are tried by what the graph divides by and adds: multiples of its strides, the
    lengths of its tables, and what becomes those. Shapes are inferred first, which costs little,
    and what is consistent is run.

    Raises:
        SampleError: none of these sizes is taken; names the dims.
    """
    guess = choose_dims(module)
    if not guess or not len(module.graph) or guess.keys() <= declared(module).keys():
        return
    fault = _contradiction(module, guess) or _failure(module, guess)
    if fault is None:
        return
    runs = 0
    for sizes in itertools.islice(_candidates(module, guess, fault), _TRIES):
        if _contradiction(module, sizes) is None:
            runs += 1
            if _failure(module, sizes) is None:
                settle_on(module, sizes)
                return
        if runs == _RUNS:
            break
    raise SampleError(
        f"no sizes were found that the model takes: with {_in_words(guess)} {fault.what}",
        at="; ".join(filter(None, [fault.at, _places(module)])),
        hint="give samples: --samples FOLDER, or --samples package.module:function",
    ) from fault


def _contradiction(module: Module, sizes: Mapping[str, int]) -> ModelError | None:
    try:
        with_sizes(module, sizes)
    except ModelError as error:
        return error
    return None


def _failure(module: Module, sizes: Mapping[str, int]) -> CompileError | None:
    """What the reference says; a model that it does not open is looked at elsewhere."""
    try:
        reference = Reference(module)
    except CompileError:
        return None
    trial = module.clone()
    settle_on(trial, sizes)
    try:
        reference.run(next(synthetic_feeds(trial, count=1)))
    except CompileError as error:
        return error
    return None


def _candidates(
    module: Module, guess: Mapping[str, int], fault: CompileError
) -> Iterator[dict[str, int]]:
    """Sizes for all dims together, then for those of each input, then for each dim alone."""
    ranges = declared(module)
    examples = {name: range_.example for name, range_ in ranges.items() if name in guess}
    groups, seen = _groups(module, guess), [dict(guess)]
    tries = [{name: size for name, size in examples.items() if size is not None}]
    for numbers in (_near(module, fault), _numbers(module.nodes())):
        lengths = sorted(_lengths(module, numbers), key=lambda size: abs(math.log(size / _USUAL)))
        tries += [dict.fromkeys(group, size) for size in lengths for group in groups]
    for sizes in tries:
        allowed = {name: ranges.get(name, Range()).clamp(size) for name, size in sizes.items()}
        if (chosen := {**guess, **allowed}) not in seen:
            seen.append(chosen)
            yield chosen


def _groups(module: Module, guess: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Dims that are tried together; the first ones of inputs, which are batches, alone."""
    inner = []
    for value in module.inputs:
        names = [n for dim in (value.shape or ())[1:] for n in sorted(symbols(dim))]
        inner.append(tuple(dict.fromkeys(name for name in names if name in guess)))
    every = tuple(dict.fromkeys(itertools.chain(*inner)))
    return [g for g in dict.fromkeys([every, *inner, *((name,) for name in guess)]) if g]


def _lengths(module: Module, numbers: Iterable[int]) -> set[int]:
    """Sizes of which strides or squares make one of these numbers, or one more or less."""
    whole = set(numbers)
    if len(whole) <= _FEW:  # what is flattened has channels times the size
        whole |= {one // two for one in whole for two in whole if one % two == 0}
    steps = {1, *_STEPS}
    for node in module.nodes():
        steps |= {stride * step for stride in set(_strides(node)) for step in steps}
        steps = {step for step in steps if step <= _LARGEST}
    found = set(steps)
    for number in whole:
        for length in (number, number - 1, number + 1):
            root = math.isqrt(max(length, 0))
            bases = (length, root) if root * root == length else (length,)
            found |= {base * step for base in bases for step in steps}
    return {size for size in found if 1 <= size <= _LARGEST}


def _strides(node: ir.Node) -> Sequence[int]:
    if node.op_type in ("DepthToSpace", "SpaceToDepth"):
        return [node.attributes.get_int("blocksize", 1)]
    return node.attributes.get_ints("strides", ())


def _numbers(nodes: Iterable[ir.Node]) -> set[int]:
    """The lengths of tables that nodes read, and the integers in constant shapes."""
    found: set[int] = set()
    for node in nodes:
        for value in node.inputs if node.op_type in _READ else ():
            array = None if value is None else ir.convenience.get_const_tensor(value)
            if array is None:
                continue
            if len(array.shape) > 1:
                found |= {size for size in array.shape if isinstance(size, int)}
            elif array.dtype.is_integer() and array.size <= _FEW:
                found |= {abs(int(number)) for number in array.numpy().ravel()}
    return {number for number in found if 1 < number <= _LARGEST**2}


def _near(module: Module, fault: CompileError) -> set[int]:
    """The numbers of the node that fails and of those that make its inputs, and channels."""
    named = set(re.findall(r"'(.+?)'", f"{fault.at} {fault.what}"))
    nodes = [
        node
        for node in module.nodes()
        if node.name in named or not named.isdisjoint(value.name for value in node.outputs)
    ]
    for _ in range(_DEPTH):
        made = [value.producer() for node in nodes for value in node.inputs if value is not None]
        nodes = list(dict.fromkeys([*nodes, *(node for node in made if node is not None)]))
    fixed = {size for v in module.inputs for size in v.shape or () if isinstance(size, int)}
    return _numbers(nodes) | {size for size in fixed if size > 1}


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _places(module: Module) -> str:
    return ", ".join(f"{name!r} is {place}" for name, place in dynamic_dims(module).items())
