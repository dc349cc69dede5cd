"""The report's page: sections of sentences, tables, plots and tokens, as one HTML file."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenclean.report.html import render, write_text
from tokenclean.report.plots.style import Plot
from tokenclean.report.selection_statistics import TokenExample
from tokenclean.report.tables import Table, as_cell
from tokenclean.store import atomic_path


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Folded:
    """A preformatted text, such as a recipe, folded under a summary."""

    summary: str
    text: str
    kind: Literal["folded"] = "folded"


@dataclass(frozen=True)
class TableBlock:
    """A table. ``name``: for its CSV file and its link."""

    name: str
    table: Table
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class PlotBlock:
    """A plot with its data."""

    plot: Plot
    kind: Literal["plot"] = "plot"


@dataclass(frozen=True)
class TokensBlock:
    """Tokens that stand out, with an example each. ``is_kept``: those kept most often, else those dropped most."""

    title: str
    note: str
    tokens: tuple[TokenExample, ...]
    is_kept: bool
    kind: Literal["tokens"] = "tokens"


Block = Text | Folded | TableBlock | PlotBlock | TokensBlock


@dataclass(frozen=True)
class Section:
    """``name``: for its link; ``title``: the heading."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """``title``: the page's; ``lead``: its first sentences; ``sections``: those without blocks are left out."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def plots(self) -> list[Plot]:
        """Every plot, in order."""
        return [block.plot for section in self.sections for block in section.blocks if isinstance(block, PlotBlock)]

    @property
    def tables(self) -> list[TableBlock]:
        """Every table, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, TableBlock)]


def write_report(report: Report, path: Path | str) -> None:
    """Write the page. Raises MissingExtraError without jinja2, RunFolderError where the file cannot be written."""
    write_text(render_report(report), path)


def write_figures(report: Report, folder: Path) -> int:
    """Write every plot as SVG and CSV, every table as CSV and LaTeX, for a paper; returns the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: text for plot in report.plots for name, text in plot.files.items()}
    for block in report.tables:
        texts |= {
            f"{block.name}.csv": block.table.to_csv(),
            f"{block.name}.tex": block.table.to_latex(f"tab:{block.name}"),
        }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return len(texts)


def render_report(report: Report) -> str:
    """The page as text. It runs no script."""
    sections = [section for section in report.sections if section.blocks]
    return render(
        "report_page",
        "a report",
        inline_styles=True,
        report=report,
        sections=sections,
        csv_link=_csv_link,
        cell=as_cell,
        visible=_visible,
        flat=_flat,
    )


def slug(text: str) -> str:
    """A name for files, links and elements: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def _csv_link(text: str) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode("utf-8", "backslashreplace")).decode()


def _visible(text: str) -> str:
    """A token by itself, with visible spaces and line ends."""
    shown = text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
    return shown.replace(" ", "␣") or "∅"


def _flat(text: str) -> str:
    """A text on one line."""
    return text.replace("\n", " ↵ ")
