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
from aigcc.ranges import Range, declared, place, settle_on, symbols
from aigcc.reference import Reference
from aigcc.synthetic import choose_dims, synthetic_feeds, unnamed_dims

_TRIES = 160  # shapes are inferred as often
_RUNS = 8
_BASES = 3  # sizes that fail elsewhere than the guess, from which others are tried
_LARGEST = 1 << 12
_USUAL = 32
_STEPS = (2, 4, 8, 16)
_FRAMES = (4, 8, 2, 16)  # times what is reflected at an end: windows are twice or four times it
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
    lengths of its tables, what becomes those, and what is longer than its reflections. Shapes are
    inferred first, which costs little, and what is consistent is run. Sizes that fail elsewhere
    than the guess are a step on the way.

    Raises:
        SampleError: none of these sizes is taken; names the dims.
    """
    guess = {**unnamed_dims(module), **choose_dims(module)}
    if not guess or not len(module.graph) or guess.keys() <= declared(module).keys():
        return
    first: CompileError | None = _contradiction(module, guess)
    try:
        reference = Reference(module)
    except CompileError:  # what is not opened here is looked at elsewhere
        reference = None
    first = first or _failure(module, guess, reference)
    if first is None:
        return
    bases = [(guess, first)]
    for sizes, fault in bases:  # which grow
        runs, tries = 0, _candidates(module, sizes, fault, is_step=sizes is not guess)
        for tried in itertools.islice(tries, _TRIES):
            if _contradiction(module, tried) is None:
                runs += 1
                other = _failure(module, tried, reference)
                if other is None:
                    settle_on(module, tried)
                    return
                known = {frozenset(_named(met)) for _, met in bases}
                if len(bases) < _BASES and frozenset(_named(other)) not in known:
                    bases.append((tried, other))
            if runs == _RUNS:
                break
    raise SampleError(
        f"no sizes were found that the model takes: with {_in_words(guess)} {first.what}",
        at="; ".join(filter(None, [first.at, _places(module)])),
        hint="give samples: --samples FOLDER, or --samples package.module:function",
    ) from first


def _contradiction(module: Module, sizes: Mapping[str, int]) -> ModelError | None:
    try:
        with_sizes(module, sizes)
    except ModelError as error:
        return error
    return None


def _failure(
    module: Module, sizes: Mapping[str, int], reference: Reference | None
) -> CompileError | None:
    """What the reference says, where there is one."""
    if reference is None:
        return None
    trial = module.clone()
    settle_on(trial, sizes)
    try:
        reference.run(next(synthetic_feeds(trial, count=1)))
    except CompileError as error:
        return error
    return None


def _candidates(
    module: Module, guess: Mapping[str, int], fault: CompileError, is_step: bool
) -> Iterator[dict[str, int]]:
    """Sizes for all dims together, then for those of each input, then for each dim alone.

    Of sizes that got further than the guess, one that is another dim's is tried first.
    """
    ranges = declared(module)
    examples = {name: range_.example for name, range_ in ranges.items() if name in guess}
    groups, seen = _groups(module, guess), [dict(guess)]
    tries = [{name: size for name, size in examples.items() if size is not None}]
    tries += _alike(guess) if is_step else []
    lengths = sorted(_reflected(module))
    tries += [
        dict.fromkeys(group, size * times)
        for size in lengths[-1:]
        for times in _FRAMES
        for group in groups
    ]
    for numbers in (_near(module, fault), _numbers(module.nodes())):
        lengths = sorted(_lengths(module, numbers), key=lambda size: abs(math.log(size / _USUAL)))
        tries += [dict.fromkeys(group, size) for size in lengths for group in groups]
    for sizes in tries:
        allowed = {name: ranges.get(name, Range()).clamp(size) for name, size in sizes.items()}
        if (chosen := {**guess, **allowed}) not in seen:
            seen.append(chosen)
            yield chosen


def _alike(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Each dim alone as long as another one, the least first."""
    return [{name: size} for size in sorted(set(sizes.values())) for name in sizes]


def _groups(module: Module, guess: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Dims that are tried together; the first ones of inputs, which are batches, alone."""
    dims = [
        [sorted(symbols(dim)) or [place(value, axis)] for axis, dim in enumerate(value.shape or ())]
        for value in module.inputs
    ]
    first = {name for names in dims for name in itertools.chain(*names[:1])}
    inner = [
        tuple(dict.fromkeys(n for n in itertools.chain(*names[1:]) if n in guess.keys() - first))
        for names in dims
    ]
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
    named = _named(fault)
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


def _named(fault: CompileError) -> set[str]:
    return set(re.findall(r"'(.+?)'", f"{fault.at} {fault.what}"))


def _reflected(module: Module) -> set[int]:
    """How much is reflected at the ends of what is padded, which has to be longer."""
    found: set[int] = set()
    for node in module.nodes():
        if node.op_type == "Pad" and node.attributes.get_string("mode", "") == "reflect":
            found |= {abs(pad) for pad in node.attributes.get_ints("pads", ())}
            for value in node.inputs[1:2]:
                found |= _constants_above(value)
    return {size for size in found if 1 < size <= _LARGEST}


def _constants_above(value: ir.Value | None) -> set[int]:
    """The integers of which a small shape is made."""
    waiting, found = [value], set()
    for _ in range(_FEW):
        if not waiting:
            break
        array = ir.convenience.get_const_tensor(made) if (made := waiting.pop()) else None
        if array is not None and array.dtype.is_integer() and array.size <= _FEW:
            found |= {abs(int(number)) for number in array.numpy().ravel()}
        elif made is not None and (node := made.producer()) is not None:
            waiting += node.inputs
    return found


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _places(module: Module) -> str:
    return ", ".join(f"{name!r} is {place}" for name, place in dynamic_dims(module).items())
