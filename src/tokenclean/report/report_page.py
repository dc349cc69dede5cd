"""The report's page: sections of sentences, tables, plots and tokens, as one HTML file."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from tokenclean.report.html import render, write_text
from tokenclean.report.plots.style import Plot
from tokenclean.report.selection_statistics import TokenExample
from tokenclean.report.tables import Table, as_cell
from tokenclean.store import atomic_path


@dataclass(frozen=True)
class Folded:
    """A preformatted text, such as a recipe, folded under a summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class TableBlock:
    """A table. ``name``: for its CSV file and its link."""

    name: str
    table: Table


@dataclass(frozen=True)
class TokensBlock:
    """Tokens that stand out, with an example each. ``is_kept``: those kept most often, else those dropped most."""

    title: str
    note: str
    tokens: tuple[TokenExample, ...]
    is_kept: bool


@dataclass(frozen=True)
class SampleBlock:
    """A conversation in colour. ``pieces``: text, and ``kept``, ``dropped`` or nothing for what is no target."""

    title: str
    pieces: tuple[tuple[str, str], ...]


Block = str | Folded | TableBlock | Plot | TokensBlock | SampleBlock
"""A paragraph, or one of the others."""


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
        return [block for section in self.sections for block in section.blocks if isinstance(block, Plot)]

    @property
    def tables(self) -> list[TableBlock]:
        """Every table, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, TableBlock)]


def write_report(report: Report, path: Path | str) -> None:
    """Write the page. Raises MissingExtraError without jinja2, RunFolderError where the file cannot be written."""
    write_text(render_report(report), path)


def write_figures(report: Report, folder: Path) -> int:
    """Write every plot as SVG and CSV, every table as CSV and LaTeX, for a paper; returns the number of files."""
    texts = {name: text for plot in report.plots for name, text in plot.files.items()}
    for block in report.tables:
        texts[f"{block.name}.csv"] = block.table.to_csv()
        texts[f"{block.name}.tex"] = block.table.to_latex(f"tab:{block.name}")
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return len(texts)


def render_report(report: Report) -> str:
    """The page as text. It runs no script."""
    return render(
        "report_page",
        "a report",
        inline_styles=True,
        report=report,
        sections=[section for section in report.sections if section.blocks],
        kind=lambda block: type(block).__name__,
        csv_link=_csv_link,
        cell=as_cell,
        visible=_visible,
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
