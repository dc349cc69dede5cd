"""``tokenclean select``: what it says and writes, and what it loads for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable, open_table, read_table, write_table


def part_of(first_row: int, sources: str, rows: list[list[float]]) -> TokenTable:
    """Rows of one prompt token and response tokens with these scores."""
    scores = Ragged.from_rows([[np.nan, *row] for row in rows], np.float32)
    is_response = scores.map_values(np.isfinite)
    ids = tuple(f"{source}:{first_row + row}" for row, source in enumerate(sources))
    columns = {"input_ids": scores.map_values(lambda v: np.zeros(len(v), np.int64)), "is_response": is_response}
    return TokenTable(ids, tuple(sources), {**columns, "score": scores})


PARTS = (
    part_of(0, "ba", [[4.0, 3.0, -1.0], [0.5]]),
    part_of(2, "", []),
    part_of(2, "bc", [[2.0, 2.0, 0.25, 2.0], []]),
)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    with open_table(tmp_path / "scores.parquet", {"template": "tulu"}) as writer:
        for part in PARTS:
            writer.write(part)
    return tmp_path / "scores.parquet"


@pytest.mark.parametrize(
    ("options", "kept", "words", "selection"),
    [
        (
            [],
            [[1, 1, 0], [0], [1, 1, 0, 0], []],
            ["4 of 8 response tokens kept, 1 conversations left empty"],
            {"proportion": 0.6, "level": "global", "threshold": 2.0},
        ),
        (
            ["-k", "0.5", "--level", "sample"],
            [[1, 0, 0], [0], [1, 1, 0, 0], []],
            [
                "3 of 8 response tokens kept, 1 conversations left empty",
                "  a: 0.0% of 1 tokens",
                "  b: 42.9% of 7 tokens",
            ],
            {"proportion": 0.5, "level": "sample", "threshold": 2.0},
        ),
        (
            ["-k", "1", "--level", "source"],
            [[1, 1, 1], [1], [1, 1, 1, 1], []],
            ["8 of 8 response tokens kept, 0 conversations left empty", "  c: 0.0% of 0 tokens"],
            {"proportion": 1.0, "level": "source", "threshold": -1.0},
        ),
        (
            ["-k", "0.01"],
            [[0, 0, 0], [0], [0, 0, 0, 0], []],
            ["0 of 8 response tokens kept, 3 conversations left empty"],
            {"proportion": 0.01, "level": "global", "threshold": None},
        ),
    ],
)
def test_what_is_kept_and_said(command, scores, options, kept, words, selection):
    output = scores.with_name("kept.parquet")
    said = command("select", scores, "-o", output, *options)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"{output}: {words[0]}"
    assert [line.split(":")[0] for line in lines[1:]] == ["  a", "  b", "  c"]
    assert set(words[1:]) <= set(lines)
    table = read_table(output)
    assert [row.astype(int).tolist() for row in table["is_kept"]] == [[0, *row] for row in kept]
    assert table.metadata == {"template": "tulu", "selection": selection}


def test_a_random_draw_is_that_of_its_seed(command, scores):
    def drawn(seed: int) -> list[bool]:
        said = command("select", scores, "-o", scores.with_name("kept.parquet"), "--level", "random", "--seed", seed)
        assert said.code == 0
        table = read_table(scores.with_name("kept.parquet"))
        assert table.metadata["selection"] == {"proportion": 0.6, "level": "random", "threshold": None, "seed": seed}
        return table["is_kept"].values.tolist()

    assert drawn(1) == drawn(1) != drawn(3)
    assert sum(drawn(3)) == 4


def test_a_score_that_is_no_number(command, scores):
    table = read_table(scores)
    values = table["score"].values.copy()
    values[-3] = np.nan
    path = scores.with_name("nan.parquet")
    write_table(table.with_columns({}, score=table["score"].with_values(values)), path)
    said = command("select", path, "-o", scores.with_name("kept.parquet"))
    assert said.code == 1
    assert " ".join(said.err.split()).startswith(
        f"error: {path}: the score of row 2 ('b:2'), position 3 is nan; 1 of 8 response tokens have no finite score."
    )
    assert sorted(path.name for path in scores.parent.iterdir()) == ["nan.parquet", "scores.parquet"]


def test_it_loads_no_model_library(scores):
    code = (
        "import sys\nfrom tokenclean.cli.main import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
    )
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    arguments = ["select", str(scores), "-o", str(scores.with_name("kept.parquet"))]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
