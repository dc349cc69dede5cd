"""Every how-to page, and the quickstart, does what its commands say: they are run as they are on the page."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from page_blocks import DOCS

from tokenclean.token_table import read_table

pytestmark = pytest.mark.slow
RunPage = Callable[[str], "subprocess.CompletedProcess[str]"]

# Keys of the trainers' configurations, as far as an export uses them, and what they take.
AXOLOTL: dict[str, Any] = {  # src/axolotl/utils/schemas at 067b021
    "base_model": str,
    "revision_of_model": str,
    "datasets": list,
    "dataset_prepared_path": str,
    "val_set_size": (int, float),
    "sequence_len": int,
    "excess_length_strategy": {"drop", "truncate", "raise"},
    "sample_packing": bool,
    "output_dir": str,
}
AXOLOTL_DATASET: dict[str, Any] = {
    "path": str,
    "ds_type": {"json", "arrow", "parquet", "text", "csv"},
    "type": type(None),
}
LLAMAFACTORY: dict[str, Any] = {  # src/llamafactory/hparams at ff6d4d1, and transformers' TrainingArguments
    "model_name_or_path": str,
    "model_revision": str,
    "stage": {"pt", "sft", "rm", "ppo", "dpo", "kto"},
    "do_train": bool,
    "finetuning_type": {"lora", "oft", "freeze", "full"},
    "tokenized_path": str,
    "dataset": str,
    "template": str,
    "cutoff_len": int,
    "output_dir": str,
}


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def check_keys(values: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in values.items():
        assert key in known, key
        expected = known[key]
        assert value in expected if isinstance(expected, set) else isinstance(value, expected), (key, value)


def results_of(run: Path) -> Path:
    return run / "results" / (run / "latest").read_text(encoding="utf-8").strip()


def test_every_page_is_tested():
    tested = {"trl", "axolotl", "llamafactory", "hub", "ratings", "many-gpus", "own-strategy", "trusted-rows", "spans"}
    tested |= {*FILES, "lab", "served-reference", "critic"}
    # Their commands wait for a person, a package or minutes: tests/cli/test_review_command.py, tests/integrations/
    # and tests/downstream/prove_trainers.py run them.
    tested |= {"review", "pipelines", "weighted-training", "trainers"}
    tested.add("ray")  # tests/scoring/test_ray_executor.py, tests/integrations/test_ray_data.py
    tested.add("review-walkthrough")  # tests/docs/test_walkthrough.py
    assert {path.stem for path in (DOCS / "how-to").iterdir()} == tested


def test_quickstart(run_page: RunPage, tmp_path: Path):
    succeeded(run_page("quickstart.md"))
    for name in ("tokens.html", "report.html", "for-trl/train.py", "merged/model.safetensors"):
        assert (tmp_path / name).is_file()


def test_trl(run_page: RunPage, tmp_path: Path):
    pytest.importorskip("trl")
    succeeded(run_page("how-to/trl.md"))
    rows = pq.read_table(tmp_path / "for-trl" / "train.parquet")
    assert rows.column_names == ["input_ids", "labels", "completion_mask"]
    assert (tmp_path / "for-trl" / "model" / "model.safetensors").is_file()


def test_axolotl(run_page: RunPage, tmp_path: Path):
    succeeded(run_page("how-to/axolotl.md"))
    folder = tmp_path / "for-axolotl"
    config = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    check_keys(config, AXOLOTL)
    (source,) = config["datasets"]
    check_keys(source, AXOLOTL_DATASET)
    rows = pq.read_table(folder / source["path"])
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    parts = yaml.safe_load((tmp_path / "for-axolotl-parts" / "train.yaml").read_text(encoding="utf-8"))
    assert parts["datasets"][0]["type"] == "chat_template"
    assert config["sequence_len"] >= max(map(len, rows["input_ids"].to_pylist()))


def test_llamafactory(run_page: RunPage, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    succeeded(run_page("how-to/llamafactory.md"))
    folder = tmp_path / "for-llamafactory"
    config = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    check_keys(config, LLAMAFACTORY)
    rows = datasets.load_from_disk(str(folder / config["tokenized_path"]))["train"]
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    messages = (tmp_path / "for-llamafactory-v1" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("loss_weight" in message for line in messages for message in json.loads(line)["messages"])


def test_hub(run_page: RunPage, tmp_path: Path):
    pytest.importorskip("datasets")
    printed = succeeded(run_page("how-to/hub.md"))
    assert "token_weight" in printed
    assert str(tmp_path) not in (tmp_path / "for-hub" / "README.md").read_text(encoding="utf-8")


FILES = {
    "unsloth": {"train.parquet", "train.py"},
    "ms-swift": {"train.jsonl", "template.py", "train.sh"},
    "open-instruct": {
        *("token_ids_part_0000.npy", "labels_mask_part_0000.npy", "token_ids_part_0000.csv.gz", "dataset.py"),
    },
    "megatron-bridge": {"train.idx.parquet", "dataset.py"},
    "tinker": {"train.jsonl", "train.py"},
}


@pytest.mark.parametrize("trainer", FILES)
def test_a_trainer_that_is_not_installed(trainer: str, run_page: RunPage, tmp_path: Path):
    succeeded(run_page(f"how-to/{trainer}.md"))
    files = {path.name for path in (tmp_path / f"for-{trainer}").iterdir()}
    assert files == FILES[trainer] | {"README.md", "row_ids.csv"}


def test_spans(run_page: RunPage, tmp_path: Path):
    succeeded(run_page("how-to/spans.md"))
    lines = (tmp_path / "for-others" / "spans.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    assert all({"id", "source", "messages", "spans"} <= json.loads(line).keys() for line in lines)


def test_ratings(run_page: RunPage, tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    succeeded(run_page("how-to/ratings.md"))
    assert set(pq.read_table(tmp_path / "ratings.parquet")["overall"].to_pylist()) <= set(range(1, 11))
    run = tmp_path / "runs" / "rated"
    assert list(run.rglob("curation/rows.parquet"))
    assert (results_of(run) / "self_evolving" / "kept.parquet").is_file()


def test_critic(run_page: RunPage, tmp_path: Path):
    printed = succeeded(run_page("how-to/critic.md"))
    assert "The critic on 40 rows with known faults (planted)" in printed
    assert "Verdict: " in printed
    rows = [json.loads(line) for line in (tmp_path / "critic.jsonl").read_text(encoding="utf-8").splitlines()]
    masked = {row["id"]: row for row in rows if row["spans"] and not row["dropped"]}
    assert masked
    kept = read_table(results_of(tmp_path / "runs" / "my") / "given" / "kept.parquet")
    trained = [kept["is_kept"][row].sum() < kept["is_response"][row].sum() for row in range(len(kept))]
    expected = [bool(row["spans"]) for id in kept.ids for row in rows if row["id"] == id]
    assert trained == expected
    assert any(trained)


def test_many_gpus(run_page: RunPage, tmp_path: Path):
    """As two processes over gloo."""
    succeeded(run_page("how-to/many-gpus.md"))
    assert (results_of(tmp_path / "runs" / "my") / "auto" / "model").is_dir()


def test_own_strategy(run_page: RunPage, tmp_path: Path):
    succeeded(run_page("how-to/own-strategy.md"))
    results = results_of(tmp_path / "runs" / "my")
    assert (results / "hardest_tokens" / "kept.parquet").is_file()


def test_trusted_rows(run_page: RunPage, tmp_path: Path):
    succeeded(run_page("how-to/trusted-rows.md"))
    with_trusted = {}  # the pages share a folder of runs
    for path in (tmp_path / "runs" / "my" / "results").glob("*/recipe.yaml"):
        cleaning = yaml.safe_load(path.read_text(encoding="utf-8"))["cleaning"]
        if cleaning.get("trusted"):
            assert cleaning["trusted"]["path"] == "trusted.jsonl"
            with_trusted[cleaning["strategy"]] = path.parent
    assert {"fixed_model", "influence"} <= set(with_trusted)
    for strategy in ("fixed_model", "influence"):
        assert "trusted" in set(read_table(with_trusted[strategy] / strategy / "kept.parquet").sources)


def test_served_reference(run_page: RunPage, tmp_path: Path):
    printed = succeeded(run_page("how-to/served-reference.md"))
    assert "served reference big-model" in printed
    results = results_of(tmp_path / "runs" / "served")
    kept = read_table(results / "fixed_model" / "kept.parquet")
    assert kept.metadata["models"]["reference"]["served"]["api"] == "vllm"
    assert "reference_loss" in read_table(tmp_path / "scores.parquet").columns


def test_lab(run_page: RunPage, tmp_path: Path):
    printed = succeeded(run_page("how-to/lab.md"))
    for text in ("corrupted", "paraphrased", "noise_mixture", "Preference for clean answers"):
        assert text in printed
    assert "Detectors against known noise" in (tmp_path / "lab.html").read_text(encoding="utf-8")
