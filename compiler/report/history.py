"""How the program came about: the pipeline with what each pass did, and the remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aigcc.report.charts import bar
from aigcc.report.html import Html, change, chip, code, fold, section, table, tag

_NODES = 50  # of a remark, and
_REMARKS = 60  # of a pass, that are shown: artifact.json has them all
_FEW = 6  # groups of remarks that need no folding


def pipeline_section(manifest: Mapping[str, Any]) -> Html:
    """The passes in their order, with rewrites, and nodes as a number and a bar."""
    parts: list[Html] = []
    if "passes" in manifest:
        parts.append(_passes(manifest["passes"], manifest["nodes"]["before"]))
    rewrites = sorted(manifest["rewrites"].items(), key=lambda item: (-item[1], item[0]))
    if rewrites:
        rows = [[code(maker), count] for maker, count in rewrites]
        parts.append(fold("Rewrites by rule", table(["by", ">rewrites"], rows)))
    parts.append(fold("As text, with every option", tag("pre", manifest["pipeline"])))
    return section("pipeline", "Pipeline", parts)


def _passes(passes: Sequence[Mapping[str, Any]], before: int) -> Html:
    most = max([before, *(run["nodes"] for run in passes), 1])
    rows: list[list[object]] = [
        ["", "as read", "", "", before, bar(before / most, f"{before} nodes", "dim")]
    ]
    last = before
    for index, run in enumerate(passes, start=1):
        nodes = run["nodes"]
        step = change(last, nodes)
        size = bar(nodes / most, f"{nodes} nodes")
        rows.append([index, _pass(run["text"]), run["rewrites"] or "", step, nodes, size])
        last = nodes
    return table([">", "pass", ">rewrites", ">change", ">nodes", "="], rows)


def _pass(text: str) -> list[object]:
    name, _, options = text.partition("(")
    shown = options.removesuffix(")").replace(",", ", ")
    return [tag("b", name), tag("div", shown, class_="options") if shown else None]


def remarks_section(manifest: Mapping[str, Any]) -> Html | None:
    """What the passes declined or noted, by pass; equal remarks of many nodes are one."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for remark in manifest["remarks"]:
        key = (remark["maker"], remark["kind"], remark["message"])
        groups.setdefault(key, []).append(remark["node"])
    if not groups:
        return None
    by_pass: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for key, nodes in groups.items():
        by_pass.setdefault(key[0].partition("/")[0], {})[key] = nodes
    few = len(groups) <= _FEW
    lead = "What was in reach and was not done, and why; and what is worth knowing."
    parts = [_pass_remarks(name, found, few) for name, found in by_pass.items()]
    return section("remarks", "Remarks", parts, lead=lead)


def _pass_remarks(
    name: str, groups: Mapping[tuple[str, str, str], list[str]], is_open: bool
) -> Html:
    counts: Counter[str] = Counter()
    for (_, kind, _), nodes in groups.items():
        counts[kind] += len(nodes)
    said = [chip(f"{count} {_word(kind, count)}") for kind, count in sorted(counts.items())]
    shown = [_remark(key, nodes) for key, nodes in list(groups.items())[:_REMARKS]]
    hidden = len(groups) - len(shown)
    more = tag("p", f"and {hidden} more kinds in artifact.json", class_="note") if hidden else None
    return fold([code(name), " ", said], shown, more, is_open=is_open)


def _word(kind: str, count: int) -> str:
    return f"{kind}s" if kind == "note" and count > 1 else kind


def _remark(key: tuple[str, str, str], nodes: Sequence[str]) -> Html:
    maker, kind, message = key
    rule = maker.partition("/")[2]
    named = [node for node in nodes if node]
    head = [tag("b", kind), " ", code(rule) if rule else None, tag("div", message)]
    return tag("div", head, _places(named), class_="remark")


def _places(nodes: Sequence[str]) -> Html | None:
    if not nodes:
        return None
    if len(nodes) == 1:
        return tag("p", "at ", code(nodes[0]), class_="places")
    listed = [tag("li", code(node)) for node in nodes[:_NODES]]
    if len(nodes) > _NODES:
        listed.append(tag("li", f"and {len(nodes) - _NODES} more in artifact.json"))
    return fold(f"at {len(nodes)} nodes", tag("ul", listed, class_="places"))
