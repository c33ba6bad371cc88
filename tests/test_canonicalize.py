"""What canonicalize promises for any model: same outputs, legal, and nothing left to do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from aigcc.ir.module import Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession

sys.path.insert(0, str(Path(__file__).parent))
from random_graphs import feeds, modules

RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def outputs_of(module: Module) -> dict[str, np.ndarray]:
    return OrtSession(module, optimise=False).run(feeds(module))


@RELAXED
@given(modules())
def test_outputs_stay_the_same(module: Module) -> None:
    before = outputs_of(module)
    PassManager(parse("canonicalize")).run(module)
    after = outputs_of(module)
    assert list(after) == list(before)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-5)


@RELAXED
@given(modules())
def test_a_second_run_finds_nothing(module: Module) -> None:
    PassManager(parse("canonicalize")).run(module)
    again = Context()
    PassManager(parse("canonicalize")).run(module, again)
    assert again.total == 0, again.remarks


@RELAXED
@given(modules())
def test_every_prefix_of_the_rewrites_is_right(module: Module) -> None:
    before = outputs_of(module)
    whole = Context()
    PassManager(parse("canonicalize")).run(module.clone(), whole)
    for limit in {1, whole.total // 2, max(whole.total - 1, 0)}:
        part = module.clone()
        PassManager(parse("canonicalize")).run(part, Context(limit=limit))
        for name, array in outputs_of(part).items():
            np.testing.assert_allclose(array, before[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fed", [False, True])
def test_a_default_that_can_be_fed_is_no_constant(fed: bool) -> None:
    module = Module.parse("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[2] x, float[2] scale) => (float[2] y) <float[2] scale = {1, 1}>
        { y = Mul (x, scale) }
    """)
    PassManager(parse("canonicalize")).run(module)
    x, scale = np.array([3, 4], np.float32), np.array([2, 2], np.float32)
    given_now = {"x": x, "scale": scale} if fed else {"x": x}
    (y,) = OrtSession(module, optimise=False).run(given_now).values()
    np.testing.assert_array_equal(y, x * (scale if fed else 1))
