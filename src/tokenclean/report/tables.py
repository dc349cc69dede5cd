"""Results as tables: one description, shown by rich in a terminal or written as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from tokenclean.scoring import PairedDifference


_LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "²": "$^2$",
    "\n": r"\\",
}
_LATEX_SPECIAL = re.compile("|".join(map(re.escape, _LATEX_SIGNS)))
_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")


@dataclass(frozen=True)
class Cell:
    """``text`` with a ``mark``, best in bold and second underlined, and a ``small`` text beside or below it.

    As a string it is ``text small``.
    """

    text: str
    mark: Literal["", "best", "second"] = ""
    small: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.small}" if self.small else self.text


@dataclass(frozen=True)
class Table:
    """A table of strings and cells. ``text_columns``: indices of the columns that hold text, not numbers;
    ``sections``: index of a row -> the heading above it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    text_columns: tuple[int, ...] = (0,)
    sections: Mapping[int, str] = field(default_factory=dict)

    def to_rich(self) -> RichTable:
        """For a rich console; a cell's small text is below it."""
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
        # Where rows are two lines high, a name may take both lines, so that it is never cut.
        has_cells = any(isinstance(cell, Cell) and cell.small for row in self.rows for cell in row)
        for number, column in enumerate(self.columns):
            is_text = number in self.text_columns
            is_tall = number == 0 and has_cells
            table.add_column(
                column,
                justify="left" if is_text else "right",
                no_wrap=not is_tall and (number == 0 or not is_text),
                overflow="fold" if is_tall else "ellipsis",
            )
        for number, row in enumerate(self.rows):
            if heading := self.sections.get(number):
                table.add_section()
                table.add_row(Text(heading, style="italic"))
            table.add_row(*map(_rich, row))
        return table

    def to_markdown(self) -> str:
        """As GitHub Markdown, ending with a newline; underlined is ``<ins>``, a section's heading a bold row."""
        lines = [
            f"**{self.title}**",
            "",
            _line(self.columns),
            _line(["---" if n in self.text_columns else "--:" for n in range(len(self.columns))]),
        ]
        for number, row in enumerate(self.rows):
            if heading := self.sections.get(number):
                lines.append(_line([f"**{heading}**", *("" for _ in self.columns[1:])]))
            lines.append(_line([_markdown(cell) for cell in row]))
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """As CSV, without title, note and marks.

        Where there are sections, a first column ``section`` names each row's; it is empty before the first.
        """
        if not self.sections:
            return csv_text(self.columns, self.rows)
        section, rows = "", []
        for number, row in enumerate(self.rows):
            section = self.sections.get(number, section)
            rows.append((section, *row))
        return csv_text(("section", *self.columns), rows)

    def to_document(self) -> dict[str, object]:
        """For JSON; ``from_document`` gives the same table."""
        return {**asdict(self), "sections": {str(row): heading for row, heading in self.sections.items()}}

    @classmethod
    def from_document(cls, document: object) -> Table:
        """The table that ``to_document`` described."""
        return TypeAdapter(cls).validate_python(document)

    def to_latex(self, label: str = "") -> str:
        """As a ``table`` environment for a document with ``\\usepackage{booktabs}``, ending with a newline.

        Title and note make the caption; ``label`` is for ``\\ref``, none where empty.
        """
        caption = latex(self.title) + (f". {latex(self.note)}" if self.note else "")
        alignment = "".join("l" if n in self.text_columns else "r" for n in range(len(self.columns)))
        lines = [
            "% needs \\usepackage{booktabs}",
            *("\\begin{table}[t]", "\\centering", "\\small", f"\\caption{{{caption}}}"),
            *([f"\\label{{{label}}}"] if label else []),
            "\\smallskip",
            *(f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", _latex_line(map(latex, self.columns)), "\\midrule"),
        ]
        for number, row in enumerate(self.rows):
            if heading := self.sections.get(number):
                lines += ["\\midrule"] if number else []
                lines.append(f"\\multicolumn{{{len(self.columns)}}}{{l}}{{\\textit{{{latex(heading)}}}}} \\\\")
            is_tall = any(isinstance(cell, Cell) and cell.small for cell in row)
            lines.append(_latex_line(map(_latex, row)) + ("[3pt]" if is_tall else ""))
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
        return "\n".join(lines) + "\n"


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """CSV (RFC 4180, lines end with a newline)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def latex(text: str) -> str:
    """Text for LaTeX: its special characters escaped, mathematical signs in math mode, a minus before a digit too."""
    escaped = _LATEX_SPECIAL.sub(lambda found: _LATEX_SIGNS[found.group()], text)
    return _MINUS.sub("$-$", escaped)


def difference_text(difference: PairedDifference) -> str:
    """``-0.0345 ± 0.0030``: a paired difference in nats and the half-width of its 95 % interval."""
    return f"{difference.difference:+.4f} ± {(difference.high - difference.low) / 2:.4f}"


def share_text(share: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"


def size_text(size_bytes: int) -> str:
    """``78.3 MiB``: a size in bytes, in the unit that suits it."""
    power = min(3, (size_bytes.bit_length() - 1) // 10) if size_bytes else 0
    return f"{size_bytes} B" if power == 0 else f"{size_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def jaccard_table(names: Sequence[str], values: Sequence[Sequence[float]]) -> Table:
    """Pairwise Jaccard overlap of kept sets, from a square matrix; columns are numbered like the rows."""
    rows = tuple(
        (f"{number} {name}", *(f"{value:.3f}" for value in line))
        for number, (name, line) in enumerate(zip(names, values, strict=True), start=1)
    )
    return Table("Overlap of the kept sets (Jaccard)", ("", *map(str, range(1, len(names) + 1))), rows)


def as_cell(cell: str | Cell) -> Cell:
    """A cell of a table, where strings are cells without mark and small text."""
    return cell if isinstance(cell, Cell) else Cell(cell)


def _latex(value: str | Cell) -> str:
    cell = as_cell(value)
    text = latex(cell.text)
    marked = {"": text, "best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}[cell.mark]
    if not cell.small:
        return marked
    # Two lines, the upper one level with the row's name.
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{marked}\\\\{{\\scriptsize {latex(cell.small)}}}\\end{{tabular}}"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _markdown(value: str | Cell) -> str:
    cell = as_cell(value)
    marked = {"": cell.text, "best": f"**{cell.text}**", "second": f"<ins>{cell.text}</ins>"}[cell.mark]
    return f"{marked} <sub>{cell.small}</sub>" if cell.small else marked


def _rich(cell: str | Cell) -> str | Text:
    if isinstance(cell, str):
        return cell
    text = Text().append(cell.text, style={"": "", "best": "bold", "second": "underline"}[cell.mark])
    return text.append(f"\n{cell.small}", style="dim") if cell.small else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
