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
    plots = []
    heldout = [(cell, difference) for cell in cells if (difference := cell["heldout"])]
    if heldout:
        best, lowest = min(heldout, key=lambda pair: pair[1]["difference"])
        title = f"Held-out loss is lowest at {best['name']}: {lowest['difference']:+.4f} nats against the base"
        note = "Held-out loss minus the base's, nats a response token; below 0 is better. Bars: 95 % intervals."
        values = [(cell, (d["difference"], d["low"], d["high"])) for cell, d in heldout]
        plots.append(_plot(f"{name}-held-out", title, note, values, "minus base (nats)", 0.0))
    averages = [(cell, average) for cell in cells if (average := cell["average"])]
    if averages:
        best, highest = max(averages, key=lambda pair: pair[1]["value"])
        title = f"The benchmarks' average is highest at {best['name']}: {100 * highest['value']:.2f}"
        note = "Average score × 100. Bars: plus and minus one standard error, over items."
        line = None if base is None else 100 * base["value"]
        if line is not None:
            note += f" Grey line: the base, {line:.2f}."
        values = []
        for cell, average in averages:
            value, error = 100 * average["value"], 100 * average["error"]
            values.append((cell, (value, value - error, value + error)))
        label = "average × 100,\n± its standard error"
        plots.append(_plot(f"{name}-average", title, note, values, label, line))
    return plots


def _plot(
    name: str,
    title: str,
    note: str,
    values: Sequence[tuple[SweptCell, tuple[float, float, float]]],
    label: str,
    base: float | None,
) -> Plot:
    names, intervals = [cell["name"] for cell, _ in values], [interval for _, interval in values]
    numbers = _numbers([cell["settings"] for cell, _ in values])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = numbers if numbers is not None else list(range(len(values)))
        axes.errorbar(
            places,
            [value for value, _, _ in intervals],
            yerr=bars_of(intervals),
            fmt="o",
            linestyle="none" if numbers is None else "-",
            capsize=3,
            color=series_style(0)["color"],
        )
        if base is not None:
            axes.axhline(base, color=FAINT, linewidth=0.8, label="base")
            legend_below(figure)
        axes.set_ylabel(label)
        if numbers is not None:
            axes.set_xlabel(values[0][0]["settings"][0].partition("=")[0])
        else:
            axes.set_xticks(places, names, rotation=25, ha="right")

    rows = [(cell, *interval) for cell, interval in zip(names, intervals, strict=True)]
    return draw(name, title, note, ("cell", "value", "low", "high"), rows, paint, size=(WIDE, 3.0))


def _numbers(settings: Sequence[Sequence[str]]) -> list[float] | None:
    """The values of the one axis, where there is one and all its values are numbers."""
    if any(len(setting) != 1 for setting in settings):
        return None
    values = [yaml.safe_load(setting[0].partition("=")[2]) for setting in settings]
    return values if all(isinstance(value, (int, float)) for value in values) else None
