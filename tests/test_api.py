"""What a Python user sees of aigcc: names, types, and how things print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aigcc
from aigcc.errors import CompileError

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[N,4] x) => (float[N,4] y) { h = Identity (x)  y = Relu (h) }
"""


def test_the_package_says_what_is_in_it() -> None:
    assert {"build", "load", "Module", "PassManager", "__version__"} <= set(dir(aigcc))
    assert all(hasattr(aigcc, name) for name in dir(aigcc))
    assert aigcc.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="buidl"):
        aigcc.buidl  # type: ignore[attr-defined]  # noqa: B018


def test_a_type_checker_refuses_what_the_package_has_not(tmp_path: Path) -> None:
    # A folder of links, since type checkers cannot follow the editable install.
    root = Path(aigcc.__file__).parent
    (tmp_path / "aigcc").symlink_to(root, target_is_directory=True)
    user = tmp_path / "user.py"
    user.write_text("import aigcc\naigcc.buidl()\naigcc.parse('fuse')\n")
    words = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run(
        [*words, "user.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert len(found) == 1, done.stdout
    assert "user.py:2" in found[0]
    assert "buidl" in found[0]


def test_things_print_in_a_line(tmp_path: Path) -> None:
    module = aigcc.Module.parse(MODEL)
    assert repr(module) == (
        "<Module opset 20, 2 nodes, inputs=[x: FLOAT[N,4]], outputs=[y: FLOAT[N,4]]>"
    )
    made = aigcc.build(module, "mobile", tmp_path / "out", verify="structure")
    assert repr(made).startswith(f"<Build '{tmp_path}/out': Module for mobile(")
    assert "2 nodes before, 1 after" in repr(made)
    assert repr(made.artifact).startswith(f"<Artifact '{tmp_path}/out': Module for mobile(")
    assert "\n" not in repr(made)


@pytest.mark.parametrize("options", [{"limit": -1}, {"threads": 0}, {"threads": -3}])
def test_counts_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(CompileError, match=str(next(iter(options.values())))):
        aigcc.Context(**options)


def test_a_build_takes_no_more_threads_than_there_are_cores(tmp_path: Path) -> None:
    assert aigcc.Context(threads=99_999).threads == os.cpu_count()
    module = aigcc.Module.parse(MODEL)
    aigcc.build(module, "mobile", tmp_path / "out", threads=99_999)
    with pytest.raises(CompileError, match="0 threads"):
        aigcc.build(module, "mobile", tmp_path / "other", threads=0)
    assert not (tmp_path / "other").exists()


def test_a_refusal_names_pythons_way_too(tmp_path: Path) -> None:
    module = aigcc.Module.parse(MODEL)
    aigcc.build(module, "mobile", tmp_path / "out", verify="structure")
    with pytest.raises(CompileError, match="overwrite=True"):
        aigcc.build(module, "mobile", tmp_path / "out", verify="structure")
