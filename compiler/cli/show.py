"""`aigcc inspect`, `passes`, `targets`, `explain` and `doctor`: what is there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect as python_inspect
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aigcc.cli.arguments import DataRoots, Json, Model
from aigcc.cli.render import amount, as_json, console, size, table
from aigcc.errors import PipelineError, did_you_mean


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (inspect, passes, targets, explain, doctor):
        app.command()(command)


def inspect(model: Model, data_root: DataRoots = None, json: Json = False) -> None:
    """Show a model: signature, operators, parameters, FLOPs, bytes, sparsity.

    Example: `aigcc inspect model.onnx`
    """
    from aigcc.analysis.cost import summarize
    from aigcc.driver import load

    summary = summarize(load(model, roots=data_root or ()))
    if json:
        as_json(summary)
        return
    _show_summary(model, summary)


def _show_summary(model: str, summary: Any) -> None:
    table(
        f"{model}: opset {summary.opset}, {summary.nodes} nodes",
        ["", "name", "type", "shape"],
        [
            (kind, v.name, v.dtype, v.shape)
            for kind, values in (("input", summary.inputs), ("output", summary.outputs))
            for v in values
        ],
    )
    table(
        f"\n{amount(summary.parameters)} parameters, {size(summary.weight_bytes)} of weights, "
        f"{amount(summary.flops)}FLOP",
        ["weights", ">count", ">bytes", ">zeros"],
        [(w.dtype, w.elements, size(w.bytes), f"{w.sparsity:.1%}") for w in summary.weights],
    )
    table("", ["operator", ">nodes"], sorted(summary.operators.items(), key=lambda i: -i[1]))


def passes(
    name: Annotated[str | None, typer.Argument(help="One pass, in full.")] = None,
    json: Json = False,
) -> None:
    """List the passes, or show one with its options.

    Example: `aigcc passes fuse`
    """
    from aigcc.passes import PASSES

    _catalogue(PASSES, name, "pass", json)


def targets(
    name: Annotated[str | None, typer.Argument(help="One target, in full.")] = None,
    json: Json = False,
) -> None:
    """List the targets, or show one with its options.

    Example: `aigcc targets mobile`
    """
    from aigcc.targets import TARGETS

    _catalogue(TARGETS, name, "target", json)


def _catalogue(catalogue: Any, name: str | None, kind: str, json: bool) -> None:
    if name is not None and name not in catalogue:
        raise PipelineError(f"unknown {kind} {name!r}", hint=did_you_mean(name, catalogue))
    chosen = [name] if name is not None else sorted(catalogue)
    facts = [describe(key, catalogue[key]) for key in chosen]
    if json:
        as_json(facts)
    elif name is None:
        table("", [kind, "what it does"], [(f["name"], f["summary"]) for f in facts])
    else:
        _show_entry(facts[0])


def describe(name: str, cls: type) -> dict[str, Any]:
    """A catalogue entry from its docstring and fields: name, summary, text, options."""
    from aigcc.options import fields, to_text

    text = python_inspect.getdoc(cls) or ""
    return {
        "name": name,
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "text": text,
        "options": [
            {
                "name": key,
                "type": getattr(kind, "__name__", None)
                if isinstance(kind, type)
                else _choices(kind),
                "default": to_text(default),
                "help": help,
            }
            for key, (kind, default, help) in fields(cls).items()
        ],
    }


def _choices(kind: Any) -> str:
    import typing

    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(kind))
    return str(kind)


def _show_entry(facts: dict[str, Any]) -> None:
    console.print(f"[bold]{facts['name']}[/]\n")
    console.print(facts["text"], markup=False)
    if facts["options"]:
        table(
            "\noptions",
            ["name", "type", "default", "what"],
            [(o["name"], o["type"], o["default"], o["help"]) for o in facts["options"]],
        )


def explain(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    json: Json = False,
) -> None:
    """Say what a build did, what it declined to do, and why.

    Example: `aigcc explain out`
    """
    from aigcc.artifact import Artifact

    manifest = Artifact.load(artifact).manifest
    if json:
        as_json(manifest)
        return
    console.print(f"[bold]{artifact}[/]: {manifest['source']} for {manifest['target']}")
    console.print(f"pipeline: {manifest['pipeline']}\n", markup=False)
    table("rewrites", ["by", ">count"], sorted(manifest["rewrites"].items(), key=lambda i: -i[1]))
    if manifest["remarks"]:
        table(
            "\nremarks",
            ["", "by", "node", "message"],
            [(r["kind"], r["maker"], r["node"], r["message"]) for r in manifest["remarks"]],
        )
    if manifest["facts"]:
        table("\nread back from the artifact", ["fact", "value"], list(manifest["facts"].items()))


def doctor(json: Json = False) -> None:
    """Say what is installed, what each target can do here, and what would fix the rest.

    Example: `aigcc doctor`
    """
    from aigcc.targets import TARGETS

    packages = (
        "aigcc",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "torch",
        "apache-tvm",
        "tensorrt-rtx",
    )
    versions = {name: _version(name) for name in packages}
    needs = {
        name: [dataclasses.asdict(r) for r in TARGETS[name]().requirements()] for name in TARGETS
    }
    if json:
        as_json({"python": platform.python_version(), "packages": versions, "targets": needs})
        return
    table(
        f"Python {platform.python_version()} in {sys.prefix}",
        ["package", "version"],
        [(name, version or "not installed") for name, version in versions.items()],
    )
    table(
        "\ntargets",
        ["target", "needs", "", "what would fix it"],
        [
            (name, r["name"], r["detail"] if r["present"] else f"missing: {r['detail']}", r["fix"])
            for name, rows in needs.items()
            for r in rows
        ],
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
