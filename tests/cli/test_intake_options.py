"""The options by which ``score``, ``inspect`` and ``run`` are told what a pool holds."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.token_table import TokenTable, read_table

QUESTIONS = [("Why is the sky blue?", "Air scatters blue light."), ('Say "a, b"', "a, b;\nc"), ("What is 2 + 2?", "4")]
ALPACA = [{"instruction": question, "output": answer} for question, answer in QUESTIONS]
TURNS = [
    {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "First answer"},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Second answer"},
        ]
    }
]


def write_lines(rows: Sequence[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(rows: Sequence[dict], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_array(rows: Sequence[dict], path: Path) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_parquet(rows: Sequence[dict], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def pack(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@pytest.fixture
def score(command, tiny_model_folder, tmp_path):
    """A function (pool, options) that scores with the tiny model and reads the table."""

    def run(pool: Path, *options: object) -> TokenTable:
        said = command("score", pool, "--base", tiny_model_folder, "-o", tmp_path / "s.parquet", *options)
        assert said.code == 0, said.err
        return read_table(tmp_path / "s.parquet")

    return run


@pytest.fixture
def tokenizer(tiny_model_folder):
    from tokenclean.models.loading.load import load_tokenizer

    return load_tokenizer(str(tiny_model_folder))


def targets_of(table: TokenTable, tokenizer) -> list[str]:
    """The text of each row's targets."""
    pairs = zip(table["input_ids"], table["is_response"], strict=True)
    return [tokenizer.decode(ids[labels]) for ids, labels in pairs]


def content_of(table: TokenTable) -> list[bytes]:
    return [table[name].values.tobytes() for name in ("input_ids", "is_response", "base_loss")]


FORMS = {
    "rows.csv": write_csv,
    "rows.json": write_array,
    "rows.parquet": write_parquet,
    "rows.jsonl.gz": lambda rows, path: pack(write_lines(rows, path.with_suffix(""))),
    "rows.csv.gz": lambda rows, path: pack(write_csv(rows, path.with_suffix(""))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_give_the_same_losses_in_whatever_file_they_lie(name, score, tokenizer, tmp_path):
    expected = score(write_lines(ALPACA, tmp_path / "rows.jsonl"))
    assert targets_of(expected, tokenizer) == [answer + "</s>" for _, answer in QUESTIONS]
    assert content_of(score(FORMS[name](ALPACA, tmp_path / name))) == content_of(expected)


def test_columns_of_other_names_are_mapped(score, command, tiny_model_folder, tmp_path):
    expected = score(write_lines(ALPACA, tmp_path / "rows.jsonl"))
    other = [{"question": q, "answer": {"text": a}, "output": "another"} for q, a in QUESTIONS]
    mapped = ("--column", "instruction=question", "--column", "output=answer.text")
    pool = write_lines(other, tmp_path / "other.jsonl")
    assert content_of(score(pool, *mapped)) == content_of(expected)
    said = command("inspect", pool, "--model", tiny_model_folder, *mapped)
    assert f"⟦{QUESTIONS[0][1]}</s>⟧" in said.out


def test_a_column_map_that_is_none_is_refused_before_anything_is_read(command, tmp_path):
    for column in ("question", "=question", "instruction="):
        said = command("score", tmp_path / "none.jsonl", "--base", "./none", "--column", column)
        assert said.code == 2
        assert said.err == (f"error: options: --column {column}: expected OURS=THEIRS, such as instruction=question\n")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("response", ["First answer</s>", "Second answer</s>"]), ("last_turn", ["Second answer</s>"])],
)
def test_targets_are_every_answer_or_the_last(
    targets, expected, score, command, tokenizer, tiny_model_folder, tmp_path
):
    pool = write_lines(TURNS, tmp_path / "turns.jsonl")
    assert targets_of(score(pool, "--targets", targets), tokenizer) == ["".join(expected)]
    said = command("inspect", pool, "--model", tiny_model_folder, "--targets", targets)
    assert [part.partition("⟧")[0] for part in said.out.split("⟦")[1:]] == expected


def test_targets_may_be_all_tokens_and_the_pool_plain_text(score, command, tokenizer, tiny_model_folder, tmp_path):
    pool = write_lines([{"text": "A plain text of some words."}], tmp_path / "texts.jsonl")
    table = score(pool, "--targets", "all", "--format", "text")
    # The first token has nothing before it, and so no loss.
    assert table["is_response"].values.tolist() == [False] + [True] * (len(table["input_ids"].values) - 1)
    assert tokenizer.decode(table["input_ids"].values).startswith("A plain text of some words.")

    said = command("score", pool, "--base", tiny_model_folder, "-o", tmp_path / "x.parquet", "--format", "text")
    assert said.code == 2
    assert "all" in said.err
    said = command("inspect", pool, "--model", tiny_model_folder, "--targets", "all")
    assert said.code == 0
    assert "⟦" in said.out


def test_rows_that_are_tokenized_already_keep_their_ids_and_labels(score, command, tiny_model_folder, tmp_path):
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9]},
        {"input_ids": [20, 21, 22], "labels": [-100, 21, 22]},
    ]
    pool = write_parquet(rows, tmp_path / "tokens.parquet")
    table = score(pool, "--format", "tokens")
    assert [ids.tolist() for ids in table["input_ids"]] == [row["input_ids"] for row in rows]
    expected = [[label >= 0 for label in row["labels"]] for row in rows]
    assert [labels.tolist() for labels in table["is_response"]] == expected
    assert content_of(score(pool)) == content_of(table)  # and auto tells them from conversations
    assert command("inspect", pool, "--model", tiny_model_folder).out.count("⟦") == 3


def broken_pool(folder: Path) -> Path:
    """Ten rows, four of which cannot be used."""
    pool = write_lines(ALPACA * 2, folder / "pool.jsonl")
    bad = ["not json", '{"instruction": "a", "output": ""}', '{"messages": "none"}', '{"instruction": "a"}']
    pool.write_text(pool.read_text() + "\n".join(bad) + "\n")
    return pool


def listed_lines(listing: Path) -> list[int]:
    return [json.loads(line)["line"] for line in listing.read_text().splitlines()]


def test_too_many_bad_rows_stop_a_run_before_the_model_is_looked_for(command, tmp_path):
    settings = (f"pool.sources=[{{path: {broken_pool(tmp_path)}}}]", "model.base=./no-model", f"output={tmp_path}/runs")
    said = command("run", "quick", *(word for setting in settings for word in ("--set", setting)))
    listing = tmp_path / "runs" / "quick" / "rejected.jsonl"
    assert said.code == 2
    assert "4 of 10 rows cannot be used (40.0%), more than the 5.0%" in said.err
    assert f"all are listed in {listing} " in said.err
    assert "no-model" not in said.err
    assert listed_lines(listing) == [7, 8, 9, 10]


def test_too_many_bad_rows_stop_a_score_before_torch_is_loaded(tmp_path):
    code = "import sys\nfrom tokenclean.cli.main import main\ntry: main()\n"
    code += "finally: print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    arguments = ["score", broken_pool(tmp_path), "--base", "./no-model", "-o", tmp_path / "s.parquet"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout.strip() == ""
    assert "4 of 10 rows cannot be used" in result.stderr
    assert "no-model" not in result.stderr
    assert listed_lines(tmp_path / "s.rejected.jsonl") == [7, 8, 9, 10]
    assert not (tmp_path / "s.parquet").exists()


def test_a_higher_share_lets_the_good_rows_through_and_lists_the_bad_ones(score, tmp_path):
    assert len(score(broken_pool(tmp_path), "--max-rejected-share", "0.4")) == 6
    assert listed_lines(tmp_path / "s.rejected.jsonl") == [7, 8, 9, 10]
