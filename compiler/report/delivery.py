"""What is shipped: facts that were read back, files with their digests, how to run and rebuild."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigcc.figures import size
from aigcc.report.charts import bar
from aigcc.report.html import Html, chip, code, long_table, section, table, tag

REPORT = "report.html"


def facts_section(manifest: Mapping[str, Any]) -> Html | None:
    """What the target read back from its own result: precisions, kernels, sizes."""
    facts = manifest["facts"]
    if not facts:
        return None
    lead = "What the finished program really holds and runs, read from the program itself."
    return section("facts", "Read back from the program", _mapping(facts), lead=lead)


def _mapping(facts: Mapping[str, Any]) -> Html:
    if len(facts) > 1 and all(type(value) is int for value in facts.values()):
        most = max(1, *facts.values())
        rows = [[code(key), f"{n:,}", bar(n / most, str(n))] for key, n in facts.items()]
        return table(["!", ">", "="], rows)
    return table(["!", ""], [[key, _fact(item)] for key, item in facts.items()])


def _fact(value: Any) -> object:
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, list):
        return value
    if any(isinstance(item, Mapping | list) for item in value):
        return [tag("div", _fact(item)) for item in value]
    if all(isinstance(item, str) for item in value):
        return tag("div", [chip(item) for item in value], class_="chips")
    return code(", ".join(map(str, value)))


def files_section(manifest: Mapping[str, Any]) -> Html:
    """Every file with its size and SHA-256, the device's first."""
    files = {name: facts for name, facts in manifest["files"].items() if name != REPORT}
    device = manifest["device_files"]
    ordered = sorted(files, key=lambda name: (name not in device, name != manifest["entry"]))
    rows = [
        [
            [code(name), chip("device", "good") if name in device else None],
            size(files[name]["bytes"]),
            tag("code", files[name]["sha256"], class_="digest"),
        ]
        for name in ordered
    ]
    lead = [
        "The device needs those that are marked. ",
        code("artifact.json"),
        " holds all of this, and the digest of this page.",
    ]
    return section(
        "files", "Files", long_table(["name", ">size", "SHA-256"], rows, "files"), lead=lead
    )


def use_section(manifest: Mapping[str, Any]) -> Html:
    """How to run it, how to build it again, and with which versions."""
    parts = [tag("h3", "Run it"), tag("pre", "python example.py")]
    parts += [tag("p", "in this folder; the file says what it needs.", class_="note")]
    if "command" in manifest:
        command = manifest["command"]
        again = tag("pre", command) if command else tag("p", "From Python, with aigcc.build.")
        parts += [tag("h3", "Build it again"), again]
    versions = [[name, code(version)] for name, version in manifest["versions"].items()]
    parts += [tag("h3", "Built with"), table(["!", ""], versions)]
    return section("use", "Run and rebuild", parts)
