"""The ONNX standard's own operator tests, through everything that reads or changes a model.

A slice here; all of them where AIGCC_STANDARD=all. benchmarks/standard.py prints the counts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))
from standard.cases import all_cases
from standard.checks import CHECKS
from standard.judge import FAULTS
from standard.pool import Lost, Server
from standard.survey import Finding, survey


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    is_whole = os.environ.get("AIGCC_STANDARD") == "all"
    return list(survey(list(all_cases()) if is_whole else None))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_wrong_raised_or_lost(check: str, findings: list[Finding]) -> None:
    mine = [finding for finding in findings if finding.check == check]
    assert mine
    faults = [finding for finding in mine if finding.outcome.verdict in FAULTS]
    assert faults == []


def test_a_crash_and_a_hang_are_survived() -> None:
    program = "import sys, time, os\nfor line in sys.stdin: {}"
    for what, verdict in (("os.abort()", "crash"), ("time.sleep(60)", "hang")):
        server = Server([sys.executable, "-c", program.format(what)], limit=1.0)
        for _ in range(2):
            with pytest.raises(Lost, match=verdict):
                server.ask("anything")
        server.close()
