"""What a report says about figures on disk: which differences it calls real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.results_section import comparison, heldout_differences, results
from tokenclean.report.plots.style import Plot
from tokenclean.report.tables import Table

COLUMNS = "strategy,task,minus,difference,low_95,high_95,holm_p,is_real"
DIFFERENCE = {"difference": 0.01, "low": -0.01, "high": 0.03}


def run_with(folder: Path, values: list[str]) -> FinishedRun:
    (folder / "comparison.json").write_text(json.dumps({"sentences": ["a sentence"]}))
    (folder / "values.csv").write_text("\n".join([COLUMNS, *values]) + "\n")
    (folder / "tables.json").write_text(json.dumps([Table("Table 1", ("a",), (("b",),)).to_document()]))
    return FinishedRun("run", folder, comparison=folder)


@pytest.mark.parametrize(
    ("p", "is_real", "title"),
    [
        (0.03, 1, "On average over the tasks the difference from Full tokens is real: RHO"),
        (
            0.18,
            1,
            "Compared alone RHO would differ from Full tokens on average; after Holm's correction for 2 comparisons",
        ),
        (0.60, 0, "No strategy differs from Full tokens on average over the tasks by a real difference"),
    ],
)
def test_a_difference_is_called_real_after_holms_correction_only(tmp_path, p, is_real, title):
    values = [
        f"rho,average,full_tokens,0.01,0.002,0.02,{p},{is_real}",
        "random,average,full_tokens,0.0,-0.01,0.01,0.9,0",
        "full_tokens,average,,,,,,",
        "rho,boolq,full_tokens,0.2,0.1,0.3,,1",
    ]
    (plot,) = (b for b in comparison(run_with(tmp_path, values)) if isinstance(b, Plot))
    assert plot.title.startswith(title)
    assert [line.split(",")[0] for line in plot.csv.splitlines()[1:]] == ["RHO", "Uniform random"]


def finished(folder: Path, name: str, rows: list[str]) -> FinishedRun:
    place = folder / name
    place.mkdir()
    line = {"name": "random", "kept_share": 0.6, "loss": 2.0, "against_base": DIFFERENCE, "against_full": None}
    base = {"name": "base", "kept_share": None, "loss": 2.1, "against_base": None, "against_full": None}
    (place / "result.json").write_text(json.dumps({"measured": [base, line], "heldout_rows": rows}))
    (place / "tables.json").write_text(json.dumps([Table("Held-out", ("a",), (("b",),)).to_document()]))
    return FinishedRun(name, place, results=place)


def test_no_model_comes_first_where_none_is_better(tmp_path):
    run = finished(tmp_path, "one", ["a"])
    (plot,) = heldout_differences(run)
    assert plot.title == "No model is better than the base by a real difference"


@pytest.mark.parametrize(("rows", "said"), [(["a"], "the same held-out rows"), (["b"], "THE HELD-OUT ROWS DIFFER")])
def test_runs_whose_held_out_rows_differ_are_told(tmp_path, rows, said):
    block = results([finished(tmp_path, "one", ["a"]), finished(tmp_path, "two", rows)], [])[0]
    assert block.table.columns == ("model", "one", "two")
    assert [str(cell) for cell in block.table.rows[1][1:]] == ["2.0000 +0.0100 ± 0.0200 to base"] * 2
    assert said in block.table.note
