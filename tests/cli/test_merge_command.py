"""``tokenclean merge`` and ``train --merge``: from a run, an adapter or a table to a plain model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenclean.models.loading.load import load_model, load_tokenizer
from tokenclean.token_table import read_table, write_table


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None], use_cache=False).logits.float()


def furthest(folder: Path, adapter: Path) -> float:
    return float((logits(AutoModelForCausalLM.from_pretrained(folder)) - logits(load_model(str(adapter)))).abs().max())


@pytest.fixture
def results(finished_run: Path) -> Path:
    (results,) = (finished_run / "results").iterdir()
    return results


def test_a_run_gives_the_model_of_the_recipes_strategy(command, finished_run, results, tmp_path):
    said = command("merge", finished_run, "-o", tmp_path / "out")
    assert said.code == 0, said.err
    model = results / "fixed_model" / "model"
    assert furthest(tmp_path / "out", model) < 1e-4
    assert furthest(tmp_path / "out", results / "full_tokens" / "model") > 1e-3
    base = json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert said.out.splitlines() == [
        f"{tmp_path}/out: {base} + {model} in float32, chat template tulu",
        "  14 weights merged in float32",
    ]


def test_a_results_folder_another_strategy_and_a_default_name(command, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("merge", results, "--strategy", "full_tokens", "--dtype", "bfloat16")
    assert said.code == 0, said.err
    weights = load_file(tmp_path / f"{results.name}-merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "14 weights merged in float32; rounding to bfloat16 is " in said.out


@pytest.mark.slow
def test_an_adapter_by_itself_as_a_subprocess(results, tmp_path):
    adapter = shutil.copytree(results / "fixed_model" / "model", tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {n: t * (1e-3 if "lora_B" in n else 1) for n, t in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    arguments = ("merge", adapter, "--dtype", "bfloat16", "-o", tmp_path / "out")
    command = [sys.executable, "-m", "tokenclean", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "as large as the adapter's change" in done.stdout
    assert done.stderr.startswith("warning: bfloat16 rounds away much of what the adapter changed; use --dtype float32")
    assert done.stderr.count("\n") == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert "exists and is not an empty folder" in again.stderr


def test_train_writes_the_adapter_and_beside_it_the_plain_model(command, results, tiny_model_folder, tmp_path):
    table = results / "fixed_model" / "kept.parquet"
    options = ("--base", tiny_model_folder, "--rank", 2, "--batch-size", 8, "--learning-rate", "1e-2")
    said = command("train", table, *options, "-o", tmp_path / "model", "--merge", "float32")
    assert said.code == 0, said.err
    assert furthest(tmp_path / "model-merged", tmp_path / "model") < 1e-4
    assert not (tmp_path / "model-merged" / "adapter_config.json").exists()
    assert f"{tmp_path}/model-merged: the plain model in float32, chat template tulu" in said.out
    said = command("train", table, *options, "-o", tmp_path / "other", "--merge", "float32", "--method", "full")
    assert said.code == 0, said.err
    assert furthest(tmp_path / "other-merged", tmp_path / "other") == 0
    (tmp_path / "third-merged").mkdir()
    (tmp_path / "third-merged" / "mine.txt").write_text("mine")
    said = command("train", table, *options, "-o", tmp_path / "third", "--merge", "float32")
    assert (said.code, (tmp_path / "third").exists()) == (2, False)
    assert "third-merged: already there and not empty" in said.err


def test_the_template_is_the_recorded_one_and_is_asked_for_where_two_are_possible(
    command, results, tiny_model_folder, tmp_path
):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = own = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(base)
    table = read_table(results / "fixed_model" / "kept.parquet")
    options = ("--base", base, "--rank", 2, "--batch-size", 8)
    for template in ("tulu", "tokenizer", None):
        write_table(table.with_columns({"template": template}), tmp_path / "t.parquet")
        adapter, out = tmp_path / f"model-{template}", tmp_path / f"out-{template}"
        assert command("train", tmp_path / "t.parquet", *options, "-o", adapter).code == 0
        said = command("merge", adapter, "-o", out)
        if template is None:
            assert said.code == 2
            assert "nothing says which chat template" in said.err
            assert not out.exists()
            said = command("merge", adapter, "-o", out, "--template", "tokenizer")
        assert said.code == 0, said.err
        assert (AutoTokenizer.from_pretrained(out).chat_template == own) == (template != "tulu")
    said = command("train", tmp_path / "t.parquet", *options, "-o", tmp_path / "late", "--merge", "float32")
    assert said.code == 2  # before the training, not after it
    assert not (tmp_path / "late").exists()


def test_what_cannot_be_merged_is_refused_with_the_way_out(command, run_folder, tiny_model_folder, tmp_path):
    run = run_folder("run")
    (results,) = (run / "results").iterdir()
    (tmp_path / "empty").mkdir()
    refusals = [
        (1, [tmp_path / "empty"], "holds neither an adapter, nor a model, nor the results of a run"),
        (2, [run, "--strategy", "rho"], "has no strategy 'rho'; it has fixed_model, full_tokens"),
        (2, [tiny_model_folder, "--strategy", "rho"], "is no run, so it has no strategies; leave it out"),
        (2, ["./nowhere"], "no such model folder"),
        (2, [run, "--template", "tokenizer"], "the tokenizer has no chat template"),
        (2, [run, "--base", tmp_path / "empty"], "cannot load the model"),
    ]
    for code, arguments, words in refusals:
        check_refusal(command, code, arguments, words, tmp_path)
    (results / "table.md").write_text("changed")
    check_refusal(command, 1, [run], f"{results}: failed its integrity check: table.md", tmp_path)


def check_refusal(command, code: int, arguments: list, words: str, folder: Path) -> None:
    said = command("merge", *arguments, "-o", folder / "out")
    assert (said.code, said.out) == (code, ""), said
    assert said.err.startswith("error: ")
    assert words in said.err
    assert not (folder / "out").exists()
