"""The command line as a user meets it: a subprocess, its exit code, its words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenclean.cli.main import COMMANDS as PANELS
from tokenclean.token_table import read_table, write_table

COMMANDS = [name for names in PANELS.values() for name in names]


def tokenclean(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "tokenclean", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    message = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == code, message
    assert "Traceback" not in message
    assert message.count("error:") <= 1
    for word in words:
        assert word in message


def test_help_loads_no_torch():
    code = "import sys; sys.argv = ['tokenclean', '--help']\nfrom tokenclean.cli.main import main\ntry: main()\n"
    code += "except SystemExit: pass\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, command):
    said = command(name, "--help")
    assert said.code == 0
    assert len(said.out.split()) > 40


def test_ctrl_c_says_that_nothing_is_lost():
    code = "import sys; from tokenclean.cli import main\ndef stop(name): raise KeyboardInterrupt\n"
    code += "main.load_command = stop; sys.argv = ['tokenclean', 'status']; main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "the same command continues" in done.stderr


def test_version():
    assert tokenclean("--version").stdout.startswith("tokenclean 0.")


class TestBrokenInput:
    """Each kind gives one clear message and the right exit code: 2 for input or recipe, 1 for a failed run."""

    def test_missing_pool_file(self, tiny_model_folder: Path, tmp_path: Path):
        refused(tokenclean("score", tmp_path / "nothing.jsonl", "--base", tiny_model_folder), 2, "nothing.jsonl")

    def test_no_usable_row(self, tiny_model_folder: Path, tmp_path: Path):
        path = tmp_path / "bad.jsonl"
        path.write_bytes(
            b'{"instruction": "a", "output": ""}\n\xff\xfe\n{"messages": [{"role": "wizard"}]}\nnot json\n'
        )
        refused(tokenclean("score", path, "--base", tiny_model_folder), 2, "bad.jsonl")

    def test_recipe_faults_all_at_once(self, tmp_path: Path):
        path = tmp_path / "r.yaml"
        path.write_text("preset: quick\ncleaning: {proportion: 2, strateg: rho}\nmodel: {base: x}\n")
        refused(
            tokenclean("run", path), 2, "3 problems", "did you mean strategy?", "cleaning.proportion", "pool: missing"
        )

    def test_recipe_file_missing_or_not_yaml(self, tmp_path: Path):
        refused(tokenclean("run", tmp_path / "r.yaml"), 2, "no such recipe file", "quick")
        (tmp_path / "bad.yaml").write_text("pool: [unclosed")
        refused(tokenclean("run", tmp_path / "bad.yaml"), 2, "not valid YAML")

    @pytest.mark.slow
    def test_model_that_is_nowhere(self, small_pool: Path, tmp_path: Path):
        refused(tokenclean("score", small_pool, "--base", tmp_path / "no-model"), 2, "no such model folder")
        (tmp_path / "empty").mkdir()
        refused(tokenclean("score", small_pool, "--base", tmp_path / "empty"), 2, "config.json")

    @pytest.mark.slow
    def test_pool_too_small_for_its_splits(self, tiny_model_folder: Path, tmp_path: Path):
        path = tmp_path / "two.jsonl"
        path.write_text('{"instruction": "a", "output": "b"}\n' * 1 + '{"instruction": "c", "output": "d"}\n')
        options = ("--set", f"pool.sources=[{{path: {path}}}]", "--set", f"model.base={tiny_model_folder}")
        refused(tokenclean("run", "quick", *options, cwd=tmp_path), 2, "pool.heldout")

    def test_table_without_scores_or_no_table_at_all(self, small_pool: Path, tmp_path: Path):
        refused(tokenclean("select", small_pool), 2, "not a readable Parquet file")
        refused(tokenclean("select", tmp_path / "x.parquet"), 2, "no such file")

    def test_proportion_out_of_range(self, tmp_path: Path):
        refused(tokenclean("select", tmp_path / "x.parquet", "--proportion", "60"), 2, "--proportion")

    def test_unknown_option_and_choice(self):
        refused(tokenclean("score", "x.jsonl", "--bas", "m"), 2, "No such option")
        refused(tokenclean("select", "x.parquet", "--level", "globl"), 2, "globl")

    def test_run_folder_that_cannot_be_written(self, small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
        (tmp_path / "runs").write_text("a file where the folder should be")
        options = ("--set", f"pool.sources=[{{path: {small_pool}}}]", "--set", f"model.base={tiny_model_folder}")
        refused(tokenclean("run", "quick", *options, cwd=tmp_path), 1, "run folder")

    def test_device_that_is_not_here(self, small_pool: Path, tiny_model_folder: Path):
        refused(tokenclean("score", small_pool, "--base", tiny_model_folder, "--device", "gpu7"), 2, "'gpu7'", "auto")

    @pytest.mark.slow
    def test_output_that_cannot_be_written(self, small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
        (tmp_path / "file").write_text("")
        output = tmp_path / "file" / "scores.parquet"
        refused(tokenclean("score", small_pool, "--base", tiny_model_folder, "-o", output), 1, "file")

    @pytest.mark.slow
    def test_broken_chat_template(self, small_pool: Path, tiny_model_folder: Path):
        result = tokenclean("inspect", small_pool, "--model", tiny_model_folder, "--template", "tokenizer")
        refused(result, 2, "no chat template")


@pytest.fixture(scope="module")
def scores(small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    options = ("--base", tiny_model_folder, "-o", folder / "full.parquet")
    assert tokenclean("score", small_pool, *options).returncode == 0
    arguments = ("--base", tiny_model_folder, "-o", folder / "reference", "--learning-rate", "1e-2", "--batch-size", 6)
    assert tokenclean("train", folder / "full.parquet", *arguments).returncode == 0
    result = tokenclean(
        *("score", small_pool, "--base", tiny_model_folder),
        *("--reference", folder / "reference", "-o", folder / "scores.parquet"),
    )
    assert result.returncode == 0, result.stderr
    return folder / "scores.parquet"


@pytest.mark.slow
class TestStages:
    """score → select → train on one table."""

    def test_scores_are_differences(self, scores: Path):
        table = read_table(scores)
        assert len(table) == 60
        difference = table["base_loss"] - table["reference_loss"]
        np.testing.assert_array_equal(difference.values, table["score"].values)
        assert np.array_equal(np.isfinite(table["score"].values), table["is_response"].values)
        assert table.metadata["precision"] == "safe"

    def test_select_then_train(self, scores: Path, tiny_model_folder: Path, tmp_path: Path):
        result = tokenclean("select", scores, "-k", "0.5", "-o", tmp_path / "kept.parquet")
        assert result.returncode == 0, result.stderr
        table = read_table(tmp_path / "kept.parquet")
        total = int(table["is_response"].values.sum())
        assert int(table["is_kept"].values.sum()) == int(total * 0.5)
        arguments = ("train", tmp_path / "kept.parquet", "--base", tiny_model_folder, "-o", tmp_path / "model")
        result = tokenclean(*arguments, "--eval-rows", 5, "--epochs", 2)
        assert result.returncode == 0, result.stderr
        assert "epoch 2: loss" in result.stdout
        assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
        refused(tokenclean(*arguments), 2, "exists and is not empty")

    def test_damaged_scores_are_refused(self, scores: Path, tmp_path: Path):
        table = read_table(scores)
        values = table["score"].values.copy()
        values[int(np.flatnonzero(table["is_response"].values)[7])] = np.nan
        write_table(table.with_columns({}, score=table["score"].with_values(values)), tmp_path / "nan.parquet")
        refused(tokenclean("select", tmp_path / "nan.parquet", "-o", tmp_path / "kept.parquet"), 1, "row 0")

    def test_select_without_scores(self, scores: Path):
        refused(tokenclean("select", scores.with_name("full.parquet")), 2, "no column 'score'")

    def test_reference_with_another_tokenizer(self, small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
        import shutil

        other = tmp_path / "other"
        shutil.copytree(tiny_model_folder, other)
        state = json.loads((other / "tokenizer.json").read_text())
        first, second = state["model"]["merges"][:2]
        state["model"]["merges"][:2] = [second, first]
        (other / "tokenizer.json").write_text(json.dumps(state))
        result = tokenclean("score", small_pool, "--base", tiny_model_folder, "--reference", other, cwd=tmp_path)
        refused(result, 2, "do not share their tokenizer", "merge 0 differs")

    def test_inspect_marks_targets_when_piped(self, small_pool: Path, tiny_model_folder: Path):
        result = tokenclean("inspect", small_pool, "--model", tiny_model_folder, "--rows", 2)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("⟦") >= 2
        first = json.loads(small_pool.read_text().splitlines()[0])["messages"]
        assert f"⟦{first[1]['content']}</s>⟧" in result.stdout


@pytest.mark.slow
def test_score_given_again_computes_only_the_missing_shards(tiny_model_folder: Path, small_pool: Path, tmp_path: Path):
    command = (
        "score",
        small_pool,
        "--base",
        tiny_model_folder,
        "-o",
        tmp_path / "s.parquet",
        "--shard-characters",
        9000,
    )
    first = tokenclean(*command)
    assert first.returncode == 0, first.stderr
    count = int(re.search(r"(\d+) shards computed, 0 found in", first.stdout)[1])
    assert count > 1
    losses = read_table(tmp_path / "s.parquet")["base_loss"].values
    shutil.rmtree(next((tmp_path / "s.shards" / "stages").glob("losses-*")))
    again = tokenclean(*command)
    assert f"1 shards computed, {count - 1} found in" in again.stdout
    assert read_table(tmp_path / "s.parquet")["base_loss"].values.tobytes() == losses.tobytes()
