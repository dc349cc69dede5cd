"""``tokenclean review``: people decide on tokens of a run, in the viewer on this machine."""

from __future__ import annotations

import getpass
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from tokenclean.cli.console import note, say
from tokenclean.cli.options import StrategyOption
from tokenclean.errors import PoolError, needs_extra

if TYPE_CHECKING:
    from tokenclean.experiment.finished.open_review import RunReview
    from tokenclean.review.review_file import ReviewFile


def review(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, or a results folder.")],
    strategy: StrategyOption = None,
    name: Annotated[str | None, Option(help="Your name beside your decisions; by default that of your login.")] = None,
    file: Annotated[
        Path | None, Option(help="The file of decisions; by default review.jsonl in the run folder.")
    ] = None,
    critic: Annotated[
        Path | None,
        Option(metavar="FILE", help="Suggest what `tokenclean critic` named in this file, with its reasons."),
    ] = None,
    max_conversations: Annotated[int, Option(min=1, help="Conversations to show.")] = 2_000,
    max_tokens: Annotated[int, Option(min=1, help="Tokens to show.")] = 400_000,
    port: Annotated[int, Option(min=0, max=65_535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    measure: Annotated[
        bool, Option("--measure", help="Serve nothing; compare each strategy's labels and scores with the decisions.")
    ] = False,
) -> None:
    """Look at the most doubtful spans of a run and keep, drop or weigh them, in a browser on this machine.

    Decisions are appended to a file as characters of the messages, so they hold for another model and tokenizer. Use
    them with `tokenclean export --review` and with the recipe's `pool.review`. Several people may review one run.

    Example: tokenclean review runs/quick --name Ann
    """
    from tokenclean.experiment.finished.open_review import open_run_review, read_run_review, review_path

    path = file or review_path(run)
    if measure:
        found = read_run_review(path)
        if found is None:
            raise PoolError(f"{path}: no such file, so there is nothing to compare with; review the run first")
        _measure(open_run_review(run, strategy, note), found)
        return
    with needs_extra("uvicorn", "review", "tokenclean review"):
        import starlette  # noqa: F401  # before the run is read
        import uvicorn  # noqa: F401
    opened = open_run_review(run, strategy, note, critic)
    _serve(opened, path, name or getpass.getuser(), max_conversations, max_tokens, port)


def _serve(opened: RunReview, path: Path, name: str, max_conversations: int, max_tokens: int, port: int) -> None:
    from tokenclean.experiment.finished.open_review import read_run_review
    from tokenclean.experiment.finished.viewer_tables import view_title
    from tokenclean.report.viewer.page import render_page
    from tokenclean.report.viewer.ranked_table import Sample
    from tokenclean.review.server import ReviewServer, listen

    before = read_run_review(path)
    for line in before.faults if before else ():
        note(line)
    view, data = opened.page(None, Sample(max_conversations, max_tokens), who=name)
    server = ReviewServer(
        render_page(view, title=view_title(view), review=data, is_served=True), path, opened.conversations
    )
    listener = listen(port)
    say(f"{len(view.spans):,} of {len(opened.conversations):,} conversations; decisions go to {path}")
    say(f"open {server.link(listener.getsockname()[1])}")
    say("Ctrl-C ends the server; every decision is stored when it is taken")
    server.serve(listener)


def _measure(opened: RunReview, file: ReviewFile) -> None:
    from tokenclean.cli.console import say_tables
    from tokenclean.report.tables import Table
    from tokenclean.review.agreement import agreements
    from tokenclean.review.decisions import in_force
    from tokenclean.review.detection import measure_detection
    from tokenclean.review.placed import place_by_person

    reviewed = opened.reviewed(file)
    for line in reviewed.lines():
        say(line)
    rows = []
    for name, table in opened.tables().items():
        found = measure_detection(table, reviewed.decided)
        shares = (found.precision, found.recall, found.auroc)
        rows.append((name, f"{found.tokens:,}", f"{found.noise:,}", *map(_figure, shares), f"{found.scored:,}"))
    title = "Decided response tokens: what the strategies drop, against what people drop"
    columns = ("strategy", "decided", "dropped by people", "precision", "recall", "AUROC", "with a score")
    say_tables([Table(title, columns, tuple(rows), "AUROC: a kept token has the higher score, ties half")])
    for pair in agreements(place_by_person(in_force(file.decisions), opened.conversations)):
        say(str(pair))


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
