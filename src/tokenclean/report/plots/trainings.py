"""Plots of trainings and their models: loss curves, held-out differences, the rounds of self-evolving cleaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenclean.report.plots.style import FAINT, NARROW, WIDE, Plot, draw, legend_below, series_style

_SMOOTHED_STEPS = 20
"""A curve is smoothed where a training has more steps: exponential mean over a twentieth of them."""


def loss_curves(name: str, journals: Mapping[str, Sequence[Mapping[str, Any]]]) -> Plot:
    """Training loss over optimizer steps, one line a model. ``journals``: lines with ``step`` and ``loss``."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, (label, lines) in enumerate(journals.items()):
            steps, losses = [line["step"] for line in lines], np.array([line["loss"] for line in lines], dtype=float)
            style = series_style(number) | {"marker": None}
            if len(steps) > _SMOOTHED_STEPS:
                axes.plot(steps, losses, color=style["color"], linewidth=0.5, alpha=0.35)
            axes.plot(steps, _smoothed(losses), label=label, **style)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats a token)")
        legend_below(figure)

    ends = {
        label: _smoothed(np.array([line["loss"] for line in lines], dtype=float)) for label, lines in journals.items()
    }
    longest = max(ends, key=lambda label: len(ends[label]))
    start, end = float(ends[longest][0]), float(ends[longest][-1])
    title = f"{longest}: the loss of the trained tokens goes from {start:.3f} to {end:.3f} nats"
    note = (
        "Each model over the tokens that it was trained on, so curves of different selections do not compare: a "
        "selection that keeps hard tokens has a higher loss. Thick: smoothed, thin: each step. Of self_evolving the "
        "rounds one after another."
    )
    rows = [(label, line["step"], line["loss"]) for label, lines in journals.items() for line in lines]
    return draw(name, title, note, ("model", "step", "loss"), rows, paint, size=(WIDE, 3.2))


def heldout_differences(name: str, title: str, lines: Sequence[tuple[str, Mapping[str, float]]], control: str) -> Plot:
    """Held-out loss minus the control's with 95 % intervals. ``lines``: label and ``difference``, ``low``, ``high``."""
    note = (
        f"Nats a held-out response token minus {control}; left of 0 is better. Bars: 95 % intervals over "
        "conversations, each as if it were the only one compared."
    )
    columns = ("model", "difference", "low", "high")
    rows = [(label, d["difference"], d["low"], d["high"]) for label, d in lines]
    return forest(name, title, note, columns, rows, f"held-out loss minus {control} (nats)")


def forest(
    name: str,
    title: str,
    note: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, float, float, float]],
    axis: str,
) -> Plot:
    """Values with intervals, one a line: (label, value, low, high)."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        values = np.array([row[1] for row in rows])
        spans = np.array([[row[1] - row[2], row[3] - row[1]] for row in rows]).T
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.errorbar(values, places, xerr=spans, fmt="o", color=series_style(0)["color"], capsize=3, elinewidth=1.2)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(axis)

    return draw(name, title, note, columns, rows, paint, size=(WIDE, 0.9 + 0.3 * len(rows)))


def rounds_plot(name: str, rounds: Mapping[str, Any]) -> Plot:
    """Held-out loss and threshold over the rounds. ``rounds``: as ``result.json`` has it."""
    lines = rounds["lines"]
    evolving = [line for line in lines if "split" in line]
    controls = [line for line in lines if "split" not in line]
    measures = (("all_tokens", "all tokens"), ("kept_first", "kept at first"), ("dropped_first", "dropped at first"))

    def paint(figure: Any) -> None:
        losses, thresholds = figure.subplots(1, 2, width_ratios=(1.6, 1))
        places = range(len(evolving))
        for number, (key, label) in enumerate(measures):
            values = [_number(line["heldout_nats"][key]) for line in evolving]
            losses.plot(places, values, label=label, **series_style(number))
        for number, line in enumerate(controls):
            value = line["heldout_nats"]["all_tokens"]
            style = series_style(number + len(measures)) | {"marker": None}
            losses.axhline(value, label=f"{line['model']}, all tokens", linewidth=1, **style)
        losses.set_ylabel("held-out loss (nats a token)")
        thresholds.plot(
            places, [_number(line["threshold_nats"]) for line in evolving], label="threshold", **series_style(7)
        )
        thresholds.axhline(0, color=FAINT, linewidth=0.6)
        thresholds.set_ylabel("lowest kept score (nats)")
        for axes in (losses, thresholds):
            axes.set_xticks(places, [line["model"] for line in evolving], rotation=30, ha="right")
        legend_below(figure, columns=3)

    first, last = (line["heldout_nats"]["all_tokens"] for line in (evolving[0], _output(evolving)))
    moved = "falls" if last < first else "rises"
    title = f"From the warm-up to the output the held-out loss {moved} from {first:.4f} to {last:.4f} nats"
    note = (
        "Kept and dropped at first: the held-out tokens that the warm-up's scores would keep and drop. Right: the cut "
        "of the split that each model was trained on; the warm-up had none."
    )
    rows = [
        (
            line["model"],
            line.get("split"),
            line.get("threshold_nats"),
            line["kept_share"],
            *line["heldout_nats"].values(),
        )
        for line in lines
    ]
    columns = ("model", "split", "threshold_nats", "kept_share", *lines[0]["heldout_nats"])
    return draw(name, title, note, columns, rows, paint, size=(WIDE, 3.6))


def agreement_plot(name: str, agreement: Mapping[str, Any]) -> Plot:
    """Jaccard overlap of what each round's model would keep of the held-out tokens, as a heat map."""
    models, matrix = agreement["models"], np.array(agreement["jaccard"], dtype=float)
    steps = [matrix[place, place + 1] for place in range(len(models) - 1)]
    lowest = int(np.argmin(steps))
    title = (
        f"As references, {models[lowest]} and {models[lowest + 1]} agree least of neighbours: they share "
        f"{steps[lowest]:.0%} of what either would keep"
    )
    note = (
        "Each model in the reference's place keeps its top k % of the held-out response tokens; numbers: Jaccard "
        "overlap, 1 where two models keep the same tokens."
    )
    rows = [(models[i], models[j], matrix[i, j]) for i in range(len(models)) for j in range(len(models))]

    def paint(figure: Any) -> None:
        heat_map(figure.subplots(), matrix, models, models)

    side = 1.6 + 0.55 * len(models)
    return draw(
        name, title, note, ("model", "other", "jaccard"), rows, paint, size=(max(NARROW, side), max(2.4, side - 0.8))
    )


def heat_map(axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Numbers from 0 to 1 in squares whose colour tells them too."""
    from matplotlib.colors import LinearSegmentedColormap

    axes.grid(visible=False)
    colours = LinearSegmentedColormap.from_list("blues", ["#eef5fc", "#0b57a4"])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    for i in range(len(rows)):
        for j in range(len(columns)):
            value = float(matrix[i, j])
            axes.fill_between([j - 0.48, j + 0.48], i - 0.48, i + 0.48, color=colours(value), linewidth=0)
            ink = "#ffffff" if value > 0.55 else "#10202f"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 3 else 0, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    if max(map(len, columns)) <= 3:
        for label in axes.get_xticklabels():
            label.set_ha("center")


def _output(evolving: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return [line for line in evolving if not line["is_rolled_back"]][-1]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """An exponential mean over about a twentieth of the steps, without the bias of its start."""
    if len(losses) <= _SMOOTHED_STEPS:
        return losses
    keep = 1 - 1 / max(1.0, len(losses) / _SMOOTHED_STEPS)
    smoothed, total, weight = [], 0.0, 0.0
    for loss in losses.tolist():
        total, weight = keep * total + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return np.array(smoothed)
