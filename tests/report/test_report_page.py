"""The report's page: what stands in it stays text, plots follow the page, and a browser has nothing to complain of."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tokenclean.report.plots.ratings import ratings_plot, transition_plot
from tokenclean.report.plots.selections import (
    score_histogram,
    shares_by_position,
    shares_by_source,
    shares_by_turn,
    source_histograms,
)
from tokenclean.report.plots.style import SERIES, VARIABLES, Plot
from tokenclean.report.plots.sweeps import sweep_plots
from tokenclean.report.plots.trainings import agreement_plot, forest, loss_curves, rounds_plot
from tokenclean.report.report_page import (
    Folded,
    Report,
    Section,
    TableBlock,
    TokensBlock,
    render_report,
    slug,
    write_figures,
    write_report,
)
from tokenclean.report.selection_statistics import SelectionSummary, summarize
from tokenclean.report.tables import Cell, Table
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.token_table import write_table
from viewer_tables import byte_level, prose, table_of

HOSTILE = "<script>alert(1)</script></style></textarea>\u202e & \"quoted\" 'single' {{ 7 * 7 }}"
RATERS = [
    {"rater": "one", "before": [1, 5, 9, 3, 2, 0], "after": [0, 4, 12, 3, 1, 0], "noise_rate": 0.2},
    {"rater": "two", "before": [4, 4, 4, 4, 4, 0], "after": [4, 4, 4, 4, 4, 0], "noise_rate": 0.8},
]
RATERS = [reported | {"matrix": np.full((6, 6), 1 / 6).tolist()} for reported in RATERS]
HELDOUT = {"all_tokens": 2.0, "kept_first": 2.5, "dropped_first": None}
ROUNDS = {
    "lines": [
        {"model": "base", "kept_share": None, "heldout_nats": HELDOUT},
        *(
            {
                "model": name,
                "kept_share": 0.6,
                "heldout_nats": {**HELDOUT, "all_tokens": 2.0 - 0.1 * number},
                "split": number,
                "threshold_nats": 0.01 * number if number else None,
                "is_rolled_back": False,
            }
            for number, name in enumerate(("warm-up", "reference-1", "reference-2"))
        ),
    ],
    "agreement": {"models": ["warm-up", "reference-1"], "jaccard": [[1.0, 0.7], [0.7, 1.0]]},
}
CELLS = [
    {"name": f"proportion={k}", "settings": [f"cleaning.proportion={k}"], "failure": "", "kept_share": k,
     "heldout": {"difference": k / 10, "low": k / 20, "high": k / 5}, "average": {"value": k / 2, "error": 0.01}}
    for k in (0.3, 0.6, 0.9)
]  # fmt: skip


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> SelectionSummary:
    path = tmp_path_factory.mktemp("tables") / "kept.parquet"
    write_table(table_of(byte_level(), prose(40)), path)
    return summarize(path, "run", "fixed_model", SpanDecoder(byte_level()), examples=4)


@pytest.fixture(scope="module")
def plots(summary) -> list[Plot]:
    journals = {"full": [(n, 3 / n) for n in range(1, 60)], "short": [(1, 2.0)]}
    intervals = [(name, -0.01, -0.02, 0.0) for name in "ab"]
    pair = [("one", summary), ("two", summary)]
    made = [
        score_histogram("scores", "one", summary, [0.1]),
        source_histograms("by-source", "one", summary, [0.1, 0.2]),
        shares_by_source("shares", pair),
        shares_by_position("positions", pair),
        loss_curves("loss", journals),
        forest("held-out", "a title", "a note.", ("model", "difference", "low", "high"), intervals, "nats"),
        rounds_plot("rounds", ROUNDS),
        agreement_plot("agreement", ROUNDS["agreement"]),
        ratings_plot("ratings", RATERS),
        transition_plot("transition", RATERS),
        *sweep_plots("sweep", CELLS),
    ]
    return [plot for plot in made if plot is not None]


@pytest.fixture(scope="module")
def report(summary, plots) -> Report:
    cells = (("row " + HOSTILE, Cell("1.0", mark="best", small="±0.1")), ("b", Cell("2.0", mark="second")))
    table = Table("A table " + HOSTILE, ("name " + HOSTILE, "value"), cells, "a note", sections={1: "below " + HOSTILE})
    blocks = (
        "A sentence " + HOSTILE,
        Folded("Recipe", HOSTILE),
        TableBlock("table", table),
        TokensBlock("dropped " + HOSTILE, "a note", summary.dropped, False),
        TokensBlock("kept", "a note", summary.kept, True),
    )
    sections = (
        Section("words", "Words " + HOSTILE, blocks),
        Section("plots", "Plots", tuple(plots)),
        Section("nothing", "Nothing", ()),
    )
    return Report("Report of " + HOSTILE, ("A lead " + HOSTILE,), sections)


# --- plots -------------------------------------------------------------------------------------------------------


def test_plots_are_xml_with_their_data_beside_them(plots):
    for plot in plots:
        ElementTree.fromstring(plot.svg)
        rows = list(csv.reader(io.StringIO(plot.csv)))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1
        assert plot.title.strip()
        assert plot.note.endswith(".")


def test_the_same_data_give_the_same_bytes(summary):
    first, second = (score_histogram("scores", "one", summary, [0.1]) for _ in range(2))
    assert first == second


def test_an_inline_plot_has_the_pages_colours_and_names_of_its_own(plots):
    for plot in plots:
        inline = plot.inline_svg
        ElementTree.fromstring(re.sub(r"xlink:href", "href", inline))
        assert "<style" not in inline
        assert "<metadata" not in inline
        assert not any(colour in inline for colour in VARIABLES)
        for name in re.findall(r'\bid="([^"]+)"', inline):
            assert name.startswith(f"{plot.name}-")
        for name in re.findall(r'(?:url\(#|href="#)([^")]+)', inline):
            assert f'id="{name}"' in inline
    assert len(set(SERIES)) == len(SERIES)


def test_a_plot_says_what_to_see(plots):
    titles = {plot.name: plot.title for plot in plots}
    assert titles["scores"].startswith("one: 60.0% of ")
    assert titles["loss"].startswith("full: mean loss of ")
    assert titles["loss"].endswith(" in the last")
    few = loss_curves("few", {"full": [(step, 2.0 + step) for step in range(1, 11)]})
    assert few.title == "The loss of each step, of 10: too few for a trend, since every step has another batch"
    assert titles["rounds"] == "From the warm-up to the output the held-out loss falls from 2.0000 to 1.8000 nats"
    assert titles["agreement"].endswith("they share 70% of what either would keep")
    assert titles["ratings"] == "one: correction moves rows most into class 2 (+3) and out of class 0 (-1)"
    assert titles["transition"] == "one is estimated to rate 20% of the rows wrong, the fewest, two 80%, the most"
    assert titles["sweep-held-out"].startswith("Held-out loss is lowest at proportion=0.3")
    assert titles["sweep-average"].endswith("highest at proportion=0.9: 45.00")


def test_names_in_any_script_and_with_dollars_are_drawn_as_they_are(summary):
    share = next(iter(summary.by_source.values()))
    named = replace(summary, by_source=dict.fromkeys(("水", "$x_1$", "a $ b"), share))
    svg = shares_by_source("shares", [("模型", named)]).svg
    for text in ("水 (", "$x_1$ (", "a $ b (", "模型"):
        assert text in svg


def test_plots_of_one_turn_or_source_are_left_out(summary):
    assert shares_by_turn("turns", [("one", summary)]) is None
    assert sweep_plots("sweep", [{**CELLS[0], "heldout": None, "average": None}]) == []


# --- page --------------------------------------------------------------------------------------------------------


def test_texts_stay_text(report):
    page = render_report(report)
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "{{ 7 * 7 }}" in page
    assert "49" not in re.sub(r"<svg.*?</svg>|base64,[^\"]*", "", page, flags=re.DOTALL)
    assert "<strong>1.0</strong><small>±0.1</small>" in page
    assert "<u>2.0</u>" in page


def test_a_section_without_blocks_is_left_out(report):
    page = render_report(report)
    assert "Nothing" not in page
    assert page.count("<section") == 2


def test_the_csv_of_a_plot_can_be_taken_from_the_page(report):
    page = render_report(report)
    for plot in report.plots:
        encoded = re.search(rf'download="{plot.name}\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
        assert base64.b64decode(encoded[1]).decode() == plot.csv


def test_figures_are_written_for_a_paper(report, tmp_path):
    count = write_figures(report, tmp_path / "figures")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert count == len(written)
    assert written == {f"{p.name}.{s}" for p in report.plots for s in ("svg", "csv")} | {"table.csv", "table.tex"}


@pytest.mark.parametrize(
    ("text", "name"), [("Held-out, loss!", "held-out-loss"), ("../../x", "x"), ("", "part"), ("水", "part")]
)
def test_slugs(text, name):
    assert slug(text) == name


# --- in a browser ------------------------------------------------------------------------------------------------

VIEWPORTS = {"wide": {"width": 1400, "height": 900}, "phone": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def path(report, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    write_report(report, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("viewport", VIEWPORTS.values(), ids=VIEWPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_in_both_themes(open_page, path, viewport, scheme):
    page = open_page(path, viewport=viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    text = page.evaluate("getComputedStyle(document.querySelector('.plot svg text')).fill")
    assert text == ink  # plots follow the theme


@pytest.mark.slow
def test_links_lead_to_their_sections_without_a_script(open_page, path):
    page = open_page(path, java_script_enabled=False)
    page.click("nav a >> text=Plots")
    assert page.url.endswith("#plots")
    page.keyboard.press("Tab")
    assert page.locator("h2").nth(1).text_content() == "Plots"


@pytest.mark.slow
@pytest.mark.parametrize("viewport", VIEWPORTS.values(), ids=VIEWPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page, serious_faults, path, viewport, scheme):
    page = open_page(path, viewport=viewport, color_scheme=scheme)
    assert serious_faults(page) == []
