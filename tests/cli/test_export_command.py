"""``tokenclean export``: from a run, its results or a table to what each trainer takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.exporting import WRITERS, read_cleaned
from tokenclean.models.loading.load import load_tokenizer
from tokenclean.pool import load_pool
from tokenclean.token_table import read_table, write_table
from tokenclean.tokens import tokenize_pool

LABELLED = ("trl", "unsloth", "llamafactory", "axolotl", "hf")


def labels_of(folder: Path) -> list[list[int]]:
    """The labels of an exported dataset, in its order."""
    (file,) = (path for path in folder.rglob("*") if path.suffix in (".parquet", ".arrow"))
    if file.suffix == ".arrow":
        with pa.ipc.open_stream(file) as stream:
            return stream.read_all()["labels"].to_pylist()
    return pq.read_table(file)["labels"].to_pylist()


def cleaned_labels(dataset: Path) -> list[list[int]]:
    return read_cleaned(dataset).rows["labels"].to_pylist()


@pytest.fixture
def results(finished_run: Path) -> Path:
    (results,) = (finished_run / "results").iterdir()
    return results


@pytest.mark.parametrize("to", WRITERS)
def test_every_trainer_gets_the_labels_of_the_recipes_strategy(to, command, finished_run, results, tmp_path):
    said = command("export", finished_run, "--to", to, "-o", tmp_path / "out")
    assert said.code == 0, said.err
    dataset = results / "fixed_model" / "cleaned.parquet"
    expected = cleaned_labels(dataset)
    if to in LABELLED:
        assert labels_of(tmp_path / "out") == expected
    lines = said.out.splitlines()
    assert lines[0] == f"{tmp_path}/out: {len(expected)} rows for {to} of {dataset}"
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(lines[1].strip().split(", ")) == files
    assert lines[2].startswith(f"next: cd {tmp_path}/out && ")
    assert len(lines) == 3
    if to not in ("axolotl-parts", "llamafactory-v1"):  # whose messages and parts hold less than labels
        assert said.err == ""


def test_spans_are_read_as_a_pool_with_the_same_tokens_and_labels(command, finished_run, results, tmp_path):
    assert command("export", finished_run, "--to", "spans", "-o", tmp_path / "out").code == 0
    model = read_cleaned(results / "fixed_model" / "cleaned.parquet").metadata["models"]["base"]["name"]
    tokens = tokenize_pool(load_pool(tmp_path / "out" / "spans.jsonl"), load_tokenizer(model))
    expected = read_cleaned(results / "fixed_model" / "cleaned.parquet")
    np.testing.assert_array_equal(tokens.input_ids.values, expected.column("input_ids").values)
    np.testing.assert_array_equal(tokens.is_response.values, expected.column("completion_mask").values)


def test_forms_of_texts_need_a_run_whose_pool_is_still_there(command, results, tmp_path):
    table = tmp_path / "kept.parquet"
    kept = read_table(results / "fixed_model" / "kept.parquet")
    metadata = {name: value for name, value in kept.metadata.items() if name != "recipe"}
    write_table(replace(kept, metadata=metadata), table)
    said = command("export", table, "--to", "spans", "-o", tmp_path / "out")
    assert said.code == 2
    assert "names no recipe to read them by; export a run folder" in said.err
    strange = replace(kept, ids=("other:1:x", *kept.ids[1:]))
    write_table(strange, table)
    said = command("export", table, "--to", "spans", "-o", tmp_path / "out2")
    assert said.code == 2
    assert "rows are not in the pool any more, 'other:1:x' first" in said.err


@pytest.mark.slow
def test_no_bar_of_another_library_runs_into_a_pipe(finished_run, tmp_path):
    arguments = ("export", finished_run, "--to", "llamafactory", "-o", tmp_path / "out")
    command = [sys.executable, "-m", "tokenclean", *map(str, arguments)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_results_folder_another_strategy_and_a_default_name(command, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("export", results, "--to", "trl", "--strategy", "full_tokens")
    assert said.code == 0, said.err
    folder = tmp_path / f"{results.name}-trl"
    assert labels_of(folder) == cleaned_labels(results / "full_tokens" / "cleaned.parquet")
    assert said.err.startswith("warning: full_tokens drops no token, so these are the ordinary labels of the data")
    assert f"tokenclean merge {results} --strategy full_tokens" in said.err
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "drops no token: these are the ordinary labels of the data" in card
    assert "worth training on" not in card


def test_a_table_of_select(command, results, tmp_path):
    arguments = ("select", results / "fixed_model" / "kept.parquet", "-k", "0.25", "-o", tmp_path / "kept.parquet")
    assert command(*arguments).code == 0
    said = command("export", tmp_path / "kept.parquet", "--to", "hf", "-o", tmp_path / "out")
    assert said.code == 0, said.err
    kept = sum(label >= 0 for row in labels_of(tmp_path / "out") for label in row)
    total = sum(label >= 0 for row in cleaned_labels(results / "full_tokens" / "cleaned.parquet") for label in row)
    assert kept == int(0.25 * total)


def test_what_cannot_be_exported_is_refused_with_the_way_out(command, run_folder, tmp_path):
    run = run_folder("run")
    (results,) = (run / "results").iterdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    table = results / "fixed_model" / "kept.parquet"
    refusals = [
        (1, ["nothing"], "nothing: no such run folder or table"),
        (1, [run, "-o", tmp_path / "full"], "full: exists and is not an empty folder; name a new one"),
        (2, [run, "--strategy", "rho"], "has no strategy 'rho'; it has fixed_model, full_tokens"),
        (2, [table, "--strategy", "rho"], "is a file, which has no strategies; leave it out"),
        (1, [tmp_path / "full"], "holds no results; `tokenclean run` makes them"),
        (2, [tmp_path / "full" / "mine.txt"], "not a readable Parquet file"),
    ]
    for code, arguments, words in refusals:
        check_refusal(command, code, arguments, words, tmp_path)
    (results / "table.md").write_text("changed")
    check_refusal(command, 1, [run], f"{results}: failed its integrity check: table.md", tmp_path)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def check_refusal(command, code: int, arguments: list, words: str, folder: Path) -> None:
    output = [] if "-o" in arguments else ["-o", folder / "out"]
    said = command("export", *arguments, *output, "--to", "trl")
    assert (said.code, said.out) == (code, ""), said
    assert said.err.startswith("error: ")
    assert words in said.err
    assert not (folder / "out").exists()
