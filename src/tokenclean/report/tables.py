"""Results as tables: one description, shown by rich in a terminal or written as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from tokenclean.scoring import PairedDifference


@dataclass(frozen=True)
class Table:
    """A table of strings: ``title``, ``columns``, ``rows``; ``text_columns``: numbers of those that hold no numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: tuple[int, ...] = (0,)

    def to_rich(self) -> RichTable:
        """For a rich console."""
        table = RichTable(
            title=self.title,
            caption=self.note or None,
            title_justify="left",
            min_width=len(self.title),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1),
            collapse_padding=True,
            show_edge=False,
        )
        for number, column in enumerate(self.columns):
            is_text = number in self.text_columns
            table.add_column(column, justify="left" if is_text else "right", no_wrap=number == 0 or not is_text)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """As GitHub Markdown, ending with a newline."""
        lines = [
            f"**{self.title}**",
            "",
            _line(self.columns),
            _line(["---" if n in self.text_columns else "--:" for n in range(len(self.columns))]),
        ]
        lines += [_line(row) for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"


def difference_text(difference: PairedDifference) -> str:
    """``-0.0345 ± 0.0030``: a paired difference in nats and the half-width of its 95 % interval."""
    return f"{difference.difference:+.4f} ± {(difference.high - difference.low) / 2:.4f}"


def share_text(share: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"


def size_text(size_bytes: int) -> str:
    """``78.3 MiB``: a size in bytes, in the unit that suits it."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"  # pyright: ignore[reportPossiblyUnboundVariable]


def jaccard_table(names: Sequence[str], values: Sequence[Sequence[float]]) -> Table:
    """Pairwise Jaccard overlap of kept sets, from a square matrix; columns are numbered like the rows."""
    rows = tuple(
        (f"{number} {name}", *(f"{value:.3f}" for value in line))
        for number, (name, line) in enumerate(zip(names, values, strict=True), start=1)
    )
    return Table("Overlap of the kept sets (Jaccard)", ("", *map(str, range(1, len(names) + 1))), rows)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
