"""Plots of what selections kept: scores with the cut, and kept shares by source, turn and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.report.plots.style import DROPPED, FAINT, INK, KEPT, WIDE, Plot, draw, legend_below, series_style
from tokenclean.report.selection_statistics import ScoreHistogram, SelectionSummary, Share
from tokenclean.report.tables import share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Selections = Sequence[tuple[str, SelectionSummary]]
"""Selections to compare, each with its label."""

_Shares = Sequence[tuple[str, dict[str, Share]]]
"""Kept shares by group, of each selection."""

_MOST_SOURCES = 6
_MOST_SOURCES_IN_A_ROW_OF_DOTS = 20
_LEAST_TOKENS = 20
"""Fewest tokens of a group that a sentence may name as the highest or lowest."""


def score_histogram(name: str, label: str, summary: SelectionSummary, thresholds: Sequence[float]) -> Plot:
    """All scores of a selection, kept and dropped, with its cuts; for a summary that has a histogram."""
    histogram = summary.histogram
    assert histogram is not None
    whole = histogram.kept + histogram.dropped
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    below_zero = whole[middles < 0].sum() / max(1, whole.sum())

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _stack(axes, histogram)
        for threshold in thresholds:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.set_xlabel("score: loss of the base − loss of the reference (nats)")
        axes.set_ylabel("response tokens")
        legend_below(figure)

    title = (
        f"{label}: {share_text(summary.total.value)} of {summary.total.tokens:,} response tokens are kept; the "
        f"reference is worse than the base on about {below_zero:.0%} of the {whole.sum():,} scored"
    )
    return draw(name, title, _histogram_note(histogram, thresholds), _BIN_COLUMNS, _bins(histogram), paint)


def source_histograms(name: str, label: str, summary: SelectionSummary, thresholds: Sequence[float]) -> Plot | None:
    """Scores by source, a panel for each of the largest; None where there is only one source."""
    ordered = sorted(summary.source_histograms, key=lambda source: -summary.by_source[source].tokens)
    sources = ordered[:_MOST_SOURCES]
    if len(ordered) < 2:
        return None
    across = 3 if len(sources) > 2 else 2
    down = -(-len(sources) // across)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(down, across, sharex=True, squeeze=False)
        for axes, source in zip(grid.flat, sources, strict=False):
            _stack(axes, summary.source_histograms[source])
            for threshold in thresholds:
                axes.axvline(threshold, color=INK, linewidth=0.8, linestyle="--")
            axes.set_title(f"{_short(source)}: {share_text(summary.by_source[source].value)} kept")
        for axes in grid.flat[len(sources) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("score (nats)")
        for line in grid:
            line[0].set_ylabel("response tokens")
        legend_below(figure)

    title = f"{label}: {_extremes(summary.by_source, 'of {} most is kept', 'of {} least')}"
    note = "Each source has its own scale; a dashed line is the cut of the whole pool."
    if len(ordered) > len(sources):
        note += f" The {len(sources)} sources with most tokens, of {len(ordered)}."
    rows = [(source, *values) for source in ordered for values in _bins(summary.source_histograms[source])]
    return draw(name, title, note, ("source", *_BIN_COLUMNS), rows, paint, size=(WIDE, 1.1 + 1.7 * down))


def shares_by_source(name: str, selections: Selections) -> Plot:
    """Kept share of each source under each selection, as dots."""
    shares = [(label, summary.by_source) for label, summary in selections]
    tokens: dict[str, int] = {}
    for _, of_sources in shares:
        for source, share in of_sources.items():
            tokens[source] = max(tokens.get(source, 0), share.tokens)
    ordered = sorted(tokens, key=lambda source: -tokens[source])
    shown = ordered[:_MOST_SOURCES_IN_A_ROW_OF_DOTS]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(shown))[::-1]
        offsets = np.linspace(0.22, -0.22, len(shares)) if len(shares) > 1 else np.zeros(1)
        for number, ((label, of_sources), offset) in enumerate(zip(shares, offsets, strict=True)):
            style = series_style(number, linestyle="none")
            axes.plot(_percent(of_sources, shown), places + offset, label=label, **style)
        axes.set_yticks(places, [f"{_short(source, 28)} ({tokens[source]:,})" for source in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("kept share of the source's response tokens (%)")
        legend_below(figure)

    label, first = selections[0]
    if len(first.by_source) > 1:
        title = f"{label}: {_extremes(first.by_source, 'of {} most is kept', 'of {} least')}"
    else:
        title = f"{label} keeps {share_text(first.total.value)} of the one source"
    note = "In brackets the source's response tokens."
    note += f" The {len(shown)} largest of {len(ordered)} sources." if len(ordered) > len(shown) else ""
    height = 1.2 + len(shown) * max(0.28, 0.1 * len(selections))
    return _shares_plot(name, title, note, "source", shares, paint, height)


def shares_by_position(name: str, selections: Selections) -> Plot:
    """Kept share over the position in the answer, one line a selection."""
    shares = [(label, summary.by_position) for label, summary in selections]
    extremes = ("at position {} of an answer most is kept", "at position {} least")
    note = "Positions count the training targets of an answer from 1, in groups that double."
    return _lines(name, "position", shares, "position in the answer (tokens)", extremes, note)


def shares_by_turn(name: str, selections: Selections) -> Plot | None:
    """Kept share over the answers of a conversation; None where every conversation has one."""
    shares = [(label, summary.by_turn) for label, summary in selections]
    if max(len(by_turn) for _, by_turn in shares) < 2:
        return None
    extremes = ("in answer {} of a conversation most is kept", "in answer {} least")
    note = "Answers of a conversation, counted from 1."
    return _lines(name, "turn", shares, "answer of the conversation", extremes, note)


def _lines(name: str, column: str, shares: _Shares, axis: str, extremes: tuple[str, str], note: str) -> Plot:
    groups = list(max((of_groups for _, of_groups in shares), key=len))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (label, of_groups) in enumerate(shares):
            axes.plot(range(len(groups)), _percent(of_groups, groups), label=label, **series_style(number))
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlabel(axis)
        axes.set_ylabel("kept share (%)")
        legend_below(figure)

    label, first = shares[0]
    return _shares_plot(name, f"{label}: {_extremes(first, *extremes)}", note, column, shares, paint, 2.9)


def _shares_plot(
    name: str,
    title: str,
    note: str,
    column: str,
    shares: _Shares,
    paint: Callable[[Figure], None],
    height: float,
) -> Plot:
    rows = [
        (label, group, share.tokens, share.kept, share.value)
        for label, of_groups in shares
        for group, share in of_groups.items()
    ]
    columns = ("selection", column, "response_tokens", "kept_tokens", "kept_share")
    return draw(name, title, note, columns, rows, paint, size=(WIDE, height))


def _percent(shares: dict[str, Share], groups: Sequence[str]) -> list[float]:
    """Kept percent of each group, NaN for one without tokens."""
    return [100 * shares[group].value if group in shares else np.nan for group in groups]


_BIN_COLUMNS = ("score_from", "score_to", "kept", "dropped")


def _bins(histogram: ScoreHistogram) -> Iterator[tuple[float, float, int, int]]:
    edges = histogram.edges.tolist()
    return zip(edges[:-1], edges[1:], histogram.kept.tolist(), histogram.dropped.tolist(), strict=True)


def _stack(axes: Axes, histogram: ScoreHistogram) -> None:
    whole = histogram.kept + histogram.dropped
    axes.stairs(whole, histogram.edges, fill=True, color=DROPPED, label="dropped")
    axes.stairs(histogram.kept, histogram.edges, fill=True, color=KEPT, label="kept")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _histogram_note(histogram: ScoreHistogram, thresholds: Sequence[float]) -> str:
    notes = ["Kept tokens below, dropped ones stacked on them; the first and the last bar include all beyond them."]
    if thresholds:
        cuts = ", ".join(f"{threshold:+.4f}" for threshold in thresholds)
        notes.append(f"Dashed: the lowest kept score, {cuts} nats{' (a cut a split)' if len(thresholds) > 1 else ''}.")
    if histogram.unscored:
        notes.append(f"{histogram.unscored:,} response tokens have no score.")
    return " ".join(notes)


def _extremes(shares: dict[str, Share], highest: str, lowest: str) -> str:
    """``of a most is kept (72.0%), of b least (41.0%)``: among the groups with enough tokens to say so."""
    large = {name: share for name, share in shares.items() if share.tokens >= _LEAST_TOKENS} or shares
    top = max(large, key=lambda name: large[name].value)
    bottom = min(large, key=lambda name: large[name].value)
    if large[top].value == large[bottom].value:
        return f"{share_text(large[top].value)} is kept everywhere"
    return (
        f"{highest.format(top)} ({share_text(large[top].value)}), {lowest.format(bottom)} "
        f"({share_text(large[bottom].value)})"
    )


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
