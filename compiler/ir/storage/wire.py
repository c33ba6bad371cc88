"""The protobuf wire format of ONNX files: take payloads out without parsing, put them back in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

# The messages that may hold a tensor, by the number of the field that holds them.
_CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
_TENSOR = "TensorProto"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
# float_data, raw_data and double_data hold little-endian bytes; the others hold varints.
_VERBATIM_DATA = frozenset({4, _RAW_DATA, 10})
_VARINT_DATA = frozenset({5, 7, 11})
_DEPTH = 100  # what protobuf itself allows


class WireError(ValueError):
    """The bytes are not the wire format of an ONNX model."""


@dataclass(frozen=True)
class Stubbed:
    """A model without its large payloads.

    Attributes:
        model: The serialised ModelProto. Each payload that was taken out became a reference to
            external data at the place in the original bytes where the payload lies.
        varints: The offsets of those payloads that are varints and not little-endian numbers.
    """

    model: bytes
    varints: frozenset[int]


def take_out(data: memoryview, location: str, threshold: int) -> Stubbed:
    """Replace each payload of more than `threshold` bytes by a reference to `location`.

    Only messages larger than the threshold are walked, so the cost follows the number of nodes
    and large tensors and not their size.

    Args:
        data: A serialised ModelProto.
        location: What the references name as their file: the file that `data` is a view of.
        threshold: The size in bytes up to which a payload stays.

    Raises:
        WireError: If the bytes are not a ModelProto, or end early.
    """
    walk = _TakeOut(data, location, threshold)
    return Stubbed(walk.message("ModelProto", 0, len(data), 0), frozenset(walk.varints))


def put_in(stubs: bytes, location: str, sizes: list[int]) -> tuple[list[bytes | int], int]:
    """The pieces of a model file, in which payload `i` of `sizes[i]` bytes replaces reference `i`.

    Args:
        stubs: A serialised ModelProto in which the external data at `location`, offset `i`
            stands for payload `i`.
        location: The name that marks those references.
        sizes: The size of each payload in bytes.

    Returns:
        Pieces to write one after the other (bytes as they are, or the index of a payload), and
        their size in bytes. Fields are in canonical order, as protobuf itself writes them.
    """
    return _PutIn(stubs, location, sizes).message("ModelProto", 0, len(stubs))


def decode_varints(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Decode a run of complete varints of at most ten bytes each."""
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    values = np.zeros(len(ends), np.uint64)
    for index in range(int((ends - starts).max(initial=0)) + 1):
        longer = starts + index <= ends
        digits = (data[starts[longer] + index] & 0x7F).astype(np.uint64)
        values[longer] |= digits << np.uint64(7 * index)
    return values


@dataclass
class _TakeOut:
    data: memoryview
    location: str
    threshold: int
    varints: list[int] = field(default_factory=list)

    def message(self, kind: str, start: int, end: int, depth: int) -> bytes:
        if depth > _DEPTH:
            raise WireError(f"messages are nested more than {_DEPTH} deep at byte {start}")
        children = _CHILDREN[kind]
        out = bytearray()
        kept_from = start
        for number, wire, tag_at, at, stop in _fields(self.data, kind, start, end):
            child = children.get(number)
            if child is None or wire != _BYTES or stop - at <= self.threshold:
                continue
            if child == _TENSOR:
                small = self._tensor(at, stop)
            else:
                small = self.message(child, at, stop, depth + 1)
            out += self.data[kept_from:tag_at]
            out += _header(number, len(small))
            out += small
            kept_from = stop
        out += self.data[kept_from:end]
        return bytes(out)

    def _tensor(self, start: int, end: int) -> bytes:
        payloads = []
        for number, wire, tag_at, at, stop in _fields(self.data, _TENSOR, start, end):
            if number in _VERBATIM_DATA or number in _VARINT_DATA:
                payloads.append((number, wire, tag_at, at, stop))
            elif number == _DATA_LOCATION:
                break
        else:
            # A payload in several pieces is legal, rare and left to protobuf.
            if len(payloads) == 1 and payloads[0][1] == _BYTES:
                number, _, tag_at, at, stop = payloads[0]
                if stop - at > self.threshold:
                    if number in _VARINT_DATA:
                        self.varints.append(at)
                    reference = _reference(self.location, at, stop - at)
                    return bytes(self.data[start:tag_at]) + bytes(self.data[stop:end]) + reference
        return bytes(self.data[start:end])


@dataclass
class _PutIn:
    data: bytes
    location: str
    sizes: list[int]

    def __post_init__(self) -> None:
        self.mark = self.location.encode()

    def message(self, kind: str, start: int, end: int) -> tuple[list[bytes | int], int]:
        pieces: list[bytes | int] = []
        size = 0
        kept_from = start
        for number, _, tag_at, at, stop in _fields(self.data, kind, start, end):
            child = _CHILDREN[kind].get(number)
            if child is None or self.data.find(self.mark, at, stop) < 0:
                continue
            walk = self._tensor if child == _TENSOR else self.message
            inner, inner_size = walk(child, at, stop)
            head = self.data[kept_from:tag_at] + _header(number, inner_size)
            pieces += [head, *inner]
            size += len(head) + inner_size
            kept_from = stop
        tail = self.data[kept_from:end]
        return [*pieces, tail], size + len(tail)

    def _tensor(self, kind: str, start: int, end: int) -> tuple[list[bytes | int], int]:
        proto = onnx.TensorProto.FromString(self.data[start:end])
        entries = {entry.key: entry.value for entry in proto.external_data}
        if entries.get("location") != self.location:
            return [self.data[start:end]], end - start
        before, after = bytearray(), bytearray()
        for number, _, tag_at, _, stop in _fields(self.data, kind, start, end):
            if number not in (_EXTERNAL_DATA, _DATA_LOCATION):
                (before if number < _RAW_DATA else after).extend(self.data[tag_at:stop])
        index = int(entries["offset"])
        before += _header(_RAW_DATA, self.sizes[index])
        return [bytes(before), index, bytes(after)], len(before) + self.sizes[index] + len(after)


def _fields(
    data: bytes | memoryview, kind: str, start: int, end: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of a message: number, wire type, and where its tag, value and end lie."""
    at = start
    while at < end:
        tag_at = at
        tag, at = _varint(data, kind, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, at = _varint(data, kind, at, end)
            stop = at + length
        elif wire == _VARINT:
            _, stop = _varint(data, kind, at, end)
        elif wire == _FIXED32:
            stop = at + 4
        elif wire == _FIXED64:
            stop = at + 8
        else:
            raise WireError(f"byte {tag_at} cannot start a field of a {kind}")
        if number == 0:
            raise WireError(f"byte {tag_at} cannot start a field of a {kind}")
        if stop > end:
            raise WireError(
                f"field {number} of a {kind} at byte {tag_at} promises {stop - at:,} bytes "
                f"and {end - at:,} are left"
            )
        yield number, wire, tag_at, at, stop
        at = stop


def _varint(data: bytes | memoryview, kind: str, at: int, end: int) -> tuple[int, int]:
    """Decode one varint: its value and where the next byte lies."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a {kind} ends in the middle of a number at byte {at}")


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _header(number: int, length: int) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(length)


def _reference(location: str, offset: int, length: int) -> bytes:
    proto = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return bytes(proto.SerializeToString())
