"""The programs that link and emulate aarch64 code on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

GCC = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64-static"
INSTALL = "apt-get install g++-aarch64-linux-gnu, or pip install ziglang"
INSTALL_NATIVE = "apt-get install g++"
PREPARE = "python -m aigcc.targets.jetson.emulator"
INSTALL_QEMU = "apt-get install g++-aarch64-linux-gnu qemu-user-static"

# The oldest glibc of a supported JetPack.
_ZIG_TARGET = "aarch64-linux-gnu.2.31"


def cross_linker() -> list[str] | None:
    """The command that links for aarch64 Linux: GCC where it is installed, else zig, else None."""
    if shutil.which(GCC):
        return [GCC]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", _ZIG_TARGET]
    return None


def native_linker() -> list[str] | None:
    """The command that links for this machine, or None."""
    return ["c++"] if shutil.which("c++") else None


def runtime_folder() -> Path:
    """Where TVM's aarch64 runtime and the runner for it are kept, for the installed version."""
    version = importlib.metadata.version("apache-tvm")
    return Path.home() / ".cache" / "aigcc" / f"tvm-{version}-aarch64"


def find_runner() -> Path | None:
    """The program that runs a compiled model in qemu, or None where it or qemu is missing."""
    if importlib.util.find_spec("tvm") is None or shutil.which(QEMU) is None:
        return None
    runner = runtime_folder() / "runner"
    return runner if runner.is_file() else None
