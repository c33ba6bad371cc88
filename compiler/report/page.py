"""The page as a whole: one file that needs nothing else, the same bytes for the same manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigcc.artifact import MANIFEST, Artifact, describe_file
from aigcc.errors import ArtifactError
from aigcc.jsontext import to_json
from aigcc.report.contents import operators_section, weights_section
from aigcc.report.delivery import REPORT, facts_section, files_section, use_section
from aigcc.report.history import pipeline_section, remarks_section
from aigcc.report.html import document, tag
from aigcc.report.latency import latency_section
from aigcc.report.overview import header, quality_section, signature_section

_SECTIONS = {
    "quality": ("Quality", quality_section),
    "latency": ("Latency", latency_section),
    "signature": ("Signature", signature_section),
    "pipeline": ("Pipeline", pipeline_section),
    "remarks": ("Remarks", remarks_section),
    "operators": ("Operators", operators_section),
    "weights": ("Weights", weights_section),
    "facts": ("Read back", facts_section),
    "files": ("Files", files_section),
    "use": ("Run and rebuild", use_section),
}


def render(artifact: Artifact) -> str:
    """The report of an artifact, made again from its manifest.

    Raises:
        ArtifactError: the manifest is damaged.
    """
    try:
        return _page(artifact.manifest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{MANIFEST} is damaged, so no report can be made of it: {error!r}",
            at=str(artifact.folder / MANIFEST),
            hint="build the artifact again",
        ) from error


def write_report(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write `report.html` into an artifact's folder, and return its entry for `files`.

    The page leaves itself out of the files that it lists, since no file can hold its own digest.
    """
    path = folder / REPORT
    page = _page(json.loads(to_json(manifest)))  # as whoever opens the artifact will read it
    path.write_text(page, "utf-8", newline="\n")
    return {REPORT: describe_file(path)}


def _page(manifest: Mapping[str, Any]) -> str:
    made = {key: make(manifest) for key, (_, make) in _SECTIONS.items()}
    links = [
        tag("a", title, href=f"#{key}")
        for key, (title, _) in _SECTIONS.items()
        if made[key] is not None
    ]
    return document(
        f"{manifest['source']} for {manifest['target'].partition('(')[0]}",
        header(manifest),
        tag("nav", links),
        tag("main", list(made.values())),
    )
