"""``tokenclean view``: the tokens of a run or a table, kept and dropped, on a page or in the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from tokenclean.cli.console import note, out, say
from tokenclean.cli.options import StrategyOption, TokenizerOption, TrustOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    from tokenclean.report.viewer.page_data import View

_PAGE_CONVERSATIONS = 2_000
_TERMINAL_CONVERSATIONS = 3


@takes_settings
def view(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, a results folder, or a table of tokens.")],
    other: Annotated[Path | None, Argument(metavar="OTHER", help="A second run or table, to compare it with.")] = None,
    strategy: StrategyOption = None,
    diff: Annotated[
        str | None, Option(metavar="STRATEGY", help="Compare with this strategy (of OTHER, if given).")
    ] = None,
    model: TokenizerOption = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The page to write; by default RUN's name and .html.")
    ] = None,
    max_conversations: Annotated[
        int | None,
        Option(
            min=1,
            help=f"Conversations to show; by default {_PAGE_CONVERSATIONS:,}, or {_TERMINAL_CONVERSATIONS} with "
            "--terminal.",
        ),
    ] = None,
    max_tokens: Annotated[int, Option(min=1, help="Tokens to show.")] = 400_000,
    proportion: Annotated[
        float | None, Option("--proportion", "-k", min=0, max=1, help="Start at this cut, not at the table's labels.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the sample, if the pool is larger.")] = 0,
    terminal: Annotated[bool, Option("--terminal", help="Print the conversations in the terminal.")] = False,
    by: Annotated[Literal["kept", "score"], Option(help="With --terminal: colour by label or by score.")] = "kept",
    review: Annotated[
        bool, Option("--review", help="A page that takes decisions and saves them as a file; needs the run's texts.")
    ] = False,
    *,
    trust_remote_code: TrustOption,
) -> None:
    """Show which tokens are kept and dropped, with their losses, scores and ranks, on one page that works from disk.

    On the page a slider cuts the pool anywhere; conversations can be searched, filtered and sorted. With OTHER or
    --diff the two are shown side by side and the tokens that differ are marked. Piped, --terminal puts kept tokens in
    ⟦ ⟧ and dropped ones between tildes.

    Example: tokenclean view runs/quick --strategy fixed_model --diff random -o tokens.html
    """
    if proportion is not None and not terminal and abs(proportion * 1000 - round(proportion * 1000)) > 1e-9:
        raise RecipeError(f"--proportion: the page cuts at thousandths such as 0.625, found {proportion:g}", "view")
    from tokenclean.experiment.finished.finished_run import describe_results, find_table

    if review:
        if other is not None or diff is not None or terminal or model is not None or proportion is not None:
            raise RecipeError(
                "--review: takes one run by itself, without OTHER, --diff, --terminal, --model and -k", "view"
            )
        _write_review(run, strategy, output, max_conversations or _PAGE_CONVERSATIONS, max_tokens)
        return
    places = [find_table(run, strategy)]
    if other is not None or diff is not None:
        places.append(find_table(run if other is None else other, diff))

    from tokenclean.experiment.finished.viewer_tables import open_tables, view_title
    from tokenclean.report.viewer.ranked_table import Sample

    default = _TERMINAL_CONVERSATIONS if terminal else _PAGE_CONVERSATIONS
    opened = open_tables(
        places,
        model=model,
        trusted=trust_remote_code,
        sample=Sample(max_conversations or default, max_tokens, seed),
    )
    results = [
        f"  {place.parent.name} of {describe_results(place.parent.parent)}"
        for place, of in zip(places, (run, run if other is None else other), strict=False)
        if of.is_dir()
    ]
    if terminal:
        for line in results:
            note(line)
        _print(opened, proportion, by)
        return
    _write_page(opened, output or Path(f"{run.resolve().stem}.html"), view_title(opened), proportion)
    for line in results:
        say(line)


def _write_page(opened: View, page: Path, title: str, proportion: float | None) -> None:
    from tokenclean.report.viewer.page import write_page

    write_page(opened, page, title=title, proportion=proportion)
    first = opened.tables[0]
    shown, total = len(opened.spans), len(first.survey.ids)
    sampled = "" if shown == total else f" of {total:,}"
    say(
        f"{page}: {shown:,}{sampled} conversations, {len(first.table['input_ids'].values):,} tokens, "
        f"{page.stat().st_size / 2**20:.1f} MiB; open it in a browser"
    )


def _write_review(run: Path, strategy: str | None, output: Path | None, conversations: int, tokens: int) -> None:
    """Write the page that takes decisions and saves them as a file."""
    import getpass

    from tokenclean.experiment.finished.open_review import open_run_review, read_run_review, review_path
    from tokenclean.experiment.finished.viewer_tables import view_title
    from tokenclean.report.viewer.page import write_page
    from tokenclean.report.viewer.ranked_table import Sample

    path = review_path(run)
    opened = open_run_review(run, strategy, note)
    shown, data = opened.page(read_run_review(path), Sample(conversations, tokens), who=getpass.getuser())
    page = output or Path(f"{run.resolve().stem}-review.html")
    write_page(shown, page, title=view_title(shown), review=data)
    say(f"{page}: {len(shown.spans):,} of {len(opened.conversations):,} conversations; open it in a browser")
    say(f"it saves decisions as a file; append that to {path}")


def _print(opened: View, proportion: float | None, by: Literal["kept", "score"]) -> None:
    from tokenclean.report.viewer.terminal import terminal_text, visible

    for shown in opened.tables:
        if shown.done:
            note(shown.done)
    is_coloured = out.is_terminal and "NO_COLOR" not in os.environ
    for heading, text in terminal_text(opened, proportion=proportion, paint=by, coloured=is_coloured):
        if out.is_terminal:
            out.rule(visible(heading), align="left")
        else:
            say(visible(heading))
        say(text)
