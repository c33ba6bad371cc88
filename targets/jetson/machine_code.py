"""What a compiled library holds, read from its bytes: its machine and its vector instructions."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np

_AARCH64 = 183
_MACHINES = {_AARCH64: "aarch64", 62: "x86-64"}
_EXECUTABLE = 4

# Encodings of A64 vector instructions as (mask, value), from the Arm Architecture Reference
# Manual: each form once for whole registers and once for a factor taken from one lane.
_INSTRUCTIONS = {
    "float32 multiply-add": ((0xBFE0FC00, 0x0E20CC00), (0xBFC0F400, 0x0F801000)),
    "float16 multiply-add": ((0xBFE0FC00, 0x0E400C00), (0xBFC0F400, 0x0F001000)),
    "float16 to float32": ((0xBFFFFC00, 0x0E217800),),
    "dot product": ((0x9FE0FC00, 0x0E809400), (0x9FC0F400, 0x0F80E000)),
}


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """A library's machine, and how many of its instructions are of which kind."""

    machine: str
    instructions: dict[str, int]


def read_library(path: Path) -> MachineCode:
    """Look into an ELF library; instructions are counted for aarch64 only."""
    data = path.read_bytes()
    (code,) = struct.unpack_from("<H", data, 18)
    machine = _MACHINES.get(code, f"ELF machine {code}")
    if code != _AARCH64:
        return MachineCode(machine, {})
    words = np.concatenate([np.zeros(0, np.uint32), *_executable_words(data)])
    counts = {
        name: int(sum(np.count_nonzero((words & mask) == value) for mask, value in forms))
        for name, forms in _INSTRUCTIONS.items()
    }
    return MachineCode(machine, {name: count for name, count in counts.items() if count})


def _executable_words(data: bytes) -> list[np.ndarray]:
    """The 32-bit words of every executable section, by the section headers of ELF64."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    words = []
    for index in range(count):
        _, _, flags, _, offset, length = struct.unpack_from("<IIQQQQ", data, table + index * size)
        if flags & _EXECUTABLE:
            words.append(np.frombuffer(data, "<u4", length // 4, offset))
    return words
