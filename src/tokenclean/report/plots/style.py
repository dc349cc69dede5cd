"""Plots in one style: SVG with a title that says what to see, their data as CSV beside them.

A plot is drawn in fixed colours, which a page replaces by its own, so that it follows a dark theme. Series differ by
colour (safe for colour-blind readers), and lines by marker and dash too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from tokenclean.errors import needs_extra
from tokenclean.report.tables import csv_text
from tokenclean.store import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType, RcKeyType

INK, FAINT, LINE, PAPER = "#17212c", "#56616e", "#c9d1da", "#fefffe"
KEPT, DROPPED = "#2f7fd1", "#e08a1e"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5489a", "#7a5c00", "#4b4fc4", "#5f6b76", "#3a8fb7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

VARIABLES = {INK: "ink", FAINT: "faint", LINE: "line", PAPER: "paper", KEPT: "kept-fill", DROPPED: "dropped-fill"}
VARIABLES |= {colour: f"series-{number}" for number, colour in enumerate(SERIES)}
"""Colour of a plot -> the page's custom property that replaces it."""

WIDE, NARROW = 7.6, 4.6
"""Widths of figures in inches."""

_STYLE: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "tokenclean",
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}
_ELEMENT_STYLE = re.compile(r"<style type=\"text/css\">.*?</style>", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_MOST_REM, _LEAST_REM = 46, 32
"""Widths of a wide plot on a page."""
_NAME = re.compile(r'(\bid="|url\(#|href="#)')


@dataclass(frozen=True)
class Plot:
    """``name``: for files and links; ``title``: what to see, as a sentence; ``note``: how to read it, and units;
    ``svg``: an XML document; ``csv``: the drawn data; ``figure``: the drawing, for other formats."""

    name: str
    title: str
    note: str
    svg: str
    csv: str
    figure: Figure = field(compare=False, repr=False)

    @property
    def files(self) -> dict[str, str]:
        """File name -> content: the SVG, and its data beside it."""
        return {f"{self.name}.svg": self.svg, f"{self.name}.csv": self.csv}

    @property
    def inline_svg(self) -> str:
        """The ``<svg>`` element for a page: in the page's colours, with names that no other plot has."""
        element = self.svg[self.svg.index("<svg") :]
        element = _METADATA.sub("", _ELEMENT_STYLE.sub("", element))
        element = _NAME.sub(rf"\g<1>{self.name}-", element)
        for colour, variable in VARIABLES.items():
            element = element.replace(colour, f"var(--{variable})")
        share = self.figure.get_figwidth() / WIDE
        size = f"max-width:{_MOST_REM * share:.1f}rem;min-width:{_LEAST_REM * share:.1f}rem"
        return element.replace("<svg ", f'<svg aria-hidden="true" focusable="false" style="{size}" ', 1)

    def save(self, file: Path) -> None:
        """Write the drawing on white, in the format of the file's suffix."""
        import matplotlib as mpl

        with mpl.rc_context(_STYLE), atomic_path(file) as temporary:
            self.figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=150, facecolor="white")


def draw(
    name: str,
    title: str,
    note: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    paint: Callable[[Figure], None],
    *,
    size: tuple[float, float] = (WIDE, 2.8),
) -> Plot:
    """A plot that ``paint`` draws on a figure of ``size`` inches; ``columns`` and ``rows``: its CSV.

    The same data give the same bytes. Raises MissingExtraError without matplotlib.
    """
    with needs_extra("matplotlib", "report", "a plot"):
        import matplotlib as mpl
        from matplotlib.figure import Figure
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Text stays text in the SVG, and the reader's own fonts have the glyphs.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=size)
        paint(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, title, note, stream.getvalue(), csv_text(columns, rows), figure)


class SeriesStyle(TypedDict):
    """Arguments of matplotlib's ``plot``."""

    color: str
    marker: str
    linestyle: LineStyleType


def series_style(number: int, *, marker: str | None = None, linestyle: LineStyleType | None = None) -> SeriesStyle:
    """Colour, marker and dash of the series with this number, or those given; they repeat after eight."""
    place = number % len(SERIES)
    return {"color": SERIES[place], "marker": marker or MARKERS[place], "linestyle": linestyle or DASHES[place]}


def bars_of(intervals: Iterable[tuple[float, float, float]]) -> np.ndarray:
    """Lengths of error bars below and above, shape (2, N), of (value, low, high)."""
    return np.array([[value - low, high - value] for value, low, high in intervals]).T


def legend_below(figure: Figure, *, columns: int = 4) -> None:
    """One legend for all axes, each label once."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(columns, max(1, len(found))))
