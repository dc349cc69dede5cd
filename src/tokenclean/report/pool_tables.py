"""Tables of a pool: its statistics (Table 4), what a mixture left out, text it shares with the benchmarks."""

from __future__ import annotations

from pathlib import PurePath

from tokenclean.pool import FILTERS, Contamination, Mixture
from tokenclean.report.tables import Table, csv_text, share_text
from tokenclean.tokens.statistics import PoolStatistics

_COLUMNS = ("source", "rows", "prompt", "completion", "overall", "of rows", "of response")
_FILTER_COLUMNS = {
    "length": "length",
    "contamination": "contamination",
    "exact_duplicate": "exact",
    "near_duplicate": "near",
    "not_drawn": "not drawn",
}
"""Filter -> its column; a terminal of 80 columns holds all of them."""
_MIXTURE_NOTE = "left out by each filter, in the order in which they were applied; exact, near: duplicates"
_SHOWN_CHARACTERS = 60


def statistics_table(statistics: PoolStatistics, model: str) -> Table:
    """The paper's Table 4. ``model``: whose tokens are counted, a Hub id or a folder; the title has its last part.

    Prompt, completion and overall are mean tokens a row. The last line is all sources, where there are several.
    """
    total = statistics.total
    lines = [*statistics.sources, *([total] if len(statistics.sources) != 1 else [])]
    notes = [
        "prompt, completion and overall: mean tokens a row; prompt: every token that is not a training target",
        "of response: share of the pool's response tokens",
    ]
    if total.cut:
        notes.append(f"{total.cut:,} rows cut at the maximum length")
    if total.without_target:
        notes.append(f"{total.without_target:,} rows without a response token left out")
    rows = tuple(
        (
            line.source,
            f"{line.rows:,}",
            *(f"{mean:,.1f}" for mean in (line.mean_prompt, line.mean_response, line.mean_overall)),
            share_text(statistics.share_of_rows(line)),
            share_text(statistics.share_of_response(line)),
        )
        for line in lines
    )
    return Table(f"Statistics of the pool, in tokens of {PurePath(model).name}", _COLUMNS, rows, "; ".join(notes))


def statistics_csv(statistics: PoolStatistics) -> str:
    """The statistics as CSV: a line a source and one for all, numbers unrounded."""
    columns = ("source", "rows", "prompt_tokens", "response_tokens", "mean_prompt", "mean_response", "mean_overall")
    rows = [
        (
            *(getattr(line, column) for column in columns),
            *(statistics.share_of_rows(line), statistics.share_of_response(line)),
        )
        for line in (*statistics.sources, statistics.total)
    ]
    return csv_text((*columns, "share_of_rows", "share_of_response_tokens"), rows)


def mixture_table(mixture: Mixture) -> Table:
    """By source: the usable rows, those that each filter left out, and those taken."""
    filters = [name for name in FILTERS if name in mixture.removed_by_filter]
    columns = ("source", "usable", *(_FILTER_COLUMNS[name] for name in filters), "taken")
    rows = [
        (c.source, f"{c.rows:,}", *(f"{c.removed.get(name, 0):,}" for name in filters), f"{c.taken:,}")
        for c in mixture.sources
    ]
    if len(rows) > 1:
        removed = (f"{mixture.removed_by_filter[name]:,}" for name in filters)
        rows.append(("all", f"{sum(c.rows for c in mixture.sources):,}", *removed, f"{len(mixture.pool):,}"))
    return Table("Rows of the pool", columns, tuple(rows), _MIXTURE_NOTE)


def contamination_table(contamination: Contamination, action: str) -> Table:
    """By benchmark: its texts, those found in the pool, the rows that contain them, and the most frequent n-gram.

    ``action``: what was done with the rows, ``remove`` or ``report``.
    """
    columns = ("benchmark", "texts", "too short", "texts found", "rows", "n-gram that most of these rows begin with")
    rows = tuple(
        (
            b.benchmark,
            f"{b.texts:,}",
            f"{b.short:,}",
            f"{b.found:,}",
            f"{b.rows:,}",
            f"{_head(b.commonest)} ({b.commonest_rows:,})" if b.rows else "–",
        )
        for b in contamination.benchmarks
    )
    count = len({overlap.row for overlap in contamination.overlaps})
    notes = [f"{count:,} rows in all, {'left out' if action == 'remove' else 'only reported'}"]
    if contamination.unchecked:
        notes.append(f"{contamination.unchecked:,} tokenized rows could not be compared")
    title = "Text that the pool shares with the benchmarks"
    return Table(title, columns, rows, "; ".join(notes), text_columns=(0, 5))


def _head(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
