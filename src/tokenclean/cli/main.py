"""The command line: ``tokenclean COMMAND``. Exit codes: 0 good, 1 the run failed, 2 input or recipe wrong."""

from __future__ import annotations

import ast
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as command_of

import tokenclean
from tokenclean.cli.console import err, fail, show_warnings
from tokenclean.errors import TokencleanError
from tokenclean.models.device import limit_compiled_products

# The command `look` is the function `look` of `tokenclean.cli.look`, and so on.
COMMANDS = {
    "Start here": ("look", "run", "demo", "init"),
    "Data": ("audit", "inspect", "pool", "rate", "curate", "critic"),
    "Experiments": ("plan", "compare", "sweep", "lab"),
    "Single steps": ("score", "select", "train"),
    "Results": ("view", "review", "report", "status", "export", "merge", "prune", "theory"),
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def load_command(name: str) -> TyperCommand:
    """The command with its options."""
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown", context_settings=HELP_OPTIONS)
    single.command(name)(getattr(import_module(f"tokenclean.cli.{name}"), name))
    command = command_of(single)
    assert isinstance(command, TyperCommand)
    return command


class Commands(TyperGroup):
    """Imports only the command that is called. ``--help`` shows the docstrings, read from the files."""

    def __init__(self, **attributes) -> None:
        super().__init__(**attributes)
        for panel, names in COMMANDS.items():
            for name in names:
                self.add_command(TyperCommand(name, rich_help_panel=panel))

    def get_command(self, ctx, cmd_name):
        command = super().get_command(ctx, cmd_name)
        if command and command.help is None:
            file = ast.parse(Path(__file__).with_name(f"{cmd_name}.py").read_bytes())
            functions = {part.name: part for part in file.body if isinstance(part, ast.FunctionDef)}
            command.help = ast.get_docstring(functions[cmd_name])
        return command

    def resolve_command(self, ctx, args):
        name, command, arguments = super().resolve_command(ctx, args)
        return name, command and load_command(args[0]), arguments


app = typer.Typer(
    name="tokenclean",
    cls=Commands,
    help="Token cleaning for supervised fine-tuning: score every response token by how much a reference model improves "
    "on the base model, keep the best, train on those alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings=HELP_OPTIONS,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenclean {tokenclean.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point: our own errors become one message and an exit code, never a traceback."""
    show_warnings()
    limit_compiled_products()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    if not err.is_terminal:  # read when tqdm is imported: no progress bars of the libraries in a log
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app()
    except TokencleanError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        fail(str(error))
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            err.print("stopped; what is finished is kept, and the same command continues")
        raise
