"""Golden cases: `tests/passes/*.onnxtxt` hold a model, a pipeline and the text that must come out.

A case is a few lines of comment, `# RUN: pipeline`, a model, `# EXPECT`, and the bodies of the
result: the main graph, then each function behind a line with its name. Cases are separated by a
line `# -----`. Types are inferred before the pipeline runs. Further lines before the model:

- `# TOL: 1e-3` is how far the outputs may be from those of the model as it was, relative to the
  largest of each (1e-5 by default); `none` leaves them alone.
- `# REMARK: text` must occur in one of the remarks; `# REMARK: none` allows no refusal.
- `# TARGET: name` is the target that the pipeline prepares for.
- `# SAMPLES: synthetic` gives the pipeline samples to calibrate on.

`pytest --bless` rewrites what is expected.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.text.printer import print_body
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.samples import load_samples
from aigcc.targets import make_target
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
    for target in case.options("TARGET"):
        ctx.target = make_target(target)
    if case.options("SAMPLES"):
        ctx.samples = load_samples(None, module)
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


def in_half(case: Case) -> Module:
    """The model of a case with float16 in the place of float."""
    module = Module.parse(case.source)
    for graph in module.graphs():
        initializers = [] if isinstance(graph, ir.Function) else graph.initializers.values()
        for value in initializers:
            if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                value.const_value = half(value.const_value)
                value.dtype = ir.DataType.FLOAT16
        for node in graph:
            if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
            constant = node.attributes.get("value")
            if constant is not None and constant.as_tensor().dtype == ir.DataType.FLOAT:
                node.attributes["value"] = ir.AttrTensor("value", half(constant.as_tensor()))
            if "value_float" in node.attributes:
                number = np.float16(node.attributes.pop("value_float").as_float())
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number))
            for output in node.outputs:
                output.type = output.shape = None
        for value in graph.inputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = ir.DataType.FLOAT16
    infer_shapes(module.model)
    return module


def half(tensor: ir.TensorProtocol) -> ir.Tensor:
    lowest, highest = np.finfo(np.float16).min, np.finfo(np.float16).max
    return ir.Tensor(np.clip(tensor.numpy(), lowest, highest).astype(np.float16), name=tensor.name)


# ONNX Runtime widens a chain of float16 operators to float, and computes Attention in float16.
WIDER_BEFORE = (
    "this mask hides a query's own key",  # a score is lost in the sum with the lowest float16
    "Joined image and text tokens: heads go inside",  # the products overflow
)
FUSIONS = [
    case
    for case in CASES
    if case.path.stem.startswith("fuse") and not any(name in case.title for name in WIDER_BEFORE)
]


@pytest.mark.parametrize("case", FUSIONS, ids=lambda case: case.title)
def test_fusions_are_right_in_half_precision(case: Case) -> None:
    module = in_half(case)
    after = module.clone()
    (pipeline,) = case.options("RUN")
    PassManager(parse(pipeline)).run(after, Context())
    assert_same_outputs(module, after, tolerance=4e-3)
