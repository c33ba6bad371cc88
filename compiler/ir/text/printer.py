"""The text form of a model: print it, write it to a file, read it from one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.storage.atomic import replacing
from aigcc.ir.storage.saving import hold, left_behind
from aigcc.ir.text.attributetext import Style
from aigcc.ir.text.dataref import WeightFile, needs_data_file
from aigcc.ir.text.graphtext import WIDTH, GraphPrinter
from aigcc.ir.text.literals import string_text
from aigcc.ir.text.parser import parse_model
from aigcc.ir.text.records import metadata_record

INLINE_LIMIT = 32
"""Up to how many elements `write_text` prints a tensor in the text itself."""


def print_model(
    model: ir.Model,
    *,
    folder: Path | None = None,
    data: WeightFile | None = None,
    inline_limit: int | None = None,
    brief: bool = False,
) -> str:
    """The text form of a model, which `aigcc.ir.text.parser.parse_model` reads back.

    Nothing is lost: types, names, metadata and documentation are in the facts behind `#`, and
    the records that are too long for their lines are in a table at the end of the text.

    Args:
        model: The model.
        folder: Where the text is going to be, the current folder if None. Weights that are in a
            file already are printed as references to it, relative to this folder.
        data: Takes the other weights of more than `inline_limit` elements.
        inline_limit: Up to how many elements a tensor is printed inline. If None, all that are in
            no file yet are. With a limit and no `data`, larger ones are printed as `...`: such a
            text is for people, and does not parse.
        brief: Lose what torch's exporter wrote (metadata of torch and onnxscript, documentation of
            nodes), and keep of it the module path and the source line of each node. They parse
            back as metadata `aigcc.module` and `aigcc.source`.

    Raises:
        ModelError: The text would read back as another model: two values of one name in a scope,
            a value without a name, a map type, or a device configuration.
    """
    if model.device_configurations:
        raise ModelError("device configurations have no text form")
    style = Style(folder or Path(), data, inline_limit, brief)
    printer = GraphPrinter(style)
    lines = [*_header(_model_keys(model, brief)), *printer.graph(model.graph)]
    for function in model.functions.values():
        lines += [*_header(_function_keys(function)), *printer.function(function)]
    table = printer.table.lines()
    return "\n".join([*lines, *([""] if table else []), *table, ""])


def print_body(graph: ir.Graph | ir.Function) -> str:
    """The nodes of a graph, one a line, with the types of their outputs: for golden tests.

    Node names and metadata are left out, and the types are aligned. The initializers, if there
    are any, stand before the nodes.
    """
    printer = GraphPrinter(Style(bare=True))
    return "\n".join([*printer.body(graph.graph if isinstance(graph, ir.Function) else graph), ""])


def write_text(
    model: ir.Model,
    path: str | Path,
    *,
    data: WeightFile | None = None,
    inline_limit: int = INLINE_LIMIT,
    brief: bool = False,
) -> None:
    """Write the text form of a model, whole or not at all.

    Weights that are in a file already stay there, and the text refers to that file. The other
    ones of more than `inline_limit` elements are written one at a time: into `data`, or else into
    `<path>.data`. A file that the weights of `model` are mapped from may be replaced. Where the old
    text at `path` had weights in `<path>.data` and the new one has not, that file goes.

    Args:
        model: The model.
        path: The file to write, which should end with `.onnxtxt`.
        data: A data file that several texts share, such as the dumps of a pipeline.
        inline_limit: See `print_model`.
        brief: See `print_model`.

    Raises:
        ModelError: The model has no text form, see `print_model`, or a file cannot be written.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".data")
    paths, removed = [path], []
    if data is None and needs_data_file(model, inline_limit, beside):
        hold(model, beside)
        paths.append(beside)
    else:
        removed = left_behind(path, beside, read_text)
    try:
        with replacing(*paths, removed=removed) as (file, *weights):
            text = print_model(
                model,
                folder=path.parent,
                data=WeightFile(beside, weights[0]) if weights else data,
                inline_limit=inline_limit,
                brief=brief,
            )
            file.write(text.encode())
            if data is not None:
                data.file.flush()
    except OSError as error:
        raise ModelError(f"the text cannot be written: {error}", at=str(path)) from error


def read_text(path: str | Path, *, roots: Iterable[Path] = ()) -> ir.Model:
    """Read a file that holds the text form of a model.

    Args:
        path: The file.
        roots: Folders besides its own that the text may refer to, see `parse_model`.

    Raises:
        ModelError: The file cannot be read, or is not the text form of a model.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the text cannot be read: {error}", at=str(path)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"this is not text: byte {error.start} is not UTF-8",
            at=str(path),
            hint="name it .onnx if it is a binary model",
        ) from error
    return parse_model(text, path.parent, str(path), roots=roots)


def _model_keys(model: ir.Model, brief: bool) -> list[str]:
    texts = {
        "ir_version": str(model.ir_version),
        "opset_import": _opsets_text(model.opset_imports),
    }
    for key in ("producer_name", "producer_version", "domain"):
        if getattr(model, key) is not None:
            texts[key] = string_text(getattr(model, key))
    if model.model_version is not None:
        texts["model_version"] = str(model.model_version)
    if model.doc_string is not None:
        texts["doc_string"] = string_text(model.doc_string)
    metadata = metadata_record(model.metadata_props, brief)
    if metadata:
        pairs = [f"{string_text(key)}: {string_text(text)}" for key, text in metadata.items()]
        texts["metadata_props"] = f"[{', '.join(pairs)}]"
    return [f"{key}: {text}" for key, text in texts.items()]


def _function_keys(function: ir.Function) -> list[str]:
    keys = [f"domain: {string_text(function.domain)}"]
    if function.overload:
        keys.append(f"overload: {string_text(function.overload)}")
    return [*keys, f"opset_import: {_opsets_text(function.opset_imports)}"]


def _opsets_text(opsets: dict[str, int]) -> str:
    return f"[{', '.join(f'{string_text(d)} : {version}' for d, version in opsets.items())}]"


def _header(keys: list[str]) -> list[str]:
    """`<key: value, ...>` in a line, or a key a line if that is too long."""
    line = f"<{', '.join(keys)}>"
    if len(line) <= WIDTH and "\n" not in line:
        return [line]
    return ["<", *(f"  {key}," for key in keys[:-1]), f"  {keys[-1]}", ">"]
