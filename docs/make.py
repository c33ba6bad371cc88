"""Write docs/passes.md and docs/targets.md from the docstrings: python docs/make.py [--check]."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigcc.cli.show import describe
from aigcc.passes import PASSES
from aigcc.targets import TARGETS

HERE = Path(__file__).parent
INTRODUCTION = {
    "passes": "# Passes\n\nEach name can stand in a pipeline: `aigcc opt model.onnx -p "
    '"canonicalize,fuse" -o out.onnx`.\nOptions follow in brackets: '
    "`fold-constants(limit=4096)`. This page is made from the docstrings by\n"
    "`python docs/make.py`.\n",
    "targets": "# Targets\n\nEach name can stand after `--target`; options follow in brackets: "
    "`--target 'mobile(weights=fp16)'`.\nThis page is made from the docstrings by "
    "`python docs/make.py`.\n",
}


def page(kind: str, catalogue: Mapping[str, type]) -> str:
    parts = [INTRODUCTION[kind]]
    for name in sorted(catalogue):
        facts = describe(name, catalogue[name])
        parts.append(f"\n## {name}\n\n{inspect.cleandoc(facts['text'])}\n")
        if facts["options"]:
            parts.append("\n| option | type | default | |\n|---|---|---|---|\n")
            parts.extend(_row(option) for option in facts["options"])
    return "".join(parts)


def _row(option: Mapping[str, Any]) -> str:
    kind = option["type"].replace("|", " or ")
    return f"| `{option['name']}` | {kind} | `{option['default']}` | {option['help']} |\n"


def main() -> int:
    stale = []
    for kind, catalogue in (("passes", PASSES), ("targets", TARGETS)):
        path, text = HERE / f"{kind}.md", page(kind, catalogue)
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python docs/make.py")
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
