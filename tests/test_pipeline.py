"""Pipelines: text to passes and back, order, limits, errors that name the pass."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigcc.errors import CompileError, PassError, PipelineError
from aigcc.ir.module import Module
from aigcc.options import option
from aigcc.passes import PASSES
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.pipeline.text import format, parse
from aigcc.targets import TARGETS

TWO_IDENTITIES = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2] x) => (float[2] y) {
  a = Identity (x)
  b = Identity (a)
  y = Relu (b)
}
"""


@dataclasses.dataclass(frozen=True)
class Sample(Pass):
    name: ClassVar[str] = "sample"
    count: int = option(3, "how many")
    ratio: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    pattern: str = "2:4"
    names: tuple[str, ...] = ()
    limit: int | None = None

    def run(self, module: Module, ctx: Context) -> None:
        pass


CATALOGUE: dict[str, type[Pass]] = {"sample": Sample}


def test_text_becomes_passes_with_typed_options() -> None:
    (made,) = parse("sample(count=7,ratio=0.25,flag=true,kind=b,names=[u,v])", CATALOGUE)
    assert made == Sample(count=7, ratio=0.25, flag=True, kind="b", names=("u", "v"))


@given(
    st.builds(
        Sample,
        count=st.integers(-(2**40), 2**40),
        ratio=st.floats(allow_nan=False),
        flag=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        pattern=st.text(min_size=1).filter(lambda text: text == text.strip()),
        names=st.lists(st.text('abc,()[] "\\=', max_size=5), max_size=3).map(tuple),
        limit=st.none() | st.integers(),
    )
)
def test_passes_become_text_and_come_back(made: Sample) -> None:
    assert parse(format([made, made]), CATALOGUE) == [made, made]
    assert parse(format([made], explicit=True), CATALOGUE) == [made]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("simple", "did you mean 'sample'"),
        ("sample(cuont=3)", "did you mean 'count'"),
        ("sample(count=three)", "takes a whole number"),
        ("sample(kind=c)", "one of: a, b"),
        ("sample(flag=yes)", "one of: true, false"),
        ("sample(count=[1,2])", "not a list"),
        ("sample(count=1,count=2)", "given twice"),
        ("sample(", "found 'the end'"),
        ("sample,", "ends with a comma"),
        ('sample(pattern="2:4)', "unfinished string"),
        ("sample)", "expected ','"),
    ],
)
def test_a_wrong_text_says_what_to_do(text: str, what: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse(text, CATALOGUE)
    assert what in str(caught.value)


def test_a_limit_stops_after_so_many_rewrites() -> None:
    for limit, left in ((0, 3), (1, 2), (2, 1), (9, 1)):
        module = Module.parse(TWO_IDENTITIES)
        ctx = Context(limit=limit)
        PassManager(parse("simplify")).run(module, ctx)
        assert len(list(module.nodes())) == left
        assert ctx.total == min(limit, 2)


def test_a_pass_that_breaks_the_module_is_named() -> None:
    class Breaks(Sample):
        def run(self, module: Module, ctx: Context) -> None:
            node = next(iter(module.nodes()))
            if ctx.rewrite(node, "break it"):
                node.op_type = "Rely"

    with pytest.raises(PassError, match="left a broken module") as caught:
        PassManager([Breaks()]).run(Module.parse(TWO_IDENTITIES))
    assert "pass 1 of 1, sample" in str(caught.value)


def test_a_requirement_stops_the_pass() -> None:
    def refuse(module: Module) -> None:
        raise CompileError("it has no weights", hint="add some")

    class Picky(Sample):
        requires = (refuse,)

    with pytest.raises(PassError, match="sample cannot run here: it has no weights"):
        PassManager([Picky()]).run(Module.parse(TWO_IDENTITIES))


def test_the_order_of_passes_is_checked() -> None:
    class Later(Sample):
        name = "later"
        after = ("sample",)

    PassManager([Sample(), Later()])
    with pytest.raises(PassError, match="later must run after sample"):
        PassManager([Later(), Sample()])


def test_analyses_are_kept_until_the_module_changes() -> None:
    calls: list[int] = []

    def count(module: Module) -> int:
        calls.append(1)
        return len(list(module.nodes()))

    module = Module.parse(TWO_IDENTITIES)
    assert module.get(count) == module.get(count) == 3
    assert len(calls) == 1
    PassManager(parse("simplify")).run(module)
    assert module.get(count) == 1
    assert len(calls) == 2


@pytest.mark.parametrize("catalogue", [PASSES, TARGETS], ids=["passes", "targets"])
def test_a_catalogue_calls_each_class_by_its_own_name(catalogue: Mapping[str, Any]) -> None:
    assert [catalogue[name].name for name in catalogue] == list(catalogue)


def test_what_is_not_asked_for_is_not_imported() -> None:
    script = (
        "import sys, aigcc\n"
        "aigcc.parse('canonicalize')\n"
        "print([n for n in sys.modules if n.startswith('aigcc.passes.quant') or n == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
