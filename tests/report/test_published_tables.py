"""The paper's numbers: the printed digits, recomputed averages, and every fault beside the number it concerns."""

from __future__ import annotations

import math
from itertools import product

import pytest

from tokenclean.report.published_tables import (
    COLUMNS,
    PublishedRow,
    published,
    published_row,
    published_table,
)

WRONG_AVERAGE = "The printed average is not that of the row's seven tasks; go by the recomputed one."
COARSE_AVERAGE = "The printed average agrees with the recomputed one to one decimal only."
ON_AVERAGE = "Section 6.2 claims {} % over full tokens; the printed averages give {} %, the recomputed ones {} %."
EIGHT = ("TruthfulQA", "TydiQA", "LoqiQA", "MMLU", "HellaSwag", "ARC-C", "BoolQ", "AVG")
ROWS = {1: 21, 2: 4, 3: 6, 4: 5, 5: 8, 6: 28, 7: 8, 8: 7}

# Copied by hand from the paper: table, row, name, cells.
PRINTED = """
1  1 BASE: 39.39 21.10 22.17 56.29 55.24 42.20 72.95 44.19
1  2 DS² (10K): 43.35 41.20 24.96 56.93 55.64 44.62 74.80 48.79
1  4 UNIFORM RANDOM (50K × 0.6): 43.79 47.00 23.41 56.96 55.37 44.44 75.05 49.43
1  7 SELF-EVOLVING CLEANING: 51.07 56.38 28.22 56.18 55.81 45.99 77.33 53.00
1 10 FULL TOKENS (50K): 47.51 58.10 28.53 65.78 60.42 54.01 82.49 56.70
1 12 RHO: 54.63 61.90 28.99 65.74 62.14 54.78 81.66 58.55
1 15 BASE: 42.56 54.70 25.74 62.41 60.77 48.92 82.30 52.88
1 20 FIXED-MODEL CLEANING: 44.52 59.03 26.05 61.45 61.47 51.68 82.03 55.20
1 21 SELF-EVOLVING CLEANING: 45.41 56.17 27.44 62.30 61.40 50.65 81.28 55.00
2  1 REFERENCE-1: 45.46 50.05 27.44 57.31 56.10 45.91 76.87
2  3 REFERENCE-3: 48.91 54.36 28.22 56.43 56.13 46.43 77.36
3  1 REFERENCE: LLAMA-8B-INST: 68.18 84.03 21.63 51.77
3  4 REFERENCE: WARMUP: 56.93 74.80 41.20 44.62
3  6 FIXED-MODEL CLEANING: 57.09 77.52 52.60 45.39
4  1 OPEN-ASSISTANT 1: Human-generated Both 2418 45.4 364.1 409.5
4  3 WIZARDLM: ChatGPT-generated High 34772 126.1 419.23 545.4
4  5 FLAN V2: Human-generated Normal 6645 475.1 38.6 513.7
5  2 REFERENCE-2: 56.77 63.23 27.91 65.40 62.29 56.16 82.64
5  7 REFERENCE-3: 44.93 55.69 27.44 62.32 61.30 50.82 80.36
6  1 REFERENCE-1 (0.3): 45.68 49.36 27.60 57.23 56.06 45.56 77.08
6  6 REFERENCE-2 (0.4): 46.95 51.73 29.30 56.82 56.34 46.94 77.18
6 21 REFERENCE-1 (0.8): 45.09 56.21 26.67 57.50 45.65 32.73 76.87
6 28 REFERENCE-4 (0.9): 46.36 51.68 26.98 57.25 56.34 45.65 76.90
7  1 SELF-EVOLVING CLEANING (0.3): 51.57 52.96 26.51 55.42 55.55 46.51 77.24 52.25
7  4 SELF-EVOLVING CLEANING (0.6): 51.07 56.38 28.22 56.18 55.81 45.99 77.33 53.0
7  6 SELF-EVOLVING CLEANING (0.8): 48.40 56.23 26.82 56.89 45.91 33.33 77.18 49.25
8  2 LLAMA-8B-INST: 54.12 21.63 31.47 68.18 59.0 51.77 84.03 52.89
8  3 RHO (LLAMA): 44.06 39.37 25.58 57.04 55.35 46.08 75.94 49.1
8  7 FIXED-MODEL CLEANING (WARMUP): 48.96 52.60 25.89 57.09 56.43 45.39 77.52 51.98
""".strip().splitlines()


def all_rows() -> list[PublishedRow]:
    return [row for table in published().tables for row in table.rows]


def average(row: PublishedRow) -> float:
    assert row.average is not None
    return row.average.value


def place_of(row: PublishedRow | None) -> tuple[int, int]:
    """Table, and number in print order from 1."""
    assert row is not None
    return row.table, 1 + published().table(row.table).rows.index(row)


def cells_of(number: int) -> list[tuple[str, ...]]:
    return [tuple(row.cells.values()) for row in published().table(number).rows]


def sentences(number: int) -> dict[int, str]:
    """The footnotes of a rendered table."""
    lines = [line for line in published_table(number).note.splitlines() if line.startswith("[")]
    return {int(line[1 : line.index("]")]): line[line.index("]") + 2 :] for line in lines}


@pytest.mark.parametrize("line", PRINTED)
def test_digits_are_those_of_the_paper(line: str):
    place, cells = line.rsplit(": ", 1)
    table, number, name = place.split(maxsplit=2)
    row = published().table(int(table)).rows[int(number) - 1]
    assert (row.table, row.name, " ".join(row.cells.values())) == (int(table), name, cells)


def test_every_table_has_its_columns_and_rows():
    tables = published().tables
    assert [table.number for table in tables] == list(range(1, 9))
    assert {table.number: len(table.rows) for table in tables} == ROWS
    columns = {table.number: table.columns[1:] for table in tables}
    assert columns[1] == columns[7] == columns[8] == EIGHT
    assert columns[2] == columns[5] == columns[6] == EIGHT[:-1]
    assert columns[3] == ("MMLU", "BoolQ", "TydiQA", "ARC-C")
    assert columns[4] == ("Data source", "Data quality", "# Data size", "Prompt_Len", "Completion_Len", "Overall_Len")
    assert all(tuple(row.cells) == table.columns[1:] for table in tables for row in table.rows)
    with pytest.raises(ValueError, match="Tables 1 to 8, not a Table 9"):
        published().table(9)


def test_source_names_the_paper():
    assert published().citation == (
        "Jinlong Pang et al., Token Cleaning: Fine-Grained Data Selection for LLM Supervised Fine-Tuning (2025), "
        "arXiv:2502.01968"
    )
    sections = ["6.2", "6.2", "6.3", "10.1", "11.1", "11.2", "11.2", "11.3"]
    assert [table.section for table in published().tables] == sections


def test_tables_that_repeat_each_other_agree():
    one, two, three, _, five, six, seven, eight = map(cells_of, range(1, 9))
    assert six[12:16] == two
    assert [row[:7] for row in seven[:7]] == six[3::4]
    assert (five[3], five[7]) == (one[13][:7], one[20][:7])
    assert [eight[place] for place in (0, 4, 5, 6)] == [one[place] for place in (0, 1, 4, 5)]
    order = [EIGHT.index(column) for column in published().table(3).columns[1:]]
    assert three == [tuple(row[place] for place in order) for row in eight[1:]]


def test_sizes_of_the_pool_add_up():
    rows = cells_of(4)
    assert sum(int(row[2]) for row in rows) == 50_000
    for row in rows:
        prompt, completion, overall = map(float, row[3:])
        assert overall == pytest.approx(prompt + completion, abs=0.11), row


def test_averages_are_recomputed_from_the_seven_tasks():
    """And flagged where the printed one is not the recomputed one, rounded to as many digits."""
    for row in all_rows():
        if row.table in (3, 4):
            assert row.average is None
            continue
        assert average(row) == pytest.approx(math.fsum(float(row.cells[column]) for column in EIGHT[:7]) / 7)
        expected = set()
        if "AVG" in row.cells:
            difference = abs(float(row.cells["AVG"]) - average(row))
            rounding = 0.5 * 10 ** -len(row.cells["AVG"].partition(".")[2])
            expected = (
                {WRONG_AVERAGE if difference > 0.051 else COARSE_AVERAGE} if difference > rounding + 0.001 else {}
            )
        assert {f.sentence for f in row.faults} & {WRONG_AVERAGE, COARSE_AVERAGE} == set(expected), row


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            WRONG_AVERAGE,
            [
                (1, 15, "BASE", "52.88", "53.91"),
                (1, 16, "DS² (10K)", "53.85", "54.66"),
                (1, 17, "FULL TOKENS (50K)", "54.12", "54.64"),
                (1, 18, "UNIFORM RANDOM (50K × 0.6)", "53.64", "54.54"),
                (1, 19, "RHO", "53.60", "54.53"),
            ],
        ),
        (
            COARSE_AVERAGE,
            [
                (1, 10, "FULL TOKENS (50K)", "56.70", "56.69"),
                (1, 13, "FIXED-MODEL CLEANING", "58.90", "58.86"),
                (1, 14, "SELF-EVOLVING CLEANING", "59.20", "59.19"),
                (1, 20, "FIXED-MODEL CLEANING", "55.20", "55.18"),
                (1, 21, "SELF-EVOLVING CLEANING", "55.00", "54.95"),
                (7, 5, "SELF-EVOLVING CLEANING (0.7)", "52.83", "52.84"),
            ],
        ),
    ],
)
def test_averages_that_do_not_follow_are_flagged(sentence: str, expected: list[tuple[int, int, str, str, str]]):
    flagged = [row for row in all_rows() if sentence in {fault.sentence for fault in row.faults}]
    found = [(*place_of(row), row.name, row.cells["AVG"], f"{average(row):.2f}") for row in flagged]
    assert found == expected


def test_no_other_row_is_flagged():
    found = {
        (*place_of(row), fault.columns)
        for row in all_rows()
        for fault in row.faults
        if fault.sentence not in (WRONG_AVERAGE, COARSE_AVERAGE)
    }
    shifted = ("TydiQA", "HellaSwag", "ARC-C", "AVG")
    assert found == {
        (1, 19, ("AVG",)),
        (1, 21, ("AVG",)),
        (5, 4, ("LoqiQA",)),
        *((6, number, shifted) for number in (21, 22, 23, 24)),
        (7, 2, ("AVG",)),
        (7, 6, shifted),
        (7, 8, ()),
    }
    assert {table.number for table in published().tables if table.faults} == {1, 8}
    assert "LLaMA-3.1-3B" in published().table(8).caption


@pytest.mark.parametrize(
    ("base_model", "claimed"), [("LLaMA-3.2-3B", "6.3"), ("Mistral-7B-v0.3", "2.0"), ("LLaMA-3.1-8B", "4.4")]
)
def test_a_claimed_rise_of_the_average_that_does_not_follow_is_flagged(base_model: str, claimed: str):
    ours, theirs = (published_row(base_model, strategy) for strategy in ("self_evolving", "full_tokens"))
    assert ours is not None
    assert theirs is not None
    printed = 100 * (float(ours.cells["AVG"]) / float(theirs.cells["AVG"]) - 1)
    recomputed = 100 * (average(ours) / average(theirs) - 1)
    follows = abs(recomputed - float(claimed)) <= 0.051
    assert follows == (base_model != "Mistral-7B-v0.3")
    sentence = ON_AVERAGE.format(claimed, f"{printed:.1f}", f"{recomputed:.1f}")
    assert (sentence in [fault.sentence for fault in ours.faults]) == (not follows)


def test_what_is_said_of_the_proportion_0_8_holds():
    others = [row for row in published().table(6).rows if row.proportion != 0.8]
    hellaswag, arc = ([float(row.cells[column]) for row in others] for column in ("HellaSwag", "ARC-C"))
    assert min(hellaswag) > 55
    assert min(arc) > 44
    for row in published().table(6).rows[20:24]:
        assert min(hellaswag) <= float(row.cells["TydiQA"]) <= max(hellaswag)
        assert min(arc) <= float(row.cells["HellaSwag"]) <= max(arc)
        assert _is_share_of(row.cells["HellaSwag"], 1161)
        assert _is_share_of(row.cells["ARC-C"], 495)


def test_what_is_said_of_the_number_of_samples_holds():
    exceptions = set()
    for column, used, whole in (("LoqiQA", 645, 651), ("ARC-C", 1161, 1172), ("BoolQ", 3238, 3270)):
        assert used == math.ceil(0.99 * whole)
        cells = {row.cells[column] for row in all_rows() if column in row.cells}
        exceptions |= {(column, cell) for cell in cells if not _is_share_of(cell, used)}
        assert sum(_is_share_of(cell, whole) for cell in cells) < 0.3 * len(cells)
    assert exceptions == {("ARC-C", "32.93")}


def test_what_is_said_of_other_rows_holds():
    seven = published().table(7).rows
    assert seven[7].cells == published().table(1).rows[2].cells
    averages = list(map(average, seven))
    assert averages[1] > max(averages[2], averages[4])
    logiqa = [float(row.cells["LoqiQA"]) for row in published().table(5).rows[:4]]
    assert logiqa == sorted(logiqa, reverse=True)
    assert (logiqa[0], logiqa[-1]) == (28.68, 26.05)
    for first in (0, 7, 14):  # the proposed strategies lead by their averages
        *baselines, fixed, evolving = published().table(1).rows[first : first + 7]
        assert min(average(fixed), average(evolving)) > max(map(average, baselines))


def test_scores_are_looked_up_by_our_names():
    evolving = published_row("mistralai/Mistral-7B-v0.3", "self_evolving")
    assert place_of(evolving) == (1, 21)
    score = evolving.score("arc_challenge")
    assert (score.value, score.printed) == (50.65, "50.65")
    assert ["99 % of the" in sentence for sentence in score.faults] == [True]
    base = published_row("Mistral-7B-v0.3", "base").average
    assert (round(base.value, 2), base.printed, base.faults) == (53.91, "52.88", (WRONG_AVERAGE,))
    truthful = published_row("meta-llama/Meta-Llama-3.1-8B/", "ds2").score("truthfulqa")
    assert truthful.value == 49.57
    assert "MC1" in truthful.faults[0]


def test_every_strategy_of_table_1_is_found_for_every_model_and_task():
    strategies = ("base", "ds2", "full_tokens", "random", "rho", "fixed_model", "self_evolving")
    models = ("LLaMA-3.2-3B", "LLaMA-3.1-8B", "Mistral-7B-v0.3")
    rows = [published_row(model, strategy) for model, strategy in product(models, strategies)]
    assert rows == list(published().table(1).rows)
    assert COLUMNS.keys() == {"truthfulqa", "tydiqa", "logiqa", "mmlu", "hellaswag", "arc_challenge", "boolq"}
    assert all(row is not None and row.score(task) is not None for row in rows for task in COLUMNS)


def test_proportions_rounds_and_references_are_found():
    places = [
        ((0.8, None, None), "self_evolving", (7, 6)),
        ((0.6, 2, None), "self_evolving", (2, 2)),
        ((0.7, 3, None), "self_evolving", (6, 19)),
        ((0.6, None, "meta-llama/Llama-3.1-8B-Instruct"), "rho", (8, 3)),
    ]
    for (proportion, round_number, reference), strategy, place in places:
        row = published_row(
            "LLaMA-3.2-3B", strategy, proportion=proportion, round_number=round_number, reference=reference
        )
        assert place_of(row) == place
    second = published_row("LLaMA-3.2-3B", "self_evolving", proportion=0.6, round_number=2)
    assert (second.average.printed, round(second.average.value, 2)) == ("", 52.01)


def test_what_the_paper_does_not_print_is_none():
    assert published_row("Qwen2.5-3B", "rho") is None
    assert published_row("LLaMA-3.2-3B", "noise_mixture") is None
    assert published_row("LLaMA-3.2-3B", "rho", proportion=0.5) is None
    assert published_row("LLaMA-3.2-3B", "rho").score("gsm8k") is None
    assert published_row("LLaMA-3.2-3B", "rho", reference="Mistral-7B-v0.3") is None


def test_markdown_shows_both_averages_and_the_faults():
    lines = published_table(1).to_markdown().splitlines()
    assert lines[:5] == [
        "**Table 1 as published [1]**",
        "",
        "| Model | TruthfulQA [2] | TydiQA | LoqiQA [3] | MMLU | HellaSwag | ARC-C [3] | BoolQ [3] | AVG "
        "| recomputed |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| Base model: LLaMA-3.2-3B |  |  |  |  |  |  |  |  |  |",
    ]
    assert "| RHO | 43.92 | 54.50 | 25.43 | 62.12 | 61.35 | 51.08 | 83.29 | 53.60 [5] [6] | 54.53 |" in lines
    footnotes = sentences(1)
    assert len(footnotes) == 7
    assert footnotes[4] == COARSE_AVERAGE
    assert footnotes[5] == WRONG_AVERAGE
    assert footnotes[6].endswith("recomputed, the two averages are 54.53 and 55.18.")
    assert footnotes[7] == ON_AVERAGE.format("2.0", "1.6", "0.6")


def test_markdown_of_the_other_tables():
    assert (
        "| SELF-EVOLVING CLEANING (0.8) | 48.40 | 56.23 [5] | 26.82 | 56.89 | 45.91 [5] | 33.33 [5] | 77.18 "
        "| 49.25 [5] | 49.25 [5] |"
    ) in published_table(7).to_markdown()
    assert sentences(7)[5].startswith("Looks like an evaluation fault")
    assert published_table(6).columns[-1] == "recomputed"
    assert published_table(6).rows[21][-1] == "48.67 [3]"
    assert published_table(8).title == "Table 8 as published [1]"
    assert sentences(8)[1].startswith("The caption says LLaMA-3.1-3B")
    assert published_table(3).rows[0] == ("REFERENCE: LLAMA-8B-INST", "68.18", "84.03", "21.63", "51.77")
    pool = published_table(4)
    assert (pool.text_columns, sentences(4)) == ((0, 1, 2), {})
    assert pool.rows[1] == ("STANFORD ALPACA", "Generated w/ Davinci-003", "Normal", "4598", "22.5", "84.8", "107.2")


def _is_share_of(cell: str, count: int) -> bool:
    """Whether a printed percentage is some whole number of ``count`` samples."""
    near = round(float(cell) * count / 100)
    return any(abs(100 * k / count - float(cell)) <= 0.0051 for k in (near - 1, near, near + 1))
