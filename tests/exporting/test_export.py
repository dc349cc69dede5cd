from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tokenclean.errors import MissingExtraError, RecipeError, RunFolderError, TableError
from tokenclean.exporting import (
    WRITERS,
    Card,
    CleanedCounts,
    ModelName,
    TextWriter,
    TokenWriter,
    export,
    write_cleaned,
)
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable

CARD = Card("Rows", ModelName("org/base"), "rho", CleanedCounts(()), "tulu", 2048, "0.1.0")


def write(path: Path, weights: list[list[float]]) -> Path:
    columns = {
        "input_ids": Ragged.from_rows([range(5, 5 + len(row)) for row in weights], np.int64),
        "is_response": Ragged.from_rows([np.arange(len(row)) > 0 for row in weights], np.bool_),
        "weight": Ragged.from_rows(weights, np.float32),
    }
    names = tuple(f"row-{n}" for n in range(len(weights)))
    write_cleaned(TokenTable(names, ("pool",) * len(names), columns, {"base": "/home/someone/model"}), path)
    return path


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    return write(tmp_path / "cleaned.parquet", [[0.0, 1.0, 0.0], [0.0] * 8 + [1.0]])


@pytest.mark.parametrize("to", ["trl", "axolotl", "hf"])
def test_an_export_lists_its_files_and_counts_its_rows(cleaned: Path, tmp_path: Path, to: str) -> None:
    result = export(cleaned, to, tmp_path / "new" / "out", CARD)
    assert result.rows == 2
    assert set(result.files) == {str(f.relative_to(result.folder)) for f in result.folder.rglob("*") if f.is_file()}
    assert result.snippet.startswith(f"cd {tmp_path}/new/out && ")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_row_without_an_own_id_has_none_in_the_list_of_rows(cleaned: Path, tmp_path: Path) -> None:
    folder = export(cleaned, "axolotl", tmp_path / "out", CARD).folder
    assert (folder / "row_ids.csv").read_text().splitlines() == [
        *("row,id,original_id,source", "0,row-0,,pool", "1,row-1,,pool"),
    ]


def test_an_empty_folder_is_filled_and_a_full_one_refused(cleaned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    export(cleaned, "trl", folder, CARD)
    before = sorted(folder.rglob("*"))
    with pytest.raises(RunFolderError, match="out: exists and is not an empty folder"):
        export(cleaned, "hf", folder, CARD)
    assert sorted(folder.rglob("*")) == before


def test_a_writer_that_fails_leaves_nothing_behind(
    cleaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_cleaned: object, folder: Path, _card: object) -> str:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, "trl", TokenWriter(fail))
    with pytest.raises(RunFolderError, match=r"cannot write .*out: No space left on device"):
        export(cleaned, "trl", tmp_path / "out", CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["cleaned.parquet"]


def test_an_unknown_trainer_is_named_with_the_known_ones(cleaned: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'trlx'; known: trl, unsloth, llamafactory, .* hf, spans"):
        export(cleaned, "trlx", tmp_path / "out", CARD)


LABELS = [name for name, writer in WRITERS.items() if isinstance(writer, TokenWriter) and writer.takes == "labels"]


@pytest.mark.parametrize("to", LABELS)
def test_weights_become_labels_at_a_half_and_what_changes_is_counted(tmp_path: Path, to: str) -> None:
    path = write(tmp_path / "cleaned.parquet", [[0.0, 1.0], [0.0, 1.0, 0.5, 0.25, -1.0], [0.0, 0.25]])
    result = export(path, to, tmp_path / "out", CARD)
    assert (result.rows, result.left_out) == (2, 1)
    (change,) = result.changes
    assert change.startswith("4 of 6 trained tokens have another weight here (2 of a total weight of 4): ")
    assert "at least 0.5 count as 1 and others as 0" in change
    lines = (tmp_path / "out" / "left_out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,reason"
    assert lines[1].startswith("row-2,")
    assert "4 of 6 trained tokens" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert [line.split(",")[1] for line in (tmp_path / "out" / "row_ids.csv").read_text().split()[1:]] == [
        "row-0",
        "row-1",
    ]
    with pytest.raises(TableError, match="no row is left to export"):
        export(write(tmp_path / "low.parquet", [[0.0, 0.25]]), to, tmp_path / "none", CARD)


@pytest.mark.parametrize("to", [name for name, writer in WRITERS.items() if isinstance(writer, TextWriter)])
def test_forms_of_texts_need_the_texts(cleaned: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(TableError, match=f"holds tokens without their texts, which --to {to} writes; export a run"):
        export(cleaned, to, tmp_path / "out", CARD)
    assert not (tmp_path / "out").exists()


def test_the_hub_folder_keeps_float_weights_and_counts_and_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    path = write(tmp_path / "cleaned.parquet", [[0.0, 0.25, 3.0]])
    folder = export(path, "hf", tmp_path / "out", replace(CARD, base=ModelName("/home/someone/model"))).folder
    stored = pq.read_table(folder / "data" / "train-00000-of-00001.parquet")
    assert stored.column("token_weight").to_pylist() == [[0.0, 0.25, 3.0]]
    assert b'"kept_tokens": 2' in stored.schema.metadata[b"tokenclean"]
    assert not any(b"/home" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("trainer", ["trl", "axolotl"])
def test_the_maximum_length_is_the_longest_row_rounded_up_to_eights(
    cleaned: Path, tmp_path: Path, trainer: str
) -> None:
    folder = export(cleaned, trainer, tmp_path / "out", CARD).folder
    if trainer == "axolotl":
        assert yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))["sequence_len"] == 16
        return
    keywords = [k for k in ast.walk(ast.parse((folder / "train.py").read_text("utf-8"))) if isinstance(k, ast.keyword)]
    assert [ast.literal_eval(k.value) for k in keywords if k.arg == "max_length"] == [16]


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "it's", "öł"])
def test_a_models_name_survives_in_every_configuration(cleaned: Path, tmp_path: Path, name: str) -> None:
    card = replace(CARD, base=ModelName(name, name))
    config = yaml.safe_load(
        (export(cleaned, "axolotl", tmp_path / "a", card).folder / "train.yaml").read_text(encoding="utf-8")
    )
    assert (config["base_model"], config["revision_of_model"]) == (name, name)
    script = (export(cleaned, "trl", tmp_path / "t", card).folder / "train.py").read_text(encoding="utf-8")
    assert [node.value for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant)].count(name) == 2


def test_a_local_model_is_named_as_seen_from_the_export(
    cleaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = export(cleaned, "axolotl", "out", replace(CARD, base=ModelName("models/tiny"))).folder
    config = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    assert (folder / config["base_model"]).resolve() == tmp_path / "models" / "tiny"


def test_a_missing_package_is_named_with_its_extra(
    cleaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'datasets': pip install 'tokenclean\[datasets\]'"):
        export(cleaned, "llamafactory", tmp_path / "out", CARD)
    assert not (tmp_path / "out").exists()
