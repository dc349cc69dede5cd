"""Plots of a sweep's cells: held-out difference and the benchmarks' average, over a number or cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from tokenclean.report.plots.style import FAINT, WIDE, Plot, draw, series_style


def sweep_plots(name: str, cells: Sequence[Mapping[str, Any]], base: Mapping[str, float] | None = None) -> list[Plot]:
    """Of the cells that have figures; none where there are none.

    ``cells``: each with ``name``, ``settings`` (key=value), ``kept_share``, ``heldout`` (``difference``, ``low``,
    ``high`` against the base, nats) and ``average`` (``value``, ``error``, as fractions of 1), the last two or None.
    ``base``: average of the base.
    """
    plots = []
    found = [cell for cell in cells if cell["heldout"]]
    if found:
        best = min(found, key=lambda cell: cell["heldout"]["difference"])
        title = f"Held-out loss is lowest at {best['name']}: {best['heldout']['difference']:+.4f} nats against the base"
        note = "Held-out loss minus the base's, nats a response token; below 0 is better. Bars: 95 % intervals."
        rows = [(c["name"], *(c["heldout"][key] for key in ("difference", "low", "high"))) for c in found]
        plots.append(_plot(f"{name}-held-out", title, note, found, rows, "minus base (nats)", 0.0))
    found = [cell for cell in cells if cell["average"]]
    if found:
        best = max(found, key=lambda cell: cell["average"]["value"])
        title = f"The benchmarks' average is highest at {best['name']}: {100 * best['average']['value']:.2f}"
        note = "Average score × 100. Bars: plus and minus one standard error, over items."
        line = None if base is None else 100 * base["value"]
        if line is not None:
            note += f" Grey line: the base, {line:.2f}."
        values = [(c["name"], 100 * c["average"]["value"], 100 * c["average"]["error"]) for c in found]
        rows = [(label, value, value - error, value + error) for label, value, error in values]
        plots.append(_plot(f"{name}-average", title, note, found, rows, "average × 100", line))
    return plots


def _plot(
    name: str,
    title: str,
    note: str,
    cells: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[str, float, float, float]],
    label: str,
    line: float | None,
) -> Plot:
    numbers = _numbers(cells)
    values = np.array([row[1] for row in rows])
    spans = np.array([[row[1] - row[2], row[3] - row[1]] for row in rows]).T

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        places = numbers if numbers is not None else list(range(len(rows)))
        style = "-" if numbers is not None else "none"
        axes.errorbar(places, values, yerr=spans, fmt="o", linestyle=style, capsize=3, color=series_style(0)["color"])
        if line is not None:
            axes.axhline(line, color=FAINT, linewidth=0.8)
        axes.set_ylabel(label)
        if numbers is not None:
            axes.set_xlabel(cells[0]["settings"][0].partition("=")[0])
        else:
            axes.set_xticks(places, [row[0] for row in rows], rotation=25, ha="right")

    return draw(name, title, note, ("cell", "value", "low", "high"), rows, paint, size=(WIDE, 3.0))


def _numbers(cells: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The values of the one axis, where all are numbers."""
    if any(len(cell["settings"]) != 1 for cell in cells):
        return None
    values = [yaml.safe_load(cell["settings"][0].partition("=")[2]) for cell in cells]
    return values if all(isinstance(value, (int, float)) for value in values) else None
