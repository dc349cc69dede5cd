"""The report of finished runs: what was run, the pool, the results, what was kept, and how the models came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path

from tokenclean.errors import RecipeError
from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.finished.sample import choose_sample
from tokenclean.experiment.reporting.results_section import comparison, heldout_differences, last_sweep, results
from tokenclean.experiment.reporting.runs_section import block_name, labelled, table_blocks, times, what_was_run
from tokenclean.experiment.reporting.tokens_section import SELF_EVOLVING, pools, scores, standing_out, what_was_kept
from tokenclean.experiment.run_files import CURATION
from tokenclean.experiment.verdict import verdict_of
from tokenclean.recipe import STRATEGIES
from tokenclean.report.plots.ratings import ratings_plot, transition_plot
from tokenclean.report.plots.trainings import Rounds, agreement_plot, loss_curves, rounds_plot
from tokenclean.report.report_page import Block, Report, SampleBlock, Section
from tokenclean.report.selection_statistics import SelectionSummary, summarize
from tokenclean.report.tables import Table
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.token_table import iter_table
from tokenclean.training.journal import JOURNAL, read_journal

EXAMPLES = 15
"""Tokens shown of those kept most often, and of those dropped most often."""


def make_report(
    runs: Sequence[FinishedRun],
    *,
    title: str,
    decoder: Callable[[FinishedRun], SpanDecoder | None],
    strategies: Sequence[str] | None = None,
) -> Report:
    """Everything that the runs' folders hold. ``decoder``: for a run's tokens; None leaves the token examples out.

    ``strategies``: whose selections are shown, all by default. Raises RunFolderError as ``FinishedRun.tables``,
    RecipeError for a strategy that no run has, MissingExtraError without matplotlib.
    """
    known = {name for run in runs for name in run.kept_tables()}
    if unknown := sorted(set(strategies or ()) - known):
        has = f"they have {', '.join(sorted(known))}" if known else "no strategy of theirs selects tokens"
        raise RecipeError(f"--strategies: no run has {', '.join(unknown)}; {has}", "report")
    selected: list[tuple[FinishedRun, SelectionSummary]] = []
    decoders: dict[str, SpanDecoder | None] = {}
    for run in runs:
        tables = {name: path for name, path in run.kept_tables().items() if strategies is None or name in strategies}
        with_examples = _strategy_with_examples(run, list(tables))
        for name, path in tables.items():
            of_tokens = decoder(run) if name == with_examples else None
            decoders[str(path)] = of_tokens
            selected.append((run, summarize(path, run.name, name, of_tokens, examples=EXAMPLES)))

    def of_each(section: Callable[[FinishedRun], list[Block]]) -> tuple[Block, ...]:
        return tuple(block for run in runs for block in section(run))

    sections = (
        Section("verdict", "Did cleaning help?", (*of_each(heldout_differences), *of_each(_sample_of(decoders)))),
        Section("results", "Results", tuple(results(runs, [summary for _, summary in selected]))),
        Section("benchmarks", "On benchmarks", of_each(comparison)),
        Section("sweeps", "Sweeps", of_each(last_sweep)),
        Section("scores", "Scores and cuts", tuple(scores(selected))),
        Section("kept", "What was kept", tuple(what_was_kept(selected))),
        Section("tokens", "Tokens that stand out", tuple(standing_out(selected))),
        Section("rounds", "Self-evolving, round by round", of_each(_rounds)),
        Section("ratings", "Ratings, corrected", of_each(_curation)),
        Section("pool", "The pool", tuple(pools(runs, selected))),
        Section("training", "Training", (*_training(runs), *of_each(times))),
        Section("run", "What was run" if len(runs) == 1 else "The runs", tuple(what_was_run(runs))),
    )
    return Report(title, tuple(sentence for run in runs for sentence in _lead(run)), sections)


def _strategy_with_examples(run: FinishedRun, names: Sequence[str]) -> str | None:
    """The strategy whose tokens are shown: the recipe's own, unless it keeps everything."""
    selecting = [name for name in names if name not in STRATEGIES or STRATEGIES[name].trains != "all tokens"]
    if run.strategy in selecting:
        return run.strategy
    return next((name for name in selecting if name not in ("random", "ds2")), selecting[0] if selecting else None)


def _lead(run: FinishedRun) -> list[str]:
    """The verdict on the recipe's own strategy, if it was measured."""
    heldout_rows = len(run.result.get("heldout_rows", ()))
    choice = run.result.get("choices", {}).get(run.strategy or "")
    verdict = verdict_of(run.measured, run.strategy, heldout_rows=heldout_rows, folder=str(run.place), choice=choice)
    return [] if verdict is None else [labelled(run, str(verdict))]


def _sample_of(decoders: Mapping[str, SpanDecoder | None]) -> Callable[[FinishedRun], list[Block]]:
    """A cleaned sample of a run, from the first rows of its table. ``decoders``: by the path of a table."""

    def section(run: FinishedRun) -> list[Block]:
        for name, path in run.kept_tables().items():
            if (decoder := decoders.get(str(path))) is None:
                continue
            table = next(iter_table(path))
            sample = choose_sample(table["input_ids"], table["is_response"], table["is_kept"], decoder)
            if sample is not None:
                title = f"One conversation, as {labelled(run, name)} cleaned it"
                return [SampleBlock(f"{title}: {table.ids[sample.row]}", tuple(sample.pieces()))]
        return []

    return section


def _training(runs: Sequence[FinishedRun]) -> list[Block]:
    """Loss curves of every final model; for self-evolving cleaning, of all rounds one after another."""
    journals: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        for path in sorted(run.results.glob(f"*/model/{JOURNAL}")) if run.results else ():
            folder = path.parent.parent
            rounds = run.result.get("rounds") if folder.name == SELF_EVOLVING else None
            if lines := _losses(path) if rounds is None else _losses_of_rounds(folder, rounds):
                journals[labelled(run, folder.name)] = lines
    return [loss_curves("training-loss", journals)] if journals else []


def _losses(journal: Path) -> list[tuple[int, float]]:
    """Steps and losses of a training, where the loss is a finite number."""
    lines = ((int(line["step"]), line.get("loss")) for line in read_journal(journal))
    return [(step, loss) for step, loss in lines if isinstance(loss, (int, float)) and isfinite(loss)]


def _losses_of_rounds(folder: Path, rounds: Rounds) -> list[tuple[int, float]]:
    """The steps of every round that led to the output, numbered through."""
    names = [line["model"] for line in rounds["lines"] if "split" in line and not line.get("is_rolled_back")]
    lines: list[tuple[int, float]] = []
    for name in [*names[:-1], "model"]:
        done = lines[-1][0] if lines else 0
        lines += [(done + step, loss) for step, loss in _losses(folder / name / JOURNAL)]
    return lines


def _rounds(run: FinishedRun) -> list[Block]:
    rounds = run.result.get("rounds")
    if not rounds:
        return []
    plots: list[Block] = [rounds_plot(block_name("rounds", run), rounds)]
    agreement = rounds.get("agreement")
    if agreement and len(agreement["models"]) > 1:
        plots.append(agreement_plot(block_name("agreement", run), agreement))
    return plots


def _curation(run: FinishedRun) -> list[Block]:
    folder = next((f for f in (run.results, run.curation) if f is not None and (f / CURATION).is_file()), None)
    if folder is None:
        return []
    document = run.document(folder, CURATION)
    plots = [
        ratings_plot(block_name("ratings", run), document["raters"]),
        transition_plot(block_name("transition", run), document["raters"]),
    ]
    tables = [Table.from_document(table) for table in document["tables"]]
    return [*plots, *table_blocks("curation", tables, run)]
