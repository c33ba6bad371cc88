"""Runs one peer's script on one model after the other: a line of JSON in, a line out."""

import json
import runpy
import sys

script = sys.argv[1]
answers, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no answer
for line in sys.stdin:
    source, out = json.loads(line)
    sys.argv = [script, source, out]
    try:
        runpy.run_path(script, run_name="__main__")
        error = ""
    except (Exception, SystemExit) as raised:  # noqa: BLE001 - which is counted
        error = f"{type(raised).__name__}: {raised}"
    print(json.dumps(error[:1000]), file=answers, flush=True)
