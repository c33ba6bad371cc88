"""Golden cases: `tests/passes/*.onnxtxt` hold a model, a pipeline and the text that must come out.

A case is a few lines of comment, `# RUN: pipeline`, a model, `# EXPECT`, and the bodies of the
result: the main graph, then each function behind a line with its name. Cases are separated by a
line `# -----`. Types are inferred before the pipeline runs. Further lines before the model:

- `# TOL: 1e-3` is how far the outputs may be from those of the model as it was, relative to the
  largest of each (1e-5 by default); `none` leaves them alone.
- `# REMARK: text` must occur in one of the remarks; `# REMARK: none` allows no refusal.

`pytest --bless` rewrites what is expected.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.text.printer import print_body
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.testing import assert_same_outputs

FOLDER = Path(__file__).parent / "passes"
SEPARATOR = "# -----\n"
EXPECT = "# EXPECT\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of a golden file, `source` being all of it up to what it expects."""

    path: Path
    number: int
    source: str
    expected: str

    @property
    def title(self) -> str:
        first = self.source.splitlines()[0].removeprefix("#").strip().rstrip(".")
        return f"{self.path.stem}: {first}"

    def options(self, key: str) -> list[str]:
        """What stands behind `# key:`."""
        mark = f"# {key}:"
        lines = self.source.splitlines()
        return [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]


def read_cases(path: Path) -> list[Case]:
    parts = path.read_text("utf-8").split(SEPARATOR)
    cases = []
    for number, part in enumerate(parts):
        source, _, expected = part.partition(EXPECT)
        cases.append(Case(path, number, source, expected))
    return cases


def bodies(module: Module) -> str:
    """The main graph and the functions, as golden files hold them."""
    functions = [
        f"# {function.domain}.{function.name}\n{print_body(function)}"
        for function in module.model.functions.values()
    ]
    return "".join([print_body(module.graph), *functions])


def bless(case: Case, text: str) -> None:
    parts = case.path.read_text("utf-8").split(SEPARATOR)
    parts[case.number] = f"{case.source.rstrip()}\n{EXPECT}{text}"
    case.path.write_text(SEPARATOR.join(parts), "utf-8")


def check_remarks(case: Case, ctx: Context) -> None:
    for wanted in case.options("REMARK"):
        if wanted == "none":
            assert [str(r) for r in ctx.remarks if r.kind == "declined"] == []
        else:
            assert any(wanted in str(remark) for remark in ctx.remarks), list(map(str, ctx.remarks))


CASES = [case for path in sorted(FOLDER.glob("*.onnxtxt")) for case in read_cases(path)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_golden(case: Case, request: pytest.FixtureRequest) -> None:
    module = Module.parse(case.source)
    infer_shapes(module.model)
    before, ctx = module.clone(), Context()
    (pipeline,) = case.options("RUN")
    PassManager(parse(pipeline)).run(module, ctx)

    again = Module.parse(module.text())
    assert again.text() == module.text()
    check_remarks(case, ctx)
    tolerance = (case.options("TOL") or ["1e-5"])[-1]
    if tolerance != "none":
        assert_same_outputs(before, again, tolerance=float(tolerance))

    text = bodies(module)
    if request.config.getoption("--bless"):
        bless(case, text)
    else:
        assert text == case.expected
