"""Plots of curated ratings (DS²): labels before and after correction, and how each rater errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenclean.report.plots.style import DROPPED, KEPT, WIDE, Plot, draw, legend_below
from tokenclean.report.plots.trainings import heat_map


def ratings_plot(name: str, raters: Sequence[Mapping[str, Any]]) -> Plot:
    """Rows by class before and after correction, a part of the figure for each rater.

    ``raters``: each with ``rater``, ``before`` and ``after`` (rows by class).
    """

    def paint(figure: Any) -> None:
        parts = figure.subplots(1, len(raters), sharey=True, squeeze=False)[0]
        for axes, told in zip(parts, raters, strict=True):
            places = np.arange(len(told["before"]))
            axes.bar(places - 0.2, told["before"], width=0.38, color=DROPPED, label="before correction")
            axes.bar(places + 0.2, told["after"], width=0.38, color=KEPT, label="after")
            axes.set_xticks(places)
            axes.set_title(told["rater"])
            axes.set_xlabel("class")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        parts[0].set_ylabel("rows")
        legend_below(figure)

    first = raters[0]
    change = np.array(first["after"]) - np.array(first["before"])
    up, down = int(np.argmax(change)), int(np.argmin(change))
    title = (
        f"{first['rater']}: correction moves rows most into class {up} ({change[up]:+,}) and out of class {down} "
        f"({change[down]:+,})"
        if change.any()
        else f"{first['rater']}: correction leaves every class as large as it was"
    )
    note = "Classes of quality from 0 to 5; the first rater selects."
    rows = [
        (told["rater"], label, before, after)
        for told in raters
        for label, (before, after) in enumerate(zip(told["before"], told["after"], strict=True))
    ]
    return draw(name, title, note, ("rater", "class", "rows_before", "rows_after"), rows, paint)


def transition_plot(name: str, raters: Sequence[Mapping[str, Any]]) -> Plot:
    """Score transition matrices as heat maps. ``raters``: each with ``rater``, ``matrix`` and ``noise_rate``."""

    def paint(figure: Any) -> None:
        parts = figure.subplots(1, len(raters), squeeze=False)[0]
        for axes, told in zip(parts, raters, strict=True):
            labels = [str(label) for label in range(len(told["matrix"]))]
            heat_map(axes, np.array(told["matrix"]), labels, labels)
            axes.set_title(f"{told['rater']}: {told['noise_rate']:.0%} wrong")
            axes.set_xlabel("rated")
        parts[0].set_ylabel("true class")

    order = sorted(raters, key=lambda told: told["noise_rate"])
    best, worst = order[0], order[-1]
    title = f"{best['rater']} is estimated to rate {best['noise_rate']:.0%} of the rows wrong"
    if len(raters) > 1:
        title += f", the fewest, {worst['rater']} {worst['noise_rate']:.0%}, the most"
    note = (
        "P(rated i | true k), estimated from how often neighbours agree; rows sum to 1, a rater without error has 1 "
        "on the diagonal."
    )
    rows = [
        (told["rater"], true, rated, value)
        for told in raters
        for true, line in enumerate(told["matrix"])
        for rated, value in enumerate(line)
    ]
    width = max(WIDE * 0.6, 2.55 * len(raters))
    return draw(name, title, note, ("rater", "true", "rated", "probability"), rows, paint, size=(width, 2.9))
