"""Plots of a sweep: each cell's held-out difference and benchmark average, over one numeric key or cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import yaml

from tokenclean.report.plots.style import FAINT, WIDE, Plot, bars_of, draw, legend_below, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SweptCell(TypedDict):
    """A cell in a sweep's JSON. ``settings``: key=value of each axis; ``heldout``: ``difference``, ``low`` and ``high``
    against the base, nats; ``average``: ``value`` and ``error``, fractions of 1."""

    name: str
    settings: Sequence[str]
    heldout: Mapping[str, float] | None
    average: Mapping[str, float] | None


def sweep_plots(name: str, cells: Sequence[SweptCell], base: Mapping[str, float] | None = None) -> list[Plot]:
    """Held-out differences and benchmark averages of the cells that have them, each only where some cell does.

    ``base``: the base's average.
    """
    settings = {cell["name"]: cell["settings"] for cell in cells}
    plots = []
    heldout = {cell["name"]: (d["difference"], d["low"], d["high"]) for cell in cells if (d := cell["heldout"])}
    if heldout:
        best = min(heldout, key=lambda cell: heldout[cell][0])
        title = f"Held-out loss is lowest at {best}: {heldout[best][0]:+.4f} nats against the base"
        note = "Held-out loss minus the base's, nats a response token; below 0 is better. Bars: 95 % intervals."
        plots.append(_plot(f"{name}-held-out", title, note, heldout, settings, "minus base (nats)", 0.0))
    averages = {}
    for cell in cells:
        if average := cell["average"]:
            value, error = 100 * average["value"], 100 * average["error"]
            averages[cell["name"]] = (value, value - error, value + error)
    if averages:
        best = max(averages, key=lambda cell: averages[cell][0])
        title = f"The benchmarks' average is highest at {best}: {averages[best][0]:.2f}"
        note = "Average score × 100. Bars: plus and minus one standard error, over items."
        line = None if base is None else 100 * base["value"]
        if line is not None:
            note += f" Grey line: the base, {line:.2f}."
        label = "average × 100,\n± its standard error"
        plots.append(_plot(f"{name}-average", title, note, averages, settings, label, line))
    return plots


def _plot(
    name: str,
    title: str,
    note: str,
    intervals: Mapping[str, tuple[float, float, float]],
    settings: Mapping[str, Sequence[str]],
    label: str,
    base: float | None,
) -> Plot:
    """``intervals``: cell -> value, low, high; ``settings``: cell -> its key=value pairs."""
    keys, numbers = _axis([settings[cell] for cell in intervals])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = numbers or list(range(len(intervals)))
        axes.errorbar(
            places,
            [value for value, _, _ in intervals.values()],
            yerr=bars_of(intervals.values()),
            fmt="o",
            linestyle="-" if numbers else "none",
            capsize=3,
            color=series_style(0)["color"],
        )
        if base is not None:
            axes.axhline(base, color=FAINT, linewidth=0.8, label="base")
            legend_below(figure)
        axes.set_ylabel(label)
        if numbers:
            axes.set_xlabel(keys[0])
        else:
            axes.set_xticks(places, list(intervals), rotation=25, ha="right")

    rows = [(cell, *interval) for cell, interval in intervals.items()]
    return draw(name, title, note, ("cell", "value", "low", "high"), rows, paint, size=(WIDE, 3.0))


def _axis(settings: Sequence[Sequence[str]]) -> tuple[list[str], list[float]]:
    """Key and value of each cell, where there is one axis and all its values are numbers; else nothing."""
    pairs = [setting[0].partition("=") for setting in settings if len(setting) == 1]
    values = [yaml.safe_load(value) for _, _, value in pairs]
    if len(pairs) < len(settings) or not all(isinstance(value, (int, float)) for value in values):
        return [], []
    return [key for key, _, _ in pairs], values
