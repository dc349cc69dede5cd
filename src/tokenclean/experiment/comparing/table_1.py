"""The paper's Table 1 from a comparison: scores with standard errors, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from tokenclean.evaluation.comparison import Comparison, Difference, Score
from tokenclean.evaluation.significance import points
from tokenclean.evaluation.tasks import benchmark_named
from tokenclean.recipe.strategies import STRATEGY_NAMES
from tokenclean.report.published_tables import published, published_row
from tokenclean.report.tables import Cell, Table, csv_text

AVERAGE = "Avg"

_VALUE_COLUMNS = (
    *("strategy", "task", "items", "seeds", "score", "standard_error"),
    *("minus", "difference", "low_95", "high_95", "p", "holm_p", "items_differing", "is_real"),
)


def table_1(comparison: Comparison) -> Table:
    """A column a task, in the comparison's order, and the average; a row a strategy, then one a difference.

    Scores × 100 with two decimals and their standard error, the best of a column in bold and the second-best
    underlined: by the printed digits, so that ties share a mark. Differences in points with half the width of their
    95 % interval; a star where they are real.
    """
    names = [STRATEGY_NAMES.get(strategy, strategy) for strategy in comparison.strategies]
    columns = [_marked([comparison.scores[s][task] for s in comparison.strategies]) for task in comparison.tasks]
    columns.append(_marked([comparison.averages[s] for s in comparison.strategies]))
    rows: list[tuple[str | Cell, ...]] = list(zip(names, *columns, strict=True))
    for strategy, against in comparison.differences.items():
        differences = [*(against.tasks[task] for task in comparison.tasks), against.average]
        rows.append((STRATEGY_NAMES.get(strategy, strategy), *map(_difference, differences)))
    control = STRATEGY_NAMES.get(comparison.control, comparison.control)
    return Table(
        title="Score × 100, ± its standard error",
        columns=("Model", *task_titles(comparison), AVERAGE),
        rows=tuple(rows),
        note=_note(comparison, control),
        sections={len(names): f"minus {control}"} if comparison.differences else {},
    )


def task_titles(comparison: Comparison) -> list[str]:
    """How the paper's columns are headed. XQuAD is not TyDi QA and goes by its own name."""
    return [benchmark_named(task).title for task in comparison.tasks]


def beside_paper(comparison: Comparison, base_model: str, proportion: float) -> Table | None:
    """Ours beside the paper's, as ``ours | theirs``: a line a strategy that the paper trained on this base model.

    Scores × 100; the paper's averages are recomputed, and faults of what is shown are listed below. None where the
    paper prints nothing about the model.
    """
    rows, faults = [], dict[str, None]()
    for strategy in comparison.strategies:
        row = published_row(base_model, strategy, proportion=proportion)
        average = row and row.average
        if row is None or average is None:
            continue
        cells = []
        for task in comparison.tasks:
            number = row.score(task)
            printed = number.printed if number else "–"
            cells.append(f"{100 * comparison.scores[strategy][task].value:.2f} | {printed}")
            faults |= dict.fromkeys(number.faults if number else ())
        cells.append(f"{100 * comparison.averages[strategy].value:.2f} | {average.value:.2f}")
        faults |= dict.fromkeys(average.faults)
        rows.append((STRATEGY_NAMES.get(strategy, strategy), *cells))
    if not rows:
        return None
    source = published().citation
    return Table(
        "Ours | the paper's",
        ("Model", *task_titles(comparison), AVERAGE),
        tuple(rows),
        " ".join([f"{source}; its averages recomputed over its seven tasks, ours over those shown.", *faults]),
    )


def table_1_values(comparison: Comparison) -> str:
    """All of it unrounded, as CSV with a line for each strategy and task, and one for its average (task ``average``).

    Scores and differences as fractions of 1; the control has no difference, and ``holm_p`` is that of averages.
    """
    lines: list[list[object]] = []
    for strategy in comparison.strategies:
        against = comparison.differences.get(strategy)
        for task in (*comparison.tasks, None):
            score = comparison.averages[strategy] if task is None else comparison.scores[strategy][task]
            items = sum(comparison.items.values()) if task is None else comparison.items[task]
            line = [strategy, task or "average", items, len(comparison.seeds), score.value, score.error]
            if against is None:
                line += [""] * 8
            else:
                d = against.average if task is None else against.tasks[task]
                adjusted = against.holm_p if task is None else ""
                line += [comparison.control, d.value, d.low, d.high, d.p, adjusted, d.items_differing, int(d.is_real)]
            lines.append(line)
    return csv_text(_VALUE_COLUMNS, lines)


def _marked(scores: Sequence[Score]) -> list[Cell]:
    printed = [f"{100 * score.value:.2f}" for score in scores]
    ranked = sorted(set(printed), key=float, reverse=True)
    marks = dict(zip(ranked[:2], ("best", "second"), strict=True)) if len(ranked) > 1 else {}
    return [
        Cell(text, mark=marks.get(text, ""), small=f"±{100 * score.error:.2f}")
        for text, score in zip(printed, scores, strict=True)
    ]


def _difference(difference: Difference) -> Cell:
    star = "*" if difference.is_real else ""
    return Cell(points(difference.value), small=f"±{100 * difference.half_width:.2f}{star}")


def _note(comparison: Comparison, control: str) -> str:
    seeds = len(comparison.seeds)
    over = "One seed; all errors are over items, for the models of this seed alone"
    if seeds > 1:
        over = f"Mean of {seeds} seeds; all errors are over items and seeds"
    marks = ". Best of a column in bold, second-best underlined" if len(comparison.strategies) > 1 else ""
    below = (
        f". Below, paired differences from {control}, in points, ± half the 95 % interval; *: real, if it were the "
        "only one compared"
    )
    return f"{over}{marks}{below if comparison.differences else ''}."
