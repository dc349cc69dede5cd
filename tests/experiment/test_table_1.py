"""Table 1: marks, columns and the block of differences, from small made-up scores."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from tokenclean.evaluation.comparison import Comparison, compare
from tokenclean.evaluation.paired_scores import ItemScores
from tokenclean.experiment.comparing.table_1 import beside_paper, table_1, table_1_values
from tokenclean.report.tables import Cell


def solved(count: int, of: int = 40) -> np.ndarray:
    return np.arange(of) < count


def comparison_of(seeds: int = 1, **counts: tuple[int, int]) -> Comparison:
    """Strategies with so many of 40 items solved in MMLU and XQuAD."""
    scores = {
        name: {seed: {"mmlu": solved(mmlu), "xquad": solved(xquad)} for seed in range(seeds)}
        for name, (mmlu, xquad) in counts.items()
    }
    return compare(ItemScores(scores), "full_tokens", draws=500)


THREE = comparison_of(full_tokens=(20, 30), rho=(30, 30), self_evolving=(10, 20))


def marks(table, column: int, rows: int) -> list[tuple[str, str]]:
    return [(cell.text, cell.mark) for row in table.rows[:rows] if isinstance(cell := row[column], Cell)]


def test_columns_are_the_papers_and_average_comes_last():
    table = table_1(THREE)
    assert table.columns == ("Model", "MMLU", "XQuAD", "Avg")
    cleaned = ["RHO", "Self-evolving cleaning"]
    assert [row[0] for row in table.rows] == ["Full tokens", *cleaned, *cleaned]
    assert table.sections == {3: "minus Full tokens"}


def test_other_tasks_and_strategies_go_by_their_names():
    unknown = compare(ItemScores({"mine": {0: {"gsm8k": solved(3)}}}), "mine")
    assert table_1(unknown).columns == ("Model", "gsm8k", "Avg")
    assert table_1(unknown).rows[0][0] == "mine"


def test_best_is_bold_second_underlined_and_ties_share():
    table = table_1(THREE)
    assert marks(table, 1, 3) == [("50.00", "second"), ("75.00", "best"), ("25.00", "")]
    assert marks(table, 2, 3) == [("75.00", "best"), ("75.00", "best"), ("50.00", "second")]
    assert marks(table, 3, 3) == [("62.50", "second"), ("75.00", "best"), ("37.50", "")]


def test_nothing_is_best_where_all_are_equal():
    table = table_1(comparison_of(full_tokens=(20, 30), rho=(20, 10)))
    assert [mark for _, mark in marks(table, 1, 2)] == ["", ""]
    alone = table_1(comparison_of(full_tokens=(20, 30)))
    assert [mark for _, mark in marks(alone, 1, 1)] == [""]
    assert alone.sections == {}
    assert "Best" not in alone.note
    assert "differences" not in alone.note


def test_errors_and_differences():
    table = table_1(THREE)
    error = 100 * solved(20).std(ddof=1) / np.sqrt(40)
    assert table.rows[0][1] == Cell("50.00", "second", f"±{error:.2f}")
    rho = THREE.differences["rho"]
    assert table.rows[3][1] == Cell("+25.00", small=f"±{100 * rho.tasks['mmlu'].half_width:.2f}*")
    assert table.rows[3][2] == Cell("0.00", small="±0.00")
    assert table.rows[3][3] == Cell("+12.50", small=f"±{100 * rho.average.half_width:.2f}*")


def test_note_says_what_the_errors_cover():
    assert table_1(THREE).note.startswith(
        "One seed; all errors are over items, for the models of this seed alone. Best"
    )
    three_seeds = table_1(comparison_of(3, full_tokens=(20, 30), rho=(30, 30))).note
    assert three_seeds.startswith("Mean of 3 seeds; all errors are over items and seeds. ")
    assert "paired differences from Full tokens, in points, ± half the 95 % interval" in three_seeds


def test_in_every_format():
    table = table_1(THREE)
    assert "| RHO | **75.00** <sub>±" in table.to_markdown()
    assert "\\textbf{75.00}" in table.to_latex()
    assert "$-$25.00" in table.to_latex()
    assert table.to_csv().splitlines()[0] == "section,Model,MMLU,XQuAD,Avg"
    stream = io.StringIO()
    Console(file=stream, width=80).print(table.to_rich())
    assert "+25.00" in stream.getvalue()


def test_values_are_unrounded():
    lines = list(csv.DictReader(io.StringIO(table_1_values(THREE))))
    assert [(line["strategy"], line["task"]) for line in lines[:4]] == [
        *(("full_tokens", "mmlu"), ("full_tokens", "xquad"), ("full_tokens", "average"), ("rho", "mmlu"))
    ]
    assert lines[0]["difference"] == ""
    average, expected = lines[5], THREE.differences["rho"].average
    assert (average["minus"], average["items"], average["seeds"], average["is_real"]) == ("full_tokens", "80", "1", "1")
    found = [float(average[name]) for name in ("score", "difference", "low_95", "high_95", "p")]
    assert found == [0.75, expected.value, expected.low, expected.high, expected.p]
    assert float(average["holm_p"]) == pytest.approx(THREE.differences["rho"].holm_p)
    assert lines[3]["holm_p"] == ""


def test_ours_beside_the_papers():
    """Table 1's full tokens on Mistral: MMLU 62.41, average printed as 54.12 where its tasks give 54.64."""
    table = beside_paper(THREE, "mistralai/Mistral-7B-v0.3", 0.6)
    assert table is not None
    assert table.columns == ("Model", "MMLU", "XQuAD", "Avg")
    full = table.rows[0]
    assert full == ("Full tokens", "50.00 | 62.41", "75.00 | –", "62.50 | 54.64")
    assert "not that of the row's seven tasks" in table.note
    assert [row[0] for row in table.rows] == ["Full tokens", "RHO", "Self-evolving cleaning"]
    assert beside_paper(THREE, "my/own-model", 0.6) is None
