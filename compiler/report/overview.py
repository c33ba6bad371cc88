"""The head of the report: what was built, the verdict, the figures, the quality, the signature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from aigcc.figures import amount, number, seconds, size
from aigcc.report.html import Html, chip, code, long_table, section, table, tag


def header(manifest: Mapping[str, Any]) -> Html:
    """Model, target, verdict and the figures that people look for first."""
    kind, title, text = _verdict(manifest.get("quality"))
    verdict = [tag("strong", title), tag("span", text)]
    return tag(
        "header",
        tag("p", "aigcc build report", class_="brand"),
        tag("h1", manifest["source"], class_="model"),
        tag("p", "for ", code(manifest["target"]), class_="target"),
        tag("p", verdict, class_=f"verdict {kind}"),
        tag("div", _tiles(manifest), class_="tiles"),
    )


def _verdict(quality: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if quality is None:
        return "warn", "Not measured", "The outputs were not compared with the original's."
    bounds = quality.get("bounds", [])
    said = "; ".join(_bound(bound) for bound in bounds) or _error(quality)
    said += f", on {origin(quality)}."
    if not all(bound["kept"] for bound in bounds):
        return "warn", "Breaks the budget", said
    if any(output["rounding"] is not None for output in quality["outputs"]):
        return "warn", "No clear figure", f"{said} Rounding alone makes an error as large."
    if not quality["is_lowered"]:
        return "warn", "Measured before lowering", f"{said} The program itself did not run."
    title = "Keeps the budget" if bounds else "Agrees with the original"
    if quality["synthetic"]:
        title = f"{title if bounds else 'Agrees'} on synthetic samples"
        return "warn", title, f"{said} Give real ones with --samples."
    return "good", title, said


def _error(quality: Mapping[str, Any]) -> str:
    worst = number(_worst(quality["outputs"], "relative", max), ".2g")
    allowed = number(quality.get("tolerance"), ".2g")
    return f"Relative error {worst} at most" + (f", where {allowed} is allowed" if allowed else "")


def _bound(bound: Mapping[str, Any]) -> str:
    return f"{bound['text']} is {'kept' if bound['kept'] else 'broken'}: {bound['figure']}"


def origin(quality: Mapping[str, Any]) -> str:
    """Where the samples came from, in words that hold on any machine."""
    source = quality["samples"]
    if quality["synthetic"]:
        return str(source)
    path = PurePath(source)
    return f"{quality['count']} samples of {path.name if path.is_absolute() else source}"


def _worst(outputs: Iterable[Mapping[str, Any]], key: str, choose: Any) -> Any:
    return choose((output[key] for output in outputs), key=float, default=None)


def _tiles(manifest: Mapping[str, Any]) -> list[Html]:
    tiles = []
    if "bytes" in manifest:
        tiles.append(_tile("Size", manifest["bytes"], size))
    tiles.append(_tile("Nodes", manifest["nodes"], str))
    if "work" in manifest:
        work = manifest["work"]
        operations = {when: work[when]["operations"] for when in ("before", "after")}
        tiles.append(_tile("Operations", operations, amount))
    if manifest.get("latency") is not None:
        medians = {when: manifest["latency"][when]["median"] for when in ("before", "after")}
        tiles.append(_tile("Latency", medians, seconds))
    if manifest.get("quality") is not None:
        worst = _worst(manifest["quality"]["outputs"], "sqnr", min)
        text = number(worst, ".1f")
        note = "of the worst output"
        tiles.append(_box("SQNR", text if isinstance(worst, str) else f"{text} dB", note))
    return tiles


def _tile(title: str, figures: Mapping[str, Any], show: Any) -> Html:
    before, after = figures["before"], figures["after"]
    ratio = f", {after / before:.2f}x" if before else ""
    return _box(title, show(after), f"{show(before)} before{ratio}")


def _box(title: str, figure: str, note: str) -> Html:
    parts = [tag("dt", title), tag("dd", figure, class_="figure"), tag("dd", note)]
    return tag("dl", parts)


def quality_section(manifest: Mapping[str, Any]) -> Html:
    """How far each output is from the original's, and what that figure is worth."""
    quality = manifest.get("quality")
    if quality is None:
        text = "Either the build was told not to compare, or no machine at hand runs the program."
        return section("quality", "Quality", tag("p", text))
    columns = ["output", ">SQNR dB", ">relative", ">max |a-b|", ">PSNR dB", ">cosine"]
    forms = {"sqnr": ".1f", "relative": ".2g", "max_abs": ".2g", "psnr": ".1f", "cosine": ".6f"}
    rows = [
        [
            [code(output["name"]), " ", tag("small", output["dtype"])],
            *(number(output[key], form) for key, form in forms.items()),
        ]
        for output in sorted(quality["outputs"], key=lambda output: -float(output["relative"]))
    ]
    lead = f"Against the original, the worst of {origin(quality)}."
    notes = [tag("p", note, class_="note") for note in _notes(quality)]
    made = long_table(columns, rows, "outputs")
    return section("quality", "Quality", _bounds(quality), made, notes, lead=lead)


def _bounds(quality: Mapping[str, Any]) -> Html | None:
    """Each bound of the budget, and whether it was kept."""
    rows = [
        [
            code(bound["text"]),
            bound["figure"],
            chip(*(("kept", "good") if bound["kept"] else ("broken", "warn"))),
        ]
        for bound in quality.get("bounds", [])
    ]
    return table(["budget", "figure", ""], rows) if rows else None


def _notes(quality: Mapping[str, Any]) -> list[str]:
    notes = []
    if not quality["is_lowered"]:
        notes.append(
            "The machine that built this cannot run the program, so the module that it was "
            "made of ran."
        )
    if quality.get("noise"):
        notes.append(f"{quality['noise']}.")
    if quality.get("calibrated"):
        notes.append(
            f"Activations were calibrated on {quality['calibrated']} of the {quality['count']} "
            "samples."
        )
    if quality.get("sizes"):
        notes.append(f"As right with {'; and with '.join(quality['sizes'])}.")
    for output in quality["outputs"]:
        name = output["name"]
        if output["not_finite"]:
            notes.append(f"{output['not_finite']} values of {name} are NaN or infinite in both.")
    notes += [f"{note[0].upper()}{note[1:]}." for note in quality.get("notes", [])]
    return notes


def signature_section(manifest: Mapping[str, Any]) -> Html:
    """Inputs and outputs: names, types, shapes."""
    rows = [
        [chip(kind), code(value["name"]), code(value["dtype"] or "unknown"), _shape(value)]
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for value in manifest[key]
    ]
    columns = ["!", "name", "!type", "shape"]
    return section("signature", "Signature", long_table(columns, rows, "values"))


def _shape(value: Mapping[str, Any]) -> list[object]:
    if value["shape"] is None:
        return ["unknown rank"]
    text = code(f"[{', '.join('?' if dim is None else str(dim) for dim in value['shape'])}]")
    limit = tag("small", f" values below {value['below']}") if "below" in value else None
    return [text, limit]
