"""``tokenclean status``: the stages of a run folder, and why each is or isn't valid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from tokenclean.cli.console import out, say, say_tables
from tokenclean.errors import RunFolderError


def status(run: Annotated[Path, Argument(metavar="RUN", help="A run folder, such as runs/quick.")]) -> None:
    """List the stages of a run folder with size and age, and say why each is or isn't valid.

    Every file is compared with the hash in its stage's manifest. Nothing is changed.

    Example: tokenclean status runs/quick
    """
    if not (run / "stages").is_dir():
        raise RunFolderError(f"{run}: not a run folder; give the recipe's output/name, such as runs/quick")

    from tokenclean.experiment.finished.status import describe_run

    described = describe_run(run)
    say(described.headline)
    out.print()
    if described.table.rows:
        say_tables([described.table])
    for line in described.notes:
        say(line)
