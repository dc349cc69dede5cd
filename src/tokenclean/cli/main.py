"""The command line: ``tokenclean COMMAND``. Exit codes: 0 good, 1 the run failed, 2 input or recipe wrong."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer import Option

import tokenclean
from tokenclean.cli.audit import audit
from tokenclean.cli.compare import compare
from tokenclean.cli.console import err, fail, show_warnings
from tokenclean.cli.curate import curate
from tokenclean.cli.demo import demo
from tokenclean.cli.export import export
from tokenclean.cli.init import init
from tokenclean.cli.inspect import inspect
from tokenclean.cli.look import look
from tokenclean.cli.merge import merge
from tokenclean.cli.plan import plan
from tokenclean.cli.pool import pool
from tokenclean.cli.prune import prune
from tokenclean.cli.rate import rate
from tokenclean.cli.report import report
from tokenclean.cli.run import run
from tokenclean.cli.score import score
from tokenclean.cli.select import select
from tokenclean.cli.status import status
from tokenclean.cli.sweep import sweep
from tokenclean.cli.theory import theory
from tokenclean.cli.train import train
from tokenclean.cli.view import view
from tokenclean.errors import TokencleanError

COMMANDS = {
    "Start here": (look, run, demo, init),
    "Data": (audit, inspect, pool, rate, curate),
    "Experiments": (plan, compare, sweep),
    "Single steps": (score, select, train),
    "Results": (view, report, status, export, merge, prune, theory),
}

app = typer.Typer(
    name="tokenclean",
    help="Token cleaning for supervised fine-tuning: score every response token by how much a reference model improves "
    "on the base model, keep the best, train on those alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__, rich_help_panel=panel)(command)


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
    except KeyboardInterrupt:
        err.print("stopped; finished stages are kept")
        sys.exit(130)
