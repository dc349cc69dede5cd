"""Tables and the curve of ``benchmarks.noise``: what each way of training is worth in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.noise_measures import LOWER_IS_BETTER
from benchmarks.noise_sets import FIRST_MEASURE
from tokenclean.report.plots.style import FAINT, WIDE, Plot, bars_of, draw, legend_below, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Document = dict[str, Any]
"""A finished cell, as its file states it."""

NAMES = {"oracle": "oracle A", "corrected": "oracle B", "full_tokens": "full tokens", "random_mask": "random mask"}
HELPS, HURTS, UNCLEAR = "helps", "hurts", "unclear"

_AXES = {
    "rows": "rows trained on",
    "noise_rate": "true share of noise among response tokens",
    "epochs": "epochs",
}


def effect_table(documents: Sequence[Document], *, markdown: bool) -> str:
    """A row a cell, measure and way of training."""
    rows = [
        [
            document["cell"]["name"],
            f"{line['measure']} ({line['items']})",
            NAMES.get(line["condition"], line["condition"]),
            f"{line['value']:.4f}",
            interval_text(line["against"].get("full_tokens")),
            interval_text(line["against"].get("random_mask")),
        ]
        for document in documents
        for line in document["effects"]
    ]
    header = ["cell", "measure (items)", "trained on", "value", "minus full tokens", "minus random mask"]
    return machine.table(header, rows, markdown=markdown)


def curve_table(documents: Sequence[Document], *, markdown: bool) -> str:
    """A row a cell: what oracle A is worth by the set's first measure, and what Eq. 6 makes of the masks."""
    rows = []
    for document in documents:
        masks, cell, first = document["masks"], document["cell"], first_measure(document)
        oracle = effect_of(document, first)
        rows.append(
            [
                cell["name"],
                f"{document['response_tokens']:,}",
                f"{document['noise_rate']:.1%}",
                str(document["steps"]["full_tokens"]),
                first,
                interval_text(oracle["against"]["full_tokens"]) if oracle else "–",
                verdict(document),
                *(f"{masks[mask]['eta_cleaned']:.1%}" for mask in ("oracle", "random_mask")),
                *(f"{masks[mask]['eq6_margin']:+.4f}" for mask in ("oracle", "random_mask")),
            ]
        )
    header = [
        *("cell", "response tokens", "η(D̃)", "steps", "first measure", "oracle A minus full tokens", "cleaning"),
        *("η̂ oracle A", "η̂ random", "Eq. 6 oracle A", "Eq. 6 random"),
    ]
    return machine.table(header, rows, markdown=markdown)


def first_measure(document: Document) -> str:
    """The measure that counts for this cell's set."""
    return FIRST_MEASURE.get(document["cell"]["set"], "preference")


def effect_of(document: Document, measure: str, condition: str = "oracle") -> Document | None:
    """The line of a measure and a way of training; None where the cell has none."""
    lines = document["effects"]
    return next((one for one in lines if one["measure"] == measure and one["condition"] == condition), None)


def verdict(document: Document) -> str:
    """Oracle A by the set's first measure: it ``helps`` where it is better than full tokens and than the random mask,
    both intervals excluding 0, ``hurts`` where it is worse than full tokens, else it is ``unclear``."""
    measure = first_measure(document)
    line = effect_of(document, measure)
    if line is None:
        return UNCLEAR
    gains = {name: _gain(difference, measure) for name, difference in line["against"].items()}
    if all(low > 0 for low, _ in gains.values()):
        return HELPS
    return HURTS if gains["full_tokens"][1] < 0 else UNCLEAR


def curve_plots(documents: Sequence[Document]) -> list[Plot]:
    """A plot a measure: oracle A minus full tokens over rows, rate and epochs, a series a set."""
    measures = dict.fromkeys(line["measure"] for document in documents for line in document["effects"])
    return [_curve_plot(measure, documents) for measure in measures]


def _curve_plot(measure: str, documents: Sequence[Document]) -> Plot:
    points = [(document, line) for document in documents if (line := effect_of(document, measure)) is not None]
    sets = list(dict.fromkeys(document["cell"]["set"] for document, _ in points))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(_AXES), sharey=True)
        for axes, (axis, label) in zip(panels, _AXES.items(), strict=True):
            axes.axhline(0, color=FAINT, linewidth=0.8)
            for number, name in enumerate(sets):
                lines = [
                    (_place(d, axis), one["against"]["full_tokens"]) for d, one in points if d["cell"]["set"] == name
                ]
                values = [(one["difference"], one["low"], one["high"]) for _, one in lines]
                axes.errorbar(
                    [place for place, _ in lines],
                    [value for value, _, _ in values],
                    yerr=bars_of(values),
                    label=name,
                    capsize=3,
                    **series_style(number, linestyle="none"),
                )
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"{measure}: oracle A − full tokens")
        legend_below(figure)

    better = "below" if measure in LOWER_IS_BETTER else "above"
    helped = sum(_gain(line["against"]["full_tokens"], measure)[0] > 0 for _, line in points)
    hurt = sum(_gain(line["against"]["full_tokens"], measure)[1] < 0 for _, line in points)
    title = (
        f"By {measure}, training without the true noise is better in {helped} of {len(points)} cells, worse in {hurt}"
    )
    note = f"Better {better} 0. Bars: 95 % intervals over held-out rows, for these models. Each panel has every cell."
    columns = ("cell", *_AXES, "difference", "low", "high")
    rows = [
        (d["cell"]["name"], *(_place(d, axis) for axis in _AXES), *line["against"]["full_tokens"].values())
        for d, line in points
    ]
    return draw(f"noise-{measure.replace(' ', '-').lower()}", title, note, columns, rows, paint, size=(WIDE, 3.2))


def _place(document: Document, axis: str) -> float:
    return document["cell"]["epochs"] if axis == "epochs" else document[axis]


def _gain(difference: Document, measure: str) -> tuple[float, float]:
    """Ends of the interval, above 0 where it is better."""
    low, high = difference["low"], difference["high"]
    return (-high, -low) if measure in LOWER_IS_BETTER else (low, high)


def interval_text(difference: Document | None) -> str:
    if difference is None:
        return "–"
    return f"{difference['difference']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
