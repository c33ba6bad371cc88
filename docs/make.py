"""Write what docs/ takes from the code: python docs/make.py [--check].

passes.md and targets.md are made from docstrings as a whole. The pages in commands/ are written by
hand but for the parts between marks, which come from the command line itself.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from aigcc.cli.app import app
from aigcc.cli.show import describe
from aigcc.passes import PASSES
from aigcc.targets import TARGETS

HERE = Path(__file__).parent
INTRODUCTION = {
    "passes": "# Passes\n\nEach name can stand in a pipeline: `aigcc opt model.onnx -p "
    '"canonicalize,fuse" -o out.onnx`.\nOptions follow in brackets: '
    "`fold-constants(limit=4096)`. This page is made from the docstrings by\n"
    "`python docs/make.py`.\n",
    "targets": "# Targets\n\nEach name can stand after `--target`; options follow in brackets: "
    "`--target 'mobile(weights=fp16)'`.\nThis page is made from the docstrings by "
    "`python docs/make.py`.\n",
}
COMMANDS = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
PART = re.compile(r"(<!-- docs/make\.py: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
KINDS = {str: "text", Path: "path", int: "whole number", float: "number", bool: "flag"}
EMPTY_PAGE = "<!-- docs/make.py: {} -->\n<!-- end -->\n"


def catalogue_page(kind: str, catalogue: Mapping[str, type]) -> str:
    parts = [INTRODUCTION[kind]]
    for name in sorted(catalogue):
        facts = describe(name, catalogue[name])
        parts.append(f"\n## {name}\n\n{inspect.cleandoc(facts['text'])}\n")
        if facts["options"]:
            parts.append("\n| option | type | default | |\n|---|---|---|---|\n")
            parts.extend(_row(option) for option in facts["options"])
    return "".join(parts)


def _row(option: Mapping[str, Any]) -> str:
    kind = option["type"].replace("|", " or ")
    return f"| `{option['name']}` | {kind} | `{option['default']}` | {option['help']} |\n"


def command_page(name: str, text: str) -> str:
    """The page of a command with its marked parts made anew."""
    parts = {"usage": _usage(name), "options": _options(name)}
    text = text or "\n".join(EMPTY_PAGE.format(part) for part in parts)
    return PART.sub(lambda match: match[1] + parts[match[2]] + match[3], text)


def _parameters(name: str) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """The parameters of a command, each with its type and with what typer is told about it."""
    for parameter in inspect.signature(COMMANDS[name], eval_str=True).parameters.values():
        kind, info = typing.get_args(parameter.annotation)
        chosen = [part for part in typing.get_args(kind) if part is not type(None)]
        is_optional = type(None) in typing.get_args(kind)
        yield parameter, chosen[0] if is_optional else kind, info


def _usage(name: str) -> str:
    summary = inspect.cleandoc(COMMANDS[name].__doc__ or "").partition("\n\n")[0]
    words = ["aigcc", name]
    for parameter, _, info in _parameters(name):
        if _is_argument(info):
            words.append(info.metavar if _is_required(parameter) else f"[{info.metavar}]")
    for parameter, _, info in _parameters(name):
        if not _is_argument(info) and _is_required(parameter):
            words.append(f"{_spellings(parameter, info)[0]} {info.metavar}")
    return f"# aigcc {name}\n\n{summary}\n\n```text\n{' '.join(words)} [OPTIONS]\n```\n"


def _options(name: str) -> str:
    arguments, options = [], ["| `--help`, `-h` | flag | | Show this help and exit. |\n"]
    for parameter, kind, info in _parameters(name):
        default = "required" if _is_required(parameter) else _default(parameter.default)
        end = f"{_kind(kind, info)} | {default} | {_cell(info.help)} |\n"
        if _is_argument(info):
            arguments.append(f"| `{_cell(info.metavar)}` | {end}")
        else:
            shown = ", ".join(f"`{spelling}`" for spelling in _spellings(parameter, info))
            value = "" if kind is bool else f" `{info.metavar}`"
            options.insert(-1, f"| {shown}{value} | {end}")
    tables = [("Arguments", "argument", arguments), ("Options", "option", options)]
    return "\n".join(
        f"## {title}\n\n| {first} | type | default | |\n|---|---|---|---|\n{''.join(rows)}"
        for title, first, rows in tables
        if rows
    )


def _spellings(parameter: inspect.Parameter, info: Any) -> list[str]:
    """The option's names; typer keeps the first one that it is given as a default."""
    given = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    return given or [f"--{parameter.name.replace('_', '-')}"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _is_argument(info: Any) -> bool:
    return isinstance(info, ArgumentInfo)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _kind(kind: Any, info: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"{_kind(typing.get_args(kind)[0], info)}, repeatable"
    if issubclass(kind, enum.Enum):
        return " or ".join(f"`{choice.value}`" for choice in kind)
    return KINDS[kind] + (f", {info.min} or more" if info.min is not None else "")


def _default(value: Any) -> str:
    if value is None or value is False:
        return ""
    return f"`{value.value if isinstance(value, enum.Enum) else value}`"


def index_page(text: str) -> str:
    """The list of commands, with its marked part made anew."""
    rows = [
        f"| [{name}]({name}.md) | {inspect.cleandoc(call.__doc__ or '').partition(chr(10))[0]} |\n"
        for name, call in COMMANDS.items()
    ]
    table = "| command | |\n|---|---|\n" + "".join(rows)
    return PART.sub(lambda match: match[1] + table + match[3], text)


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def main() -> int:
    makers: dict[str, Callable[[str], str]] = {
        "passes.md": lambda _: catalogue_page("passes", PASSES),
        "targets.md": lambda _: catalogue_page("targets", TARGETS),
        "commands/README.md": index_page,
    }
    for name in COMMANDS:
        makers[f"commands/{name}.md"] = functools.partial(command_page, name)
    stale = []
    for name, make in makers.items():
        before = _read(HERE / name)
        text = make(before)
        if text != before:
            stale.append(name)
            if "--check" not in sys.argv:
                (HERE / name).write_text(text, "utf-8")
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run python docs/make.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
