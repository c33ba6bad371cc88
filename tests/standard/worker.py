"""One process of a survey: reads a case in a variant a line, answers what becomes of it.

It runs checks, or judges a model that another tool made of the case.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from standard.cases import all_cases
    from standard.checks import CHECKS, check_case, judge_file
    from standard.variants import VARIANTS

    torch.set_num_threads(1)
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    cases = all_cases()
    for line in sys.stdin:
        question = json.loads(line)
        name, variant = question["case"]
        case = VARIANTS[variant](cases[name])
        answer: Any = {}
        if case is not None and "model" in question:
            answer = dataclasses.astuple(judge_file(case, Path(question["model"])))
        elif case is not None:
            checks = {check: CHECKS[check] for check in question["checks"]}
            found = check_case(case, checks)
            answer = {check: dataclasses.astuple(outcome) for check, outcome in found.items()}
        print(json.dumps(answer), file=answers, flush=True)
