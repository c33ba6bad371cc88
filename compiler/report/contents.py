"""What the program consists of: operators with their work, and where the bytes are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aigcc.figures import amount, size
from aigcc.report.charts import Box, bar, stack, treemap
from aigcc.report.html import Html, change, code, fold, long_table, section, table, tag

_COLOURS = 6  # classes c0 to c5 of the style sheet


def operators_section(manifest: Mapping[str, Any]) -> Html | None:
    """Nodes before and after, and operations, by operator."""
    if "operators" not in manifest or "work" not in manifest:
        return None
    work = manifest["work"]
    sizes = ", ".join(f"{name} = {dim}" for name, dim in work["sizes"].items())
    total = work["after"]["operations"]
    lead = [
        f"One run{f' with {sizes}' if sizes else ''} takes {amount(total)} operations, two for a ",
        "multiply-add.",
    ]
    rows = _operator_rows(manifest["operators"], work["after"])
    columns = ["operator", ">before", ">after", ">change", ">operations", ">share", "="]
    return section("operators", "Operators", long_table(columns, rows, "operators"), lead=lead)


def _operator_rows(
    counts: Mapping[str, Mapping[str, int]], work: Mapping[str, Any]
) -> list[list[object]]:
    flops, unknown, total = work["by_operator"], work["unknown"], work["operations"]
    before, after = counts["before"], counts["after"]
    names = sorted(
        {*before, *after},
        key=lambda op: (-flops.get(op, 0), -after.get(op, 0), -before.get(op, 0), op),
    )
    rows: list[list[object]] = []
    for op in names:
        old, new, count = before.get(op, 0), after.get(op, 0), flops.get(op, 0)
        share = count / total if total else 0.0
        known = "unknown" if op in unknown else amount(count) if count else ""
        rows.append(
            [
                code(op),
                old or "",
                new or "",
                change(old, new),
                known,
                f"{share:.1%}" if share >= 0.0005 else "",
                bar(share, f"{share:.1%} of the operations") if share >= 0.0005 else None,
            ]
        )
    return rows


def weights_section(manifest: Mapping[str, Any]) -> Html | None:
    """Bytes by type before and after, and the largest tensors as a map and a table."""
    weights = manifest.get("weights")
    if weights is None:
        return None
    total = sum(row["bytes"] for row in weights["after"].values())
    if not total:
        return None
    colours = {dtype: f"c{min(i, _COLOURS - 1)}" for i, dtype in enumerate(weights["after"])}
    parts = [(row["bytes"] / total, colours[dtype]) for dtype, row in weights["after"].items()]
    largest = weights["largest"]
    return section(
        "weights",
        "Weights",
        stack(parts, "bytes by type"),
        _types(weights, colours, total),
        treemap(_boxes(weights["parts"], colours, total), "parts of the model by their bytes"),
        fold(f"The {len(largest)} largest tensors", _tensors(largest, total)),
        lead=f"{size(total)} in {_tensor_count(weights['after'])} tensors.",
    )


def _tensor_count(rows: Mapping[str, Mapping[str, int]]) -> int:
    return sum(row["tensors"] for row in rows.values())


def _types(weights: Mapping[str, Any], colours: Mapping[str, str], total: int) -> Html:
    nothing = {"tensors": 0, "bytes": 0}
    rows = []
    for dtype in dict.fromkeys([*weights["after"], *weights["before"]]):
        old, new = (weights[when].get(dtype, nothing) for when in ("before", "after"))
        key = [tag("i", class_=f"key {colours.get(dtype, '')}".strip()), code(dtype)]
        share = f"{new['bytes'] / total:.1%}"
        rows.append([key, new["tensors"], _bytes(old), _bytes(new), share])
    return table(["!type", ">tensors", ">before", ">after", ">share"], rows)


def _bytes(row: Mapping[str, int]) -> str:
    return size(row["bytes"]) if row["tensors"] else ""


def _boxes(parts: Sequence[Mapping[str, Any]], colours: Mapping[str, str], total: int) -> list[Box]:
    usual = _usual_start([part["name"] for part in parts])
    boxes = [
        Box(
            part["name"].removeprefix(usual),
            part["name"] + _note(part),
            part["bytes"],
            colours[part["dtype"]],
        )
        for part in parts
    ]
    rest = total - sum(part["bytes"] for part in parts)
    return [*boxes, Box("all others", "many small parts", rest, "others")]


def _usual_start(names: Sequence[str]) -> str:
    """The first step, with its dot or slash, of more than half of the names; it tells little."""
    starts = Counter(re.split(r"(?<=[./])", name, maxsplit=1)[0] for name in names)
    start, count = starts.most_common(1)[0] if starts else ("", 0)
    return start if 2 * count > len(names) and start.endswith((".", "/")) else ""


def _note(part: Mapping[str, Any]) -> str:
    tensors = f" in {part['tensors']} tensors" if part["tensors"] > 1 else ""
    return f": {part['dtype']}{tensors}"


def _tensors(largest: Sequence[Mapping[str, Any]], total: int) -> Html:
    rows = [
        [
            code(tensor["name"]),
            code(tensor["dtype"]),
            code(_shape(tensor)),
            size(tensor["bytes"]),
            f"{tensor['bytes'] / total:.1%}",
        ]
        for tensor in largest
    ]
    return table(["name", "!type", "!shape", ">bytes", ">share"], rows)


def _shape(tensor: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, tensor['shape']))}]"
