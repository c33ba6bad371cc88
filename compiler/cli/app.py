"""The app: all commands, how they are parsed, and where they print."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from aigcc.cli import Stopped, build, calibrate, measure, optimise, sensitivity, show
from aigcc.cli.render import json_only


class _PlainFlags:
    """Shows no type beside options that take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in params:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    """A command whose `--dump-ir` may stand alone, and whose `--json` owns standard output."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--dump-ir` as `--dump-ir=`: the value of this option is optional."""
        end = args.index("--") if "--" in args else len(args)
        options = [f"{word}=" if word == "--dump-ir" else word for word in args[:end]]
        return super().parse_args(ctx, [*options, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with json_only(enabled=ctx.params.get("json", False)):
                result = super().invoke(ctx)
            print(end="", flush=True)
        except BrokenPipeError:
            raise Stopped(signal.SIGPIPE) from None
        return result


class _Group(_PlainFlags, TyperGroup):
    """The commands."""


app = typer.Typer(
    name="aigcc",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"aigcc {importlib.metadata.version('aigcc')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the Python traceback of a failure too.")
    ] = False,
) -> None:
    """A compiler for generative models.

    It takes an nn.Module, .pt2 or ONNX, and makes a program for ONNX Runtime, OpenVINO, TensorRT or
    TVM.

    Example: `aigcc build model.onnx --target mobile -o out`
    """


for group in (build, optimise, measure, sensitivity, calibrate, show):
    for command in group.COMMANDS:
        app.command(cls=_Command)(command)
