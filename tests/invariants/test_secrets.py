"""No byte of a token or password in anything that a run, an export or an error leaves behind."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_process import finish

SECRETS = {
    "HF_TOKEN": "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",
    "HUGGING_FACE_HUB_TOKEN": "another-kind-of-secret-1234",
    "HUGGINGFACEHUB_API_TOKEN": "api-tok-5678-zyxwv",
    "HTTPS_PROXY": "http://user:proxy-passw0rd@localhost:9",
    "WANDB_API_KEY": "0123456789abcdef-wandb",
    "AWS_SECRET_ACCESS_KEY": "aws/secret/key/9876",
}
FRAGMENTS = [value.removeprefix("http://user:").partition("@")[0] for value in SECRETS.values()]


def found_in(content: bytes) -> list[str]:
    return [fragment for fragment in FRAGMENTS if fragment.encode() in content]


def content_of(path: Path) -> bytes:
    """The file's bytes; of Parquet, whose pages are packed, the cells and all metadata too."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        content += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
    return content


@pytest.mark.slow
def test_no_secret_of_the_environment_is_written_or_said(demo_rows, small_recipe, tmp_path):
    log, run_folder = tmp_path / "log.txt", tmp_path / "runs" / "small"
    recipe = small_recipe(demo_rows(tmp_path / "pool.jsonl", 40), tmp_path)
    short = ["cleaning.strategy=fixed_model", "cleaning.splits=2", "evaluation.controls=[]"]
    commands: list[tuple[int, list[object]]] = [
        (0, ["run", recipe, *(word for value in short for word in ("--set", value))]),
        (0, ["status", run_folder]),
        *((0, ["export", run_folder, "--to", to, "-o", tmp_path / f"for-{to}"]) for to in ("trl", "axolotl", "hf")),
        (1, ["export", run_folder, "--to", "hf", "-o", tmp_path / "up", "--push-to-hub", "org/name"]),
        (2, ["score", tmp_path / "pool.jsonl", "--base", f"./{SECRETS['HF_TOKEN']}"]),
        (2, ["score", f"{SECRETS['HUGGING_FACE_HUB_TOKEN']}.jsonl", "--base", "x"]),
        (2, ["score", "hf://datasets/org/name", "--base", "x"]),
        (1, ["status", tmp_path / SECRETS["HUGGINGFACEHUB_API_TOKEN"]]),
    ]
    for expected, arguments in commands:
        code, said = finish(arguments, log, environment={**SECRETS, "HF_HUB_OFFLINE": "1"})
        assert code == expected, said
        assert found_in(said.encode()) == [], arguments
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert {path: found for path in files if (found := found_in(content_of(path)))} == {}


@pytest.mark.parametrize(
    "override",
    [
        f"model.base={SECRETS['HF_TOKEN']}",
        f"pool.sources.0.hub=https://user:{SECRETS['HF_TOKEN']}@huggingface.co/org/name",
        f"cleaning={{strategy: {SECRETS['HF_TOKEN']}}}",
        f"token={SECRETS['HF_TOKEN']}",
        f"{SECRETS['HF_TOKEN']}=1",
        SECRETS["HF_TOKEN"],
    ],
)
def test_a_recipe_with_a_token_is_refused_without_repeating_it(override, demo_rows, small_recipe, tmp_path):
    recipe = small_recipe(demo_rows(tmp_path / "pool.jsonl", 10), tmp_path)
    code, said = finish(["run", recipe, "--set", override], tmp_path / "log.txt")
    assert code == 2
    assert said.startswith("error: ")
    assert found_in(said.encode()) == []
    assert not (tmp_path / "runs").exists()


def test_a_recipe_file_with_a_token_is_refused_without_repeating_it(demo_rows, small_recipe, tmp_path):
    recipe = small_recipe(demo_rows(tmp_path / "pool.jsonl", 10), tmp_path)
    whole = recipe.read_text()
    for line in ("name: {}\n", "token: {}\n", "{}\n", "model: [{}\n"):
        recipe.write_text(whole + line.format(SECRETS["HF_TOKEN"]))
        code, said = finish(["run", recipe], tmp_path / "log.txt")
        assert code == 2, said
        assert found_in(said.encode()) == []


def test_the_search_finds_what_is_hidden_in_parquet(tmp_path):
    import pyarrow as pa

    token = SECRETS["HF_TOKEN"]
    pq.write_table(pa.table({"text": [token] * 3}), tmp_path / "cells.parquet", compression="zstd")
    pq.write_table(pa.table({"text": ["a"]}, metadata={"recipe": token}), tmp_path / "metadata.parquet")
    assert all(found_in(content_of(path)) == [token] for path in tmp_path.iterdir())
