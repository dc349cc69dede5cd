"""``tokenclean prune``: free the disk of what a run's results do not need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tokenclean.cli.console import say


def prune(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, such as runs/my.")],
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete a finished run's passes, trainings and checkpoints; its results stay.

    They are kept so that nothing is computed twice. Without them view, report, export and merge work as before, and the
    same run again starts from nothing.

    Example: tokenclean prune runs/my
    """
    from tokenclean.experiment.finished.prune import prune as prune_run
    from tokenclean.report.tables import size_text

    pruned = prune_run(run, only_say=dry_run)
    done = "would free" if dry_run else "freed"
    say(f"{run}: {done} {size_text(pruned.freed_bytes)} in {len(pruned.folders)} folders; results are kept")
