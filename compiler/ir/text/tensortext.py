"""The elements of a tensor, as the text form writes them between braces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.text.literals import string_text

_PARTS: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.COMPLEX64: np.dtype(np.float32),
    ir.DataType.COMPLEX128: np.dtype(np.float64),
}
_PLAIN = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
_NUMBER = re.compile(r"[ \t\r\n\f\v]*(-?(?:0[xX][0-9a-fA-F]+|[0-9a-zA-Z.+-]+))[ \t\r\n\f\v]*")


@dataclass(frozen=True)
class SparseConstant:
    """A sparse tensor in an attribute, for which `onnx_ir` has a protocol and no class.

    Args:
        values: The non-zero elements, shape [n].
        indices: Where they are, int64: [n] in the flattened tensor, or [n, rank].
        dims: The dense shape.
    """

    values: ir.TensorProtocol
    indices: ir.TensorProtocol
    dims: tuple[int, ...]


class ElementError(ValueError):
    """The element number `index` is wrong."""

    def __init__(self, index: int, what: str) -> None:
        self.index = index
        super().__init__(what)


def elements_text(tensor: ir.TensorProtocol) -> list[str]:
    """The elements of a tensor in row-major order, each as text that reads back to the same bits.

    A float is its shortest decimal, or its bit pattern in hex where no decimal has the same bits
    (a NaN that carries a payload). A complex number is two floats. In dtypes narrower than 32 bits
    a decimal always has a point or an exponent: ONNX reads whole numbers there as bit patterns.
    """
    if tensor.dtype == ir.DataType.STRING:
        return [string_text(element) for element in _string_data(tensor)]
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    if tensor.dtype in _PARTS:
        array = array.view(_PARTS[tensor.dtype])
    if tensor.dtype == ir.DataType.BOOL:
        return ["1" if byte else "0" for byte in array.view(np.uint8).tolist()]
    if tensor.dtype.is_integer():
        return [str(int(element)) for element in array]
    return floats_text(array)


def _string_data(tensor: ir.TensorProtocol) -> Sequence[bytes | str]:
    if isinstance(tensor, ir.StringTensor):
        return tensor.string_data()
    return list(tensor.numpy().reshape(-1))


def floats_text(array: npt.NDArray[Any]) -> list[str]:
    """Each float of a flat array as text (see `elements_text`)."""
    texts = [str(element) for element in array]
    if array.dtype in _PLAIN:
        texts = [text.removesuffix(".0") for text in texts]
    else:
        texts = [text + ".0" if text.lstrip("-").isdigit() else text for text in texts]
    wanted = _bits(array)
    for index in np.flatnonzero(_bits(_narrow([float(t) for t in texts], array.dtype)) != wanted):
        texts[index] = hex(wanted[index])
    return texts


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.view(f"u{array.dtype.itemsize}")


def _narrow(wide: list[float], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.array(wide, np.float64).astype(dtype)


def elements_per_value(dtype: ir.DataType) -> int:
    """How many numbers the text has for one element."""
    return 2 if dtype in _PARTS else 1


def read_elements(texts: list[str], dtype: ir.DataType) -> npt.NDArray[Any]:
    """The flat array that the texts between the commas of `{...}` spell.

    Raises:
        ElementError: A text is not a number, or it does not fit `dtype`.
    """
    words = []
    for index, text in enumerate(texts):
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise ElementError(index, f"{text.strip()!r} is not a number")
        words.append(match[1])
    if dtype in _PARTS:
        return read_floats(words, _PARTS[dtype], 8 * _PARTS[dtype].itemsize).view(dtype.numpy())
    if dtype.is_integer() or dtype == ir.DataType.BOOL:
        return _read_integers(words, dtype)
    return read_floats(words, dtype.numpy(), dtype.bitwidth)


def _read_integers(words: list[str], dtype: ir.DataType) -> npt.NDArray[Any]:
    low, high = (0, 1) if dtype == ir.DataType.BOOL else (int(dtype.min), int(dtype.max))
    values = []
    for index, word in enumerate(words):
        try:
            value = int(word)
        except ValueError:
            raise ElementError(index, f"{word!r} is not a whole number") from None
        if not low <= value <= high:
            raise ElementError(
                index, f"{word} does not fit {dtype.name.lower()}, which is {low} to {high}"
            )
        values.append(value)
    return np.array(values, np.uint64 if high > 2**63 else np.int64).astype(dtype.numpy())


def read_floats(words: list[str], dtype: np.dtype[Any], width: int) -> npt.NDArray[Any]:
    """Floats of `width` bits from decimals, or from bit patterns (hex, or whole numbers if narrow).

    Raises:
        ElementError: A word is no number, or too large for `dtype`.
    """
    wide, patterns = [], {}
    for index, word in enumerate(words):
        try:
            if word[:2] in ("0x", "0X"):
                patterns[index] = int(word, 16)
            elif width < 32 and word.isdigit():
                patterns[index] = int(word)
            wide.append(1.0 if index in patterns else float(word))
        except ValueError:
            raise ElementError(index, f"{word!r} is not a number") from None
    values = _narrow(wide, dtype)
    _check_range(np.array(wide), values, words)
    for index, pattern in patterns.items():
        if pattern >= 1 << width:
            raise ElementError(index, f"the bit pattern {words[index]} has more than {width} bits")
        _bits(values)[index] = pattern
    return values


@cache
def _largest(dtype: np.dtype[Any]) -> float:
    """The largest number that rounds to a finite value, or what comes close to it."""
    info = ml_dtypes.finfo(dtype)
    return min(float(info.max) * (1 + float(info.eps) / 2), float(np.finfo(np.float64).max))


def _check_range(wide: npt.NDArray[np.float64], values: npt.NDArray[Any], words: list[str]) -> None:
    """Refuse numbers that the dtype can only hold as infinity, as NaN, or clipped."""
    fits = (np.abs(wide) <= _largest(values.dtype)) & np.isfinite(values.astype(np.float64))
    for index in np.flatnonzero(~fits).tolist():
        if not words[index][-1].isalpha():  # not inf, not nan
            raise ElementError(index, f"{words[index]} does not fit {values.dtype.name}")
