"""Plots of trainings and their models: loss curves, held-out differences, the rounds of self-evolving cleaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from tokenclean.report.plots.style import FAINT, NARROW, WIDE, Plot, bars_of, draw, legend_below, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED_STEPS = 20
"""A curve is smoothed where a training has more steps: exponential mean over a twentieth of them."""


class HeldoutNats(TypedDict):
    """Held-out losses, nats a token: over all, and over those the first selection would keep and drop."""

    all_tokens: float
    kept_first: float | None
    dropped_first: float | None


class RoundLine(TypedDict):
    """A model in ``result.json``'s account of self-evolving cleaning; base and controls have no split."""

    model: str
    kept_share: float | None
    heldout_nats: HeldoutNats
    split: NotRequired[int]
    threshold_nats: NotRequired[float | None]
    is_rolled_back: NotRequired[bool]


class Agreement(TypedDict):
    """Jaccard overlap of what each model would keep, (N, N)."""

    models: Sequence[str]
    jaccard: Sequence[Sequence[float]]


class Rounds(TypedDict):
    """``rounds`` of ``result.json``."""

    lines: Sequence[RoundLine]
    agreement: NotRequired[Agreement]


def loss_curves(name: str, journals: Mapping[str, Sequence[tuple[int, float]]]) -> Plot:
    """Training loss over optimizer steps, one line a model. ``journals``: model -> its steps and losses."""
    smoothed = {label: _smoothed([loss for _, loss in lines]) for label, lines in journals.items()}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (label, lines) in enumerate(journals.items()):
            steps, losses = zip(*lines, strict=True)
            style = series_style(number, marker="none")
            if len(steps) > _SMOOTHED_STEPS:
                axes.plot(steps, losses, color=style["color"], linewidth=0.5, alpha=0.35)
            axes.plot(steps, smoothed[label], label=label, **style)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats a token)")
        legend_below(figure)

    longest = max(journals, key=lambda label: len(journals[label]))
    losses = [loss for _, loss in journals[longest]]
    if len(losses) > _SMOOTHED_STEPS:
        first, last = (np.mean(third) for third in (losses[: len(losses) // 3], losses[-(len(losses) // 3) :]))
        title = f"{longest}: mean loss of {first:.3f} nats in the first third of the steps, {last:.3f} in the last"
    else:
        title = f"The loss of each step, of {len(losses)}: too few for a trend, since every step has another batch"
    note = (
        "The loss of each step's own batch, so steps differ as batches do. Each model over the tokens that it was "
        "trained on, so curves of different selections do not compare: one that keeps hard tokens has a higher loss. "
        "Thick: smoothed, thin: each step. For self_evolving, all rounds one after another."
    )
    rows = [(label, *line) for label, lines in journals.items() for line in lines]
    return draw(name, title, note, ("model", "step", "loss"), rows, paint, size=(WIDE, 3.2))


def forest(
    name: str,
    title: str,
    note: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, float, float, float]],
    axis: str,
) -> Plot:
    """Values with intervals, one a line: (label, value, low, high)."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        values, bars = np.array([row[1] for row in rows]), bars_of(row[1:] for row in rows)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.errorbar(values, places, xerr=bars, fmt="o", color=series_style(0)["color"], capsize=3, elinewidth=1.2)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(axis)

    return draw(name, title, note, columns, rows, paint, size=(WIDE, 0.9 + 0.3 * len(rows)))


def rounds_plot(name: str, rounds: Rounds) -> Plot:
    """Held-out loss and threshold over the rounds."""
    lines = rounds["lines"]
    evolving = [line for line in lines if "split" in line]
    controls = [line for line in lines if "split" not in line]

    def paint(figure: Figure) -> None:
        losses, thresholds = figure.subplots(1, 2, width_ratios=(1.6, 1))
        places = range(len(evolving))
        labels = {"all_tokens": "all tokens", "kept_first": "kept at first", "dropped_first": "dropped at first"}
        for number, (key, label) in enumerate(labels.items()):
            values = np.array([line["heldout_nats"].get(key) for line in evolving], dtype=float)  # NaN for None
            losses.plot(places, values, label=label, **series_style(number))
        for number, line in enumerate(controls):
            value = line["heldout_nats"]["all_tokens"]
            style = series_style(number + len(labels), marker="none")
            losses.axhline(value, label=f"{line['model']}, all tokens", linewidth=1, **style)
        losses.set_ylabel("held-out loss (nats a token)")
        cuts = np.array([line.get("threshold_nats") for line in evolving], dtype=float)
        thresholds.plot(places, cuts, label="threshold", **series_style(7))
        thresholds.axhline(0, color=FAINT, linewidth=0.6)
        thresholds.set_ylabel("lowest kept score (nats)")
        for axes in (losses, thresholds):
            axes.set_xticks(places, [line["model"] for line in evolving], rotation=30, ha="right")
        legend_below(figure, columns=3)

    output = [line for line in evolving if not line.get("is_rolled_back")][-1]
    first, last = (line["heldout_nats"]["all_tokens"] for line in (evolving[0], output))
    moved = "falls" if last < first else "rises"
    title = f"From the warm-up to the output the held-out loss {moved} from {first:.4f} to {last:.4f} nats"
    note = (
        "Kept and dropped at first: the held-out tokens that the warm-up's scores would keep and drop. Right: the cut "
        "of the split that each model was trained on; the warm-up had none."
    )
    columns = ("model", "split", "threshold_nats", "kept_share")
    rows = [(*(line.get(column) for column in columns), *line["heldout_nats"].values()) for line in lines]
    columns += tuple(lines[0]["heldout_nats"])
    return draw(name, title, note, columns, rows, paint, size=(WIDE, 3.6))


def agreement_plot(name: str, agreement: Agreement) -> Plot:
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

    def paint(figure: Figure) -> None:
        heat_map(figure.subplots(), matrix, models, models)

    side = 1.6 + 0.55 * len(models)
    return draw(
        name, title, note, ("model", "other", "jaccard"), rows, paint, size=(max(NARROW, side), max(2.4, side - 0.8))
    )


def heat_map(axes: Axes, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Numbers from 0 to 1, in squares coloured by them."""
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
    is_short = max(map(len, columns)) <= 3
    axes.set_xticks(range(len(columns)), columns, rotation=0 if is_short else 30, ha="center" if is_short else "right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)


def _smoothed(losses: Sequence[float]) -> Sequence[float]:
    """An exponential mean over about a twentieth of the steps, without the bias of its start."""
    if len(losses) <= _SMOOTHED_STEPS:
        return losses
    keep = 1 - 1 / max(1.0, len(losses) / _SMOOTHED_STEPS)
    smoothed, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return smoothed
