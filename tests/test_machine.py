"""The processor in words, from what Linux says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aigcc.machine import describe_processor, processor

INTEL = """processor\t: 0
model name\t: Some Xeon
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Another
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 avx_vnni
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd42\n"


@pytest.mark.parametrize(
    ("text", "cores", "said"),
    [
        (INTEL, 2, "Some Xeon, 2 cores, AVX2, AVX512, AVX512-VNNI, AMX-INT8"),
        (ARM, 1, "what Python says, 1 core, DotProd, I8MM, BF16"),
        (None, 4, "what Python says, 4 cores"),
    ],
)
def test_a_processor_in_words(
    text: str | None, cores: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "what Python says")
    assert describe_processor() == said
    assert said.startswith(processor())
