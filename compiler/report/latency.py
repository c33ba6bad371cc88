"""How long a run takes, beside the original and other targets, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigcc.figures import seconds
from aigcc.report.charts import bar
from aigcc.report.html import Html, code, fold, section, table, tag


def latency_section(manifest: Mapping[str, Any]) -> Html | None:
    """Medians with quartiles, what has to be known of them, and the nodes that take longest."""
    latency = manifest.get("latency")
    if latency is None:
        return None
    name = manifest["target"].partition("(")[0]
    rows = [
        ["the original, in ONNX Runtime", *_figures(latency["before"])],
        [f"this program, for {name}", *_figures(latency["after"])],
        *([f"for {other}", *_figures(timing)] for other, timing in latency["others"].items()),
    ]
    columns = ["", ">median", ">quartiles", ">ratio", ">quartiles"]
    lead = (
        f"One run, measured in turn with the original's over {latency['after']['rounds']} rounds "
        f"on {latency['machine'] or 'the machine that built it'}; ratios are to the original."
    )
    notes = [tag("p", note, class_="note") for note in latency["notes"]]
    nodes = _nodes(latency["nodes"]) if latency["nodes"] else None
    return section("latency", "Latency", table(columns, rows), notes, nodes, lead=lead)


def _figures(timing: Mapping[str, float]) -> list[str]:
    return [
        seconds(timing["median"]),
        f"{seconds(timing['low'])} to {seconds(timing['high'])}",
        f"{timing['ratio']:.2f}x",
        f"{timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}",
    ]


def _nodes(nodes: list[Mapping[str, Any]]) -> Html:
    most = max(node["seconds"] for node in nodes) or 1.0
    rows = [
        [
            code(node["name"]),
            [node["kind"], " ", tag("small", node["kernel"])],
            seconds(node["seconds"]),
            bar(node["seconds"] / most, seconds(node["seconds"])),
        ]
        for node in nodes
    ]
    columns = ["node", "operator", ">time", "="]
    return fold(f"Where the time goes: the {len(nodes)} longest nodes", table(columns, rows))
