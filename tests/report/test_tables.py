"""Tables: the same cells in a terminal and in Markdown."""

from __future__ import annotations

import io

from rich.console import Console

from tokenclean.report.tables import Table, difference_text, jaccard_table, share_text
from tokenclean.scoring import PairedDifference

TABLE = Table("Title", ("model", "loss"), (("base", "2.0000"), ("a|b", "1.5000")), "a note")


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
