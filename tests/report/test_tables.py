"""Tables: the same cells in a terminal, in Markdown, in CSV and in LaTeX."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tokenclean.report.tables import Cell, Table, difference_text, jaccard_table, latex, share_text
from tokenclean.scoring import PairedDifference

TABLE = Table("Title", ("model", "loss"), (("base", "2.0000"), ("a|b", "1.5000")), "a note")
MARKED = Table(
    "Scores",
    ("model", "a_b"),
    (("base", Cell("1.00", "second", "±0.10")), ("rho", Cell("2.00", "best")), ("rho", Cell("+1.00", small="±0.20*"))),
    "95 %",
    sections={2: "minus base"},
)


@pytest.mark.parametrize("table", [TABLE, MARKED])
def test_a_table_comes_back_from_json(table):
    assert Table.from_document(json.loads(json.dumps(table.to_document()))) == table


def test_markdown():
    assert TABLE.to_markdown().splitlines() == [
        *("**Title**", "", "| model | loss |", "| --- | --: |"),
        *("| base | 2.0000 |", "| a\\|b | 1.5000 |", "", "a note"),
    ]


def test_terminal_shows_every_cell_in_eighty_columns():
    stream = io.StringIO()
    wide = Table("T", ("model", *("minus full tokens",) * 3), (("self_evolving", *("-0.0345 ± 0.0030",) * 3),))
    Console(file=stream, width=80).print(wide.to_rich())
    assert stream.getvalue().count("-0.0345 ± 0.0030") == 3


def test_difference_is_the_half_width_of_its_interval():
    text = difference_text(PairedDifference(1.8, 2.0, -0.2, -0.25, -0.15, 10, 100))
    assert text == "-0.2000 ± 0.0500"


def test_shares():
    assert share_text(None) == "–"
    assert share_text(0.6004) == "60.0%"


def test_jaccard_columns_are_numbered_like_rows():
    table = jaccard_table(["rho", "random"], [[1.0, 0.5], [0.5, 1.0]])
    assert table.columns == ("", "1", "2")
    assert table.rows == (("1 rho", "1.000", "0.500"), ("2 random", "0.500", "1.000"))


def test_cell_is_its_text_and_the_small_one():
    assert str(Cell("1.00", "best", "±0.10")) == "1.00 ±0.10"
    assert str(Cell("1.00", "best")) == "1.00"


def test_marks_and_sections_in_markdown():
    assert MARKED.to_markdown().splitlines()[4:] == [
        *("| base | <ins>1.00</ins> <sub>±0.10</sub> |", "| rho | **2.00** |"),
        *("| **minus base** |  |", "| rho | +1.00 <sub>±0.20*</sub> |", "", "95 %"),
    ]


def test_marks_and_sections_in_a_terminal():
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=True, color_system="standard").print(MARKED.to_rich())
    shown = stream.getvalue()
    assert "\x1b[4m1.00" in shown
    assert "\x1b[1m2.00" in shown
    assert "\x1b[3mminus base" in shown
    assert shown.index("minus base") < shown.index("+1.00") < shown.index("±0.20*")


def test_a_tall_row_folds_its_name_and_cuts_no_number():
    stream = io.StringIO()
    row = ("Self-evolving cleaning", *(Cell("-10.83", small="±12.67*") for _ in range(8)))
    Console(file=stream, width=80).print(Table("T", ("Model", *"ABCDEFGH"), (row,)).to_rich())
    assert "…" not in stream.getvalue()
    assert stream.getvalue().count("±12.67*") == 8


def test_csv():
    assert TABLE.to_csv() == "model,loss\nbase,2.0000\na|b,1.5000\n"
    assert MARKED.to_csv() == "section,model,a_b\n,base,1.00 ±0.10\n,rho,2.00\nminus base,rho,+1.00 ±0.20*\n"


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=4))
def test_csv_is_read_back(rows):
    table = Table("T", ("a", "b"), tuple(rows))
    assert list(csv.reader(io.StringIO(table.to_csv(), newline=""))) == [["a", "b"], *map(list, rows)]


def test_latex_table():
    assert MARKED.to_latex("tab:one").splitlines() == [
        *("% needs \\usepackage{booktabs}", "\\begin{table}[t]", "\\centering", "\\small"),
        *("\\caption{Scores. 95 \\%}", "\\label{tab:one}", "\\smallskip", "\\begin{tabular}{lr}"),
        *("\\toprule", "model & a\\_b \\\\", "\\midrule"),
        "base & \\begin{tabular}[t]{@{}r@{}}\\underline{1.00}\\\\{\\scriptsize $\\pm$0.10}\\end{tabular} \\\\[3pt]",
        "rho & \\textbf{2.00} \\\\",
        *("\\midrule", "\\multicolumn{2}{l}{\\textit{minus base}} \\\\"),
        "rho & \\begin{tabular}[t]{@{}r@{}}+1.00\\\\{\\scriptsize $\\pm$0.20*}\\end{tabular} \\\\[3pt]",
        *("\\bottomrule", "\\end{tabular}", "\\end{table}"),
    ]
    assert "label" not in TABLE.to_latex()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("95 % of a_b & c#1", r"95 \% of a\_b \& c\#1"),
        ("-0.5 ± 0.1", r"$-$0.5 $\pm$ 0.1"),
        ("−0.5 – 1", "$-$0.5 -- 1"),
        ("ARC-C, Fixed-model, 2024-05", "ARC-C, Fixed-model, 2024-05"),
        ("(-3 to -1)", "($-$3 to $-$1)"),
        ("{x}^2~\\y", r"\{x\}\textasciicircum{}2\textasciitilde{}\textbackslash{}y"),
        ("p < 0.05, DS², ×100 $", r"p $<$ 0.05, DS$^2$, $\times$100 \$"),
    ],
)
def test_latex_text(text, escaped):
    assert latex(text) == escaped
