"""`aigcc inspect`, `passes`, `targets`, `explain` and `doctor`: what is there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect as python_inspect
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigcc.cli.arguments import (
    DataRoots,
    Json,
    Model,
    check_free_file,
    complete_pipeline,
    complete_target,
    read_page,
)
from aigcc.cli.render import as_json, line, markdown, table
from aigcc.errors import PipelineError, did_you_mean
from aigcc.figures import amount, number, seconds, size

if TYPE_CHECKING:
    import onnx_ir as ir

    from aigcc.analysis.cost import Summary
    from aigcc.ir.module import Module


def inspect(model: Model, data_root: DataRoots = None, json: Json = False) -> None:
    """Show a model: signature, operators, parameters, operations, bytes, sparsity.

    Example: `aigcc inspect model.onnx`
    """
    from aigcc.analysis.cost import summarize
    from aigcc.driver import load

    module = load(model, roots=data_root or ())
    summary = summarize(module)
    if json:
        signature = {"inputs": _signature(module.inputs), "outputs": _signature(module.outputs)}
        as_json({**signature, **dataclasses.asdict(summary)})
    else:
        _show_summary(model, module, summary)


def _signature(values: Iterable[ir.Value]) -> list[dict[str, Any]]:
    from aigcc.artifact import describe_value

    return [describe_value(value) for value in values]


def _show_summary(model: str, module: Module, summary: Summary) -> None:
    table(
        f"{model}: opset {summary.opset}, {summary.nodes} nodes",
        ["", "name", "type", "shape"],
        [
            (kind, v["name"], v["dtype"], _shape(v["shape"]))
            for kind, values in (("input", module.inputs), ("output", module.outputs))
            for v in _signature(values)
        ],
    )
    total = sum(weights.bytes for weights in summary.weights)
    table(
        f"\n{amount(summary.parameters)} parameters, {size(total)} of constants",
        ["type", ">tensors", ">elements", ">bytes", ">zeros"],
        [
            (w.dtype, w.tensors, amount(w.elements), size(w.bytes), f"{w.sparsity:.1%}")
            for w in summary.weights
        ],
    )
    sizes = ", ".join(f"{name} = {dim}" for name, dim in summary.sizes.items())
    line(f"\none run{f' with {sizes}' if sizes else ''}:")
    line(f"  {amount(summary.work.flops)} operations (two for a multiply-add)")
    unknown = f"; values of unknown size, left out: {summary.peak.unknown}"
    line(
        f"  {size(summary.peak.bytes)} of activations at most, at {summary.peak.node or 'no node'}"
        + (unknown if summary.peak.unknown else "")
    )
    table(
        "",
        ["operator", ">nodes", ">operations"],
        [
            (op, count, amount(summary.work.by_op[op]) if op in summary.work.by_op else "")
            for op, count in summary.ops.items()
        ],
    )
    if summary.work.unknown:
        line(f"operations of {', '.join(summary.work.unknown)}: some are unknown")


def _shape(dims: list[int | str | None] | None) -> str:
    if dims is None:
        return "unknown rank"
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def passes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", autocompletion=complete_pipeline, help="One pass, in full."),
    ] = None,
    json: Json = False,
) -> None:
    """List the passes, or show one with its options.

    Example: `aigcc passes canonicalize`
    """
    from aigcc.passes import PASSES

    _catalogue(PASSES, name, "pass", json)


def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", autocompletion=complete_target, help="One target, in full."),
    ] = None,
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
    import types
    import typing

    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, choices))
    if isinstance(kind, types.UnionType):
        return "|".join("none" if c is type(None) else c.__name__ for c in choices)
    return str(kind)


def _show_entry(facts: dict[str, Any]) -> None:
    markdown(f"**{facts['name']}**\n\n{facts['text']}")
    if facts["options"]:
        table(
            "\noptions",
            ["name", "type", "default", "what"],
            [(o["name"], o["type"], o["default"], o["help"]) for o in facts["options"]],
        )


def explain(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the report there, as one HTML file."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a build did, what it declined to do, and why.

    Example: `aigcc explain out`
    """
    from aigcc.artifact import Artifact
    from aigcc.report.page import render

    check_free_file(html, "report of aigcc", read_page)
    opened = Artifact.load(artifact)
    manifest = opened.manifest
    if html is not None:
        _write(html, render(opened))
    if json:
        as_json(manifest)
        return
    line(f"{artifact}: {manifest['source']} for {manifest['target']}")
    line(f"pipeline: {manifest['pipeline']}")
    line(f"nodes: {manifest['nodes'].get('before')} before, {manifest['nodes'].get('after')} after")
    _show_sizes(manifest)
    line(_quality(manifest.get("quality")))
    for bound in (manifest.get("quality") or {}).get("bounds", []):
        line(f"{bound['text']}: {bound['figure']}, {'kept' if bound['kept'] else 'broken'}")
    _show_latency(manifest.get("latency"))
    rewrites = sorted(manifest["rewrites"].items(), key=lambda item: (-item[1], item[0]))
    table("\nrewrites", ["by", ">count"], rewrites)
    show_remarks(manifest["remarks"])
    if manifest["facts"]:
        rows = [(name, _fact(value)) for name, value in manifest["facts"].items()]
        table("\nread back from the artifact", ["fact", "value"], rows)
    files = [(name, size(facts["bytes"])) for name, facts in manifest["files"].items()]
    table("\nfiles", ["name", ">size"], files)


def _show_sizes(manifest: Mapping[str, Any]) -> None:
    if "bytes" in manifest:
        before, after = (size(manifest["bytes"][when]) for when in ("before", "after"))
        line(f"size: {before} before, {after} after")


def _show_latency(latency: Mapping[str, Any] | None) -> None:
    """Print medians with quartiles, and the nodes that take longest."""
    if latency is None:
        line("latency: not measured")
        return
    timings = {"original": latency["before"], "program": latency["after"], **latency["others"]}
    table(
        f"\nlatency on {latency['machine']}, with quartiles; ratios are to the original",
        ["", ">median", ">from", ">to", ">ratio", ">from", ">to"],
        [
            (
                name,
                *(seconds(timing[key]) for key in ("median", "low", "high")),
                *(f"{timing[key]:.2f}x" for key in ("ratio", "ratio_low", "ratio_high")),
            )
            for name, timing in timings.items()
        ],
    )
    for note in latency["notes"]:
        line(f"latency: {note}")
    if latency["nodes"]:
        table(
            "\nwhere the time goes",
            ["node", "operator", "kernel", ">time"],
            [
                (node["name"], node["kind"], node["kernel"], seconds(node["seconds"]))
                for node in latency["nodes"][:10]
            ],
        )


def _write(path: Path, text: str) -> None:
    from aigcc.ir.storage.atomic import replacing

    with replacing(path) as (file,):
        file.write(text.encode())
    line(f"wrote {path}")


def show_remarks(remarks: list[dict[str, Any]]) -> None:
    """Print what passes said, if they said anything."""
    if remarks:
        table("\nremarks", ["", "by", "node", "message"], _group(remarks))


def _group(remarks: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """A row for each remark; those that differ in their node only share one."""
    nodes: dict[tuple[str, str, str], list[str]] = {}
    for r in remarks:
        nodes.setdefault((r["kind"], r["maker"], r["message"]), []).append(r["node"])
    return [
        (kind, maker, names[0] + (f" and {len(names) - 1} more" if names[1:] else ""), message)
        for (kind, maker, message), names in nodes.items()
    ]


def _quality(quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return "quality: not measured"
    errors = [f"{o['name']} {number(o.get('relative'), '.2g')}" for o in quality["outputs"]]
    noise = f"; {quality['noise']}" if quality.get("noise") else ""
    return f"relative error on {quality['samples']}: {', '.join(errors)}{noise}"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list) else str(value)


def doctor(json: Json = False) -> None:
    """Say what is installed, what each target can do here, and what would fix the rest.

    Example: `aigcc doctor`
    """
    from aigcc.machine import describe_processor
    from aigcc.targets import TARGETS

    packages = (
        "aigcc",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "openvino",
        "torch",
        "apache-tvm",
        "tensorrt-rtx",
    )
    versions = {name: _version(name) for name in packages}
    needs = {
        name: [dataclasses.asdict(r) for r in TARGETS[name]().requirements()] for name in TARGETS
    }
    if json:
        facts = {"python": platform.python_version(), "processor": describe_processor()}
        as_json({**facts, "packages": versions, "targets": needs})
        return
    table(
        f"Python {platform.python_version()} in {sys.prefix}\n{describe_processor()}",
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


COMMANDS = (inspect, passes, targets, explain, doctor)
