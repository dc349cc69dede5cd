"""Plots of curated ratings (DS²): labels before and after correction, and how each rater errs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from tokenclean.report.plots.style import DROPPED, KEPT, WIDE, Plot, draw, legend_below
from tokenclean.report.plots.trainings import heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RaterFigures(TypedDict):
    """A rater in a curation's JSON. ``before``, ``after``: rows by class, before and after correction; ``matrix``:
    score transition matrix; ``noise_rate``: share of rows rated wrong."""

    rater: str
    before: Sequence[int]
    after: Sequence[int]
    matrix: Sequence[Sequence[float]]
    noise_rate: float


def ratings_plot(name: str, raters: Sequence[RaterFigures]) -> Plot:
    """Rows by class before and after correction, one panel a rater."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(raters), sharey=True, squeeze=False)[0]
        for axes, rater in zip(panels, raters, strict=True):
            places = np.arange(len(rater["before"]))
            axes.bar(places - 0.2, rater["before"], width=0.38, color=DROPPED, label="before correction")
            axes.bar(places + 0.2, rater["after"], width=0.38, color=KEPT, label="after")
            axes.set_xticks(places)
            axes.set_title(rater["rater"])
            axes.set_xlabel("class")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panels[0].set_ylabel("rows")
        legend_below(figure)

    first = raters[0]
    change = np.array(first["after"]) - np.array(first["before"])
    up, down = int(np.argmax(change)), int(np.argmin(change))
    title = f"{first['rater']}: " + (
        f"correction moves rows most into class {up} ({change[up]:+,}) and out of class {down} ({change[down]:+,})"
        if change.any()
        else "correction leaves every class as large as it was"
    )
    note = "Classes of quality from 0 to 5; the first rater selects."
    rows = [
        (rater["rater"], label, before, after)
        for rater in raters
        for label, (before, after) in enumerate(zip(rater["before"], rater["after"], strict=True))
    ]
    return draw(name, title, note, ("rater", "class", "rows_before", "rows_after"), rows, paint)


def transition_plot(name: str, raters: Sequence[RaterFigures]) -> Plot:
    """Score transition matrices as heat maps."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(raters), squeeze=False)[0]
        for axes, rater in zip(panels, raters, strict=True):
            labels = [str(label) for label in range(len(rater["matrix"]))]
            heat_map(axes, np.array(rater["matrix"]), labels, labels)
            axes.set_title(f"{rater['rater']}: {rater['noise_rate']:.0%} wrong")
            axes.set_xlabel("rated")
        panels[0].set_ylabel("true class")

    order = sorted(raters, key=lambda rater: rater["noise_rate"])
    best, worst = order[0], order[-1]
    title = f"{best['rater']} is estimated to rate {best['noise_rate']:.0%} of the rows wrong"
    if len(raters) > 1:
        title += f", the fewest, {worst['rater']} {worst['noise_rate']:.0%}, the most"
    note = (
        "P(rated i | true k), estimated from how often neighbours agree; rows sum to 1, a rater without error has 1 "
        "on the diagonal."
    )
    rows = [
        (rater["rater"], true, rated, value)
        for rater in raters
        for true, line in enumerate(rater["matrix"])
        for rated, value in enumerate(line)
    ]
    width = max(WIDE * 0.6, 2.55 * len(raters))
    return draw(name, title, note, ("rater", "true", "rated", "probability"), rows, paint, size=(width, 2.9))
