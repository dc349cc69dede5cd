"""The command line: ``tokenclean COMMAND``. Exit codes: 0 good, 1 the run failed, 2 input or recipe wrong."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import tokenclean
from tokenclean.cli import (
    audit,
    compare,
    curate,
    demo,
    export,
    inspect,
    merge,
    plan,
    pool,
    rate,
    report,
    run,
    score,
    select,
    status,
    sweep,
    theory,
    train,
    view,
)
from tokenclean.cli.console import err, fail, show_warnings
from tokenclean.errors import TokencleanError

app = typer.Typer(
    name="tokenclean",
    help="Token cleaning for supervised fine-tuning: score every response token by how much a reference model improves "
    "on the base model, keep the best, train on those alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("sweep")(sweep.sweep)
app.command("plan")(plan.plan)
app.command("audit")(audit.audit)
app.command("inspect")(inspect.inspect)
app.command("pool")(pool.pool)
app.command("rate")(rate.rate)
app.command("curate")(curate.curate)
app.command("score")(score.score)
app.command("select")(select.select)
app.command("train")(train.train)
app.command("view")(view.view)
app.command("report")(report.report)
app.command("status")(status.status)
app.command("export")(export.export)
app.command("merge")(merge.merge)
app.command("theory")(theory.theory)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenclean {tokenclean.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point: our own errors become one message and an exit code, never a traceback."""
    show_warnings()
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


if __name__ == "__main__":
    main()
