"""The report: one file that needs nothing, says everything, and runs nothing that a model holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import aigcc
from aigcc.artifact import MANIFEST, Artifact, digest
from aigcc.errors import ArtifactError
from aigcc.report.page import render

NET = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (float[N,2] x) => (float[N,2] y) <float[2,2] body_weight = {1, 2, 3, 4}>
    { [a] h = Identity (x)  [b] m = MatMul (h, body_weight)  [c] y = Relu (m) }
"""
HOSTILE = "</code><script>alert('\u202e\x00\ud800')</script>\"' onload=x"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LINKS = ("href", "src", "action", "data")
NAMED = ("by_operator", "facts", "files", "rewrites", "sizes", "versions")

Edit = Callable[[dict[str, Any]], object]


class Page(HTMLParser):
    """The elements of a page, its words, and whether every element is closed where it should be."""

    VOID = ("link", "meta")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    aigcc.Module.parse(NET).save(folder / "net.onnx")
    aigcc.build(folder / "net.onnx", "mobile", folder / "out")
    return folder / "out"


def edited(built: Path, edit: Edit = lambda manifest: None) -> str:
    manifest = json.loads((built / MANIFEST).read_text())
    edit(manifest)
    return render(Artifact(built, manifest))


def test_the_report_tells_what_the_manifest_knows(built: Path) -> None:
    text = Page((built / "report.html").read_text()).text
    for part in (
        "net.onnx for mobile(weights=fp32,format=onnx,external=none)",
        "Agrees on synthetic samples",
        "4 synthetic samples",
        "input x float [N, 2]",
        "as read 3 1 canonicalize",
        "body_weight",
        "aigcc build net.onnx -t mobile -o out",
        digest(built / "model.onnx"),
        "onnxruntime",
    ):
        assert part in text, part


def test_the_report_belongs_to_the_artifact(built: Path) -> None:
    files = Artifact.load(built).manifest["files"]
    assert files["report.html"]["sha256"] == digest(built / "report.html")
    assert files["report.html"]["sha256"] not in (built / "report.html").read_text()


def test_the_manifest_alone_makes_the_same_page_again(built: Path) -> None:
    assert render(Artifact.load(built)) == (built / "report.html").read_text()


def test_equal_builds_give_equal_bytes(built: Path, tmp_path: Path) -> None:
    aigcc.build(built.parent / "net.onnx", "mobile", tmp_path / "other")
    for name in (MANIFEST, "report.html"):
        assert (tmp_path / "other" / name).read_bytes() == (built / name).read_bytes()


def test_the_page_fetches_and_runs_nothing(built: Path) -> None:
    page = (built / "report.html").read_text()
    elements = Page(page).elements
    assert not {"script", "img", "iframe", "object"} & {name for name, _ in elements}
    links = [
        value for _, attributes in elements for key, value in attributes.items() if key in LINKS
    ]
    assert links and all(link is not None and link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\(|@import|https?:", page)
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in elements
    assert str(built.parent) not in page
    assert len(page) < 40_000


def hostile(thing: Any, parent: str = "") -> Any:
    """The same with every text in it spoilt, and every key that is a name and no keyword."""
    if isinstance(thing, dict):
        spoilt = HOSTILE if parent in NAMED else ""
        return {spoilt + key: hostile(value, key) for key, value in thing.items()}
    if isinstance(thing, list):
        return [hostile(item) for item in thing]
    return HOSTILE + thing if isinstance(thing, str) else thing


def test_names_are_text_and_never_markup(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        quality, remark = manifest["quality"], {"kind": "note", "maker": "fuse/norm"}
        quality["outputs"] = [{**row, "sqnr": 0.0, "not_finite": 1} for row in quality["outputs"]]
        manifest["remarks"].append({**remark, "node": "n", "message": "m", "numbers": {}})
        manifest.update(hostile(manifest))
        for facts in (manifest["weights"], manifest["operators"]):
            for when in ("before", "after"):
                facts[when] = {HOSTILE + name: row for name, row in facts[when].items()}

    made = edited(built, edit)
    page = Page(made)
    assert "script" not in {name for name, _ in page.elements}
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>alert('\\u202e\\x00\\ud800')</script>") > 50
    made.encode()  # lone surrogates could not be


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (None, "Not measured"),
        ({"synthetic": False}, "Agrees with the original"),
        ({"synthetic": True}, "Agrees on synthetic samples"),
        ({"is_lowered": False}, "Measured before lowering"),
        ({"rounding": 0.5}, "No clear figure"),
    ],
)
def test_the_verdict_says_what_was_measured(
    built: Path, change: dict[str, Any] | None, verdict: str
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        if change is None:
            manifest["quality"] = None
        elif "rounding" in change:
            manifest["quality"]["outputs"][0] |= change
        else:
            manifest["quality"] |= change

    assert verdict in Page(edited(built, edit)).text


def test_figures_that_json_lacks_are_shown(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["quality"]["outputs"][0] |= {"sqnr": "inf", "relative": "nan", "psnr": None}

    assert "inf" in Page(edited(built, edit)).text


def test_samples_are_named_without_the_folder_of_this_machine(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["quality"] |= {"synthetic": False, "samples": "/home/me/faces.npz", "count": 3}

    page = edited(built, edit)
    assert "3 samples of faces.npz" in Page(page).text and "/home" not in page


def test_many_remarks_stay_readable(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["remarks"] = [
            {
                "kind": "declined",
                "maker": "fuse/norm",
                "node": f"n{i}",
                "message": text,
                "numbers": {},
            }
            for i in range(20_000)
            for text in ("the scale varies", f"value {i} is used elsewhere")
        ]

    page = edited(built, edit)
    assert "40000 declined" in Page(page).text
    assert "at 20000 nodes" in page and "and 19950 more in artifact.json" in page
    assert "and 19941 more kinds in artifact.json" in page
    assert len(page) < 100_000


def test_many_outputs_are_folded(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        (row,) = manifest["quality"]["outputs"]
        manifest["quality"]["outputs"] = [
            row | {"name": f"cache.{i}", "relative": i / 1000} for i in range(64)
        ]

    text = Page(edited(built, edit)).text
    assert "52 more outputs" in text
    assert text.index("cache.63") < text.index("cache.62") < text.index("cache.0 ")


def test_an_artifact_of_before_reports_were_there_still_makes_one(built: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for key in ("passes", "operators", "weights", "work", "bytes", "command"):
            del manifest[key]
        del manifest["quality"]["tolerance"]

    text = Page(edited(built, edit)).text
    assert "Nodes 2 3 before" in text and "Treemap" not in text


@pytest.mark.parametrize("key", ["weights", "work", "quality", "passes", "outputs"])
def test_a_damaged_manifest_is_refused_with_a_sentence(built: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match="no report can be made"):
        edited(built, lambda manifest: manifest.update({key: [{"odd": 1}]}))


def test_a_model_from_python_has_no_command(tmp_path: Path) -> None:
    made = aigcc.build(aigcc.Module.parse(NET), "mobile", tmp_path / "out", verify="off")
    assert made.artifact.manifest["command"] is None
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "From Python, with aigcc.build." in text and "Not measured" in text


STYLE = (Path(aigcc.report.__file__).parent / "style.css").read_text("utf-8")
ON = {
    "text": ("page", "card", "well", "good-back", "warn-back"),
    "soft": ("page", "card", "well", "track"),
    "accent": ("page", "card"),
    "good": ("good-back",),
    "warn": ("warn-back",),
    "white": tuple(f"c{number}" for number in range(6)),
}


def palettes() -> dict[str, dict[str, str]]:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#\w+)", light), white="#fff")
    return {
        "light": found,
        "dark": {**found, **dict(re.findall(r"--([\w-]+): (#\w+)", dark.partition("* {")[0]))},
    }


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_they_are_on(scheme: str) -> None:
    """4.5 to 1 is WCAG's bound for text."""
    colours = palettes()[scheme]
    for text, backs in ON.items():
        for back in backs:
            dark, light = sorted(luminance(colours[name]) for name in (text, back))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


def test_what_scrolls_does_so_with_a_keyboard(built: Path) -> None:
    text = (built / "report.html").read_text("utf-8")
    regions = [facts for _, facts in Page(text).elements if facts.get("class") == "scroll"]
    assert regions
    for facts in regions:
        assert facts["tabindex"] == "0" and facts["role"] == "region" and facts["aria-label"]
