"""Plots of what selections kept: scores with the cut, and kept shares by source, turn and position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenclean.report.plots.style import DROPPED, FAINT, INK, KEPT, WIDE, Plot, draw, legend_below, series_style
from tokenclean.report.selection_statistics import ScoreHistogram, SelectionSummary, Share
from tokenclean.report.tables import share_text

_MOST_SOURCES = 6
_MOST_SOURCES_IN_A_ROW_OF_DOTS = 20
_LEAST_TOKENS = 20
"""Of a group that a sentence may name as the highest or lowest."""


def score_histogram(name: str, label: str, summary: SelectionSummary, thresholds: Sequence[float]) -> Plot:
    """All scores of a selection, kept and dropped, with its cuts; for a summary that has a histogram."""
    histogram = summary.histogram
    assert histogram is not None
    scored = int(histogram.kept.sum() + histogram.dropped.sum())
    below_zero = _share_below_zero(histogram)
    note = _histogram_note(histogram, thresholds)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        _stack(axes, histogram)
        for threshold in thresholds:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.set_xlabel("score: loss of the base − loss of the reference (nats)")
        axes.set_ylabel("response tokens")
        legend_below(figure)

    title = (
        f"{label}: {share_text(summary.total.value)} of {summary.total.tokens:,} response tokens are kept; the "
        f"reference is worse than the base on {below_zero} of the {scored:,} scored"
    )
    edges = histogram.edges
    rows = zip(
        edges[:-1].tolist(), edges[1:].tolist(), histogram.kept.tolist(), histogram.dropped.tolist(), strict=True
    )
    return draw(name, title, note, ("score_from", "score_to", "kept", "dropped"), rows, paint)


def source_histograms(name: str, label: str, summary: SelectionSummary, thresholds: Sequence[float]) -> Plot | None:
    """The same, one a source, of the largest; None where there is one source."""
    ordered = sorted(summary.source_histograms, key=lambda source: -summary.by_source[source].tokens)
    sources = ordered[:_MOST_SOURCES]
    if len(ordered) < 2:
        return None
    across = 3 if len(sources) > 2 else 2
    down = -(-len(sources) // across)

    def paint(figure: Any) -> None:
        grid = figure.subplots(down, across, sharex=True, squeeze=False)
        for axes, source in zip(grid.flat, sources, strict=False):
            _stack(axes, summary.source_histograms[source])
            for threshold in thresholds:
                axes.axvline(threshold, color=INK, linewidth=0.8, linestyle="--")
            axes.set_title(f"{_short(source)}: {share_text(summary.by_source[source].value)} kept")
        for axes in list(grid.flat)[len(sources) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("score (nats)")
        for line in grid:
            line[0].set_ylabel("response tokens")
        legend_below(figure)

    title = f"{label}: {_extremes(summary.by_source, 'of {} most is kept', 'of {} least')}"
    note = "Each source with a scale of its own; the cut is that of the whole pool where a dashed line stands."
    if len(ordered) > len(sources):
        note += f" The {len(sources)} sources with most tokens, of {len(ordered)}."
    rows = [
        (source, *values)
        for source in ordered
        for h in [summary.source_histograms[source]]
        for values in zip(h.edges[:-1].tolist(), h.edges[1:].tolist(), h.kept.tolist(), h.dropped.tolist(), strict=True)
    ]
    columns = ("source", "score_from", "score_to", "kept", "dropped")
    return draw(name, title, note, columns, rows, paint, size=(WIDE, 1.1 + 1.7 * down))


def shares_by_source(name: str, selections: Sequence[tuple[str, SelectionSummary]]) -> Plot:
    """Kept share of each source under each selection, as dots."""
    first = selections[0][1]
    tokens: dict[str, int] = {}
    for _, summary in selections:
        for source, share in summary.by_source.items():
            tokens[source] = max(tokens.get(source, 0), share.tokens)
    ordered = sorted(tokens, key=lambda source: -tokens[source])
    shown = ordered[:_MOST_SOURCES_IN_A_ROW_OF_DOTS]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(shown))[::-1]
        offsets = np.linspace(0.22, -0.22, len(selections)) if len(selections) > 1 else np.zeros(1)
        for number, ((label, summary), offset) in enumerate(zip(selections, offsets, strict=True)):
            values = [100 * summary.by_source[s].value if s in summary.by_source else np.nan for s in shown]
            style = series_style(number) | {"linestyle": "none"}
            axes.plot(values, places + offset, label=label, **style)
        axes.set_yticks(places, [f"{_short(source, 28)} ({tokens[source]:,})" for source in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("kept share of the source's response tokens (%)")
        legend_below(figure)

    if len(first.by_source) > 1:
        sentence = _extremes(first.by_source, "of {} most is kept", "of {} least")
        title = f"{selections[0][0]}: {sentence}"
    else:
        title = f"{selections[0][0]} keeps {share_text(first.total.value)} of the one source"
    note = "In brackets the source's response tokens." + (
        f" The {len(shown)} largest of {len(ordered)} sources." if len(ordered) > len(shown) else ""
    )
    height = 1.2 + len(shown) * max(0.28, 0.1 * len(selections))
    return _shares_plot(name, title, note, "source", selections, lambda s: s.by_source, paint, height)


def shares_by_position(name: str, selections: Sequence[tuple[str, SelectionSummary]]) -> Plot:
    """Kept share over the position in the answer, one line a selection."""
    first = selections[0]
    sentence = _extremes(first[1].by_position, "at position {} of an answer most is kept", "at position {} least")
    return _lines(
        name,
        f"{first[0]}: {sentence}",
        "Positions count the training targets of an answer from 1, in groups that double.",
        "position in the answer (tokens)",
        "position",
        selections,
        lambda summary: summary.by_position,
    )


def shares_by_turn(name: str, selections: Sequence[tuple[str, SelectionSummary]]) -> Plot | None:
    """Kept share over the answers of a conversation; None where every conversation has one."""
    first = selections[0]
    if max(len(summary.by_turn) for _, summary in selections) < 2:
        return None
    sentence = _extremes(first[1].by_turn, "in answer {} of a conversation most is kept", "in answer {} least")
    return _lines(
        name,
        f"{first[0]}: {sentence}",
        "Answers of a conversation, counted from 1.",
        "answer of the conversation",
        "turn",
        selections,
        lambda summary: summary.by_turn,
    )


def _lines(
    name: str,
    title: str,
    note: str,
    axis: str,
    column: str,
    selections: Sequence[tuple[str, SelectionSummary]],
    shares: Callable[[SelectionSummary], dict[str, Share]],
) -> Plot:
    groups = list(max((shares(summary) for _, summary in selections), key=len))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, (label, summary) in enumerate(selections):
            found = shares(summary)
            values = [100 * found[group].value if group in found else np.nan for group in groups]
            axes.plot(range(len(groups)), values, label=label, **series_style(number))
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlabel(axis)
        axes.set_ylabel("kept share (%)")
        legend_below(figure)

    return _shares_plot(name, title, note, column, selections, shares, paint, 2.9)


def _shares_plot(
    name: str,
    title: str,
    note: str,
    column: str,
    selections: Sequence[tuple[str, SelectionSummary]],
    shares: Callable[[SelectionSummary], dict[str, Share]],
    paint: Callable[[Any], None],
    height: float,
) -> Plot:
    rows = [
        (label, group, share.tokens, share.kept, share.value)
        for label, summary in selections
        for group, share in shares(summary).items()
    ]
    columns = ("selection", column, "response_tokens", "kept_tokens", "kept_share")
    return draw(name, title, note, columns, rows, paint, size=(WIDE, height))


def _stack(axes: Any, histogram: ScoreHistogram) -> None:
    whole = histogram.kept + histogram.dropped
    axes.stairs(whole, histogram.edges, fill=True, color=DROPPED, label="dropped")
    axes.stairs(histogram.kept, histogram.edges, fill=True, color=KEPT, label="kept")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _histogram_note(histogram: ScoreHistogram, thresholds: Sequence[float]) -> str:
    notes = [
        "Kept tokens stand below, dropped ones on top of them; the first and the last bar hold all that lies beyond."
    ]
    if thresholds:
        told = ", ".join(f"{threshold:+.4f}" for threshold in thresholds)
        notes.append(f"Dashed: the lowest kept score, {told} nats{' (a cut a split)' if len(thresholds) > 1 else ''}.")
    if histogram.unscored:
        notes.append(f"{histogram.unscored:,} response tokens have no score.")
    return " ".join(notes)


def _share_below_zero(histogram: ScoreHistogram) -> str:
    whole = histogram.kept + histogram.dropped
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    share = whole[middles < 0].sum() / max(1, whole.sum())
    return f"about {share:.0%}"


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
