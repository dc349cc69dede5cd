"""``tokenclean report``: what runs did, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tokenclean.cli.completion import complete_strategies
from tokenclean.cli.console import note, say
from tokenclean.cli.options import TokenizerOption, TrustOption
from tokenclean.cli.settings_options import takes_settings


@takes_settings
def report(
    runs: Annotated[
        list[Path], Argument(metavar="RUN", help="Run folders, or folders of results, a comparison or a sweep.")
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", help="The page to write; by default RUN's name and -report.html.")
    ] = None,
    figures: Annotated[
        Path | None, Option(metavar="FOLDER", help="Write plots and tables as files here too: SVG, CSV, LaTeX.")
    ] = None,
    strategies: Annotated[
        str | None,
        Option(
            help="Strategies whose selections to show, separated by commas; by default all.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    model: TokenizerOption = None,
    title: Annotated[str | None, Option(help="Title of the page.")] = None,
    *,
    trust_remote_code: TrustOption,
) -> None:
    """Write one page on finished runs: results with intervals, what was kept and dropped, plots with their data.

    It shows what was run, the pool, scores and cuts, kept shares by source, turn and position, the tokens that stand
    out, loss curves, self-evolving rounds and corrected ratings: for a run folder, its last results, comparison, sweep
    and curation. Several runs are shown side by side, with the keys in which their recipes differ. The page works from
    disk and loads nothing; every plot and table has its data as CSV beside it.

    Example: tokenclean report runs/quick runs/other -o report.html
    """
    from tokenclean.experiment.finished.finished_run import describe_results, find_run
    from tokenclean.experiment.finished.viewer_tables import decoder_of, with_names
    from tokenclean.experiment.reporting.report import make_report
    from tokenclean.report.report_page import write_figures, write_report

    found = with_names([find_run(run) for run in runs])
    chosen = None if strategies is None else [name.strip() for name in strategies.split(",")]
    made = make_report(
        found,
        title=title or f"Report of {' and '.join(run.name for run in found)}",
        decoder=lambda run: decoder_of(run, note, model=model, trusted=trust_remote_code),
        strategies=chosen,
    )
    page = output or Path(f"{found[0].name}-report.html")
    write_report(made, page)
    size = f"{page.stat().st_size / 2**20:.1f} MiB"
    say(f"{page}: {len(made.plots)} plots, {len(made.tables)} tables, {size}; open it in a browser")
    for run in found:
        if run.results is not None:
            say(f"  of {describe_results(run.results)}")
    if figures is not None:
        say(f"{figures}: {write_figures(made, figures)} files")
