"""The programs and commands in docs/ and README.md run as they stand, and print what is shown."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aigcc import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CACHE = Path(os.environ.get("AIGCC_CACHE", ROOT / ".cache")).absolute()
FENCED = r"^```python\n(.*?)^```"
PROGRAMS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(FENCED, page.read_text(), re.M | re.S))
]

# ```console holds commands and what they print; a file that is named after ```python is written.
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```\n", re.M | re.S)
PLAYED = [
    pytest.param(
        page,
        id=str(page.relative_to(ROOT)),
        marks=[pytest.mark.slow] if page.stem == "tutorial" else [],
    )
    for page in PAGES
    if any(kind == "console" for kind, *_ in BLOCK.findall(page.read_text()))
]
COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)\n", re.M)
# Sizes of files and digits after a point may differ; on a line with a duration all numbers do.
DECIMAL = re.compile(
    r'\d+(?:\.\d+)? [kMG]?B\b|\d+(?:\.\d+)+(?:e[+-]?\d+)?|\d+e[+-]?\d+|(?<="offset": ")\d+'
)
DURATION = re.compile(r"\d (?:ms|s)\b")
MEASURED = re.compile(r"-?\d+(?:\.\d+)?(?: (?:ms|s|[kMG]?B)\b)?")
STAGE = re.compile(r"^ *\d+\.\d s  .*\n", re.M)  # of work that takes long on this machine
# What a build says of times, and which nodes take them: another machine says something else.
TIMES = re.compile(
    r"^\n?(?:latency on .* ratios are to the original\n(?:.+\n)+"
    r"|where the time goes\n(?:.+\n)+|latency: .* takes?\b.*\n)",
    re.M,
)
# How many edge inputs a large model is given depends on how fast it runs.
EDGES = re.compile(r"^(edge inputs: ).*$", re.M)
PACKAGE = re.compile(r"-m aigcc\.models\.fetch ([a-z][\w-]+)")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(program: str, tmp_path: Path) -> None:
    if "import torch" in program:
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class Shell:
    """Runs the commands of a page in one folder, `aigcc` in this process where it stands alone."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.code = 0

    def run(self, command: str) -> str:
        """What a command prints, with folders of this machine under the names that pages use."""
        joined = command.replace("\\\n", " ")
        is_plain = joined.startswith("aigcc ") and not re.search(r"[|><;&$]", joined)
        text = self._run_here(shlex.split(joined)) if is_plain else self._run_in_bash(joined)
        text = text.replace(str(CACHE), ".cache").replace(str(self.folder), "/home/me/aigcc")
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def _run_here(self, words: list[str]) -> str:
        self.capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "argv", words)
            cli.main()
        self.code = int(end.value.code or 0)
        return _lasting("".join(self.capsys.readouterr()))

    def _run_in_bash(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code}); {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.code = done.returncode
        return _lasting(done.stdout)


def _lasting(text: str) -> str:
    """What a command prints, but for what depends on how fast this machine is."""
    return TIMES.sub("", STAGE.sub("", text))


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """A shell in a copy of docs/examples."""
    known = set(sys.modules)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("AIGCC_CACHE", str(CACHE))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "80")
    yield Shell(tmp_path, capsys)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PLAYED)
def test_commands_print_what_the_page_shows(
    page: Path, shell: Shell, request: pytest.FixtureRequest
) -> None:
    text = page.read_text()
    if "import torch" in text or "aigcc.models." in text:
        pytest.importorskip("torch")
    for package in PACKAGE.findall(text):
        if not list(CACHE.glob(f"models/{package}-*")):
            pytest.skip(f"{package} has not been fetched: python -m aigcc.models.fetch {package}")

    def play(block: re.Match[str]) -> str:
        kind, name, body = block.groups()
        if name:
            (shell.folder / name).write_text(body)
        if kind != "console":
            return block[0]
        shown = [f"$ {command}\n{shell.run(command)}" for command in COMMAND.findall(body)]
        return f"```console\n{''.join(shown)}```\n"

    played = BLOCK.sub(play, text)
    if _stable(played) != _stable(text) and request.config.getoption("--bless"):
        page.write_text(played)
        return
    assert _stable(played) == _stable(text)


def _stable(text: str) -> list[str]:
    """The words of each line without what differs between machines and runs."""
    return [
        " ".join((MEASURED if DURATION.search(line) else DECIMAL).sub("#", line).split())
        for line in EDGES.sub(r"\1#", text).splitlines()
    ]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)", index.read_text())
    }
    commands = {
        page for page in PAGES if page.parent.name == "commands" and page.name != "README.md"
    }
    assert {*PAGES} - {ROOT / "README.md", index} - commands <= linked


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "commands").glob("[a-z]*.md")), ids=lambda p: p.stem
)
def test_a_page_of_a_command_says_what_people_ask(page: Path) -> None:
    text = page.read_text()
    for title in ("## What it is for", "## Examples", "## Exit codes", "## Errors"):
        assert f"\n{title}\n" in text
    examples = text.partition("## Examples")[2].partition("## Exit codes")[0]
    assert examples.count("```console") >= 2


def test_the_generated_pages_are_current() -> None:
    make = [sys.executable, str(ROOT / "docs" / "make.py"), "--check"]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
