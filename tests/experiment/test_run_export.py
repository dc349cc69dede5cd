"""Which file of a run is exported, and what is refused; no model is needed for that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tokenclean.errors import RecipeError, RunFolderError, TableError
from tokenclean.experiment.finished.export import export_dataset, find_dataset
from tokenclean.experiment.result_files import name_latest
from tokenclean.exporting import WRITERS, TokenWriter, write_cleaned
from tokenclean.ragged import Ragged
from tokenclean.store import Store
from tokenclean.token_table import TokenTable, write_table

MADE_BY = {"models": {"base": {"name": "org/base", "revision": None}}, "template": "tulu"}


def labelled(metadata=MADE_BY, **columns: list[list[float]]) -> TokenTable:
    """Two rows of four tokens, the first of each being the prompt."""
    ragged = {name: Ragged.from_rows(rows, np.float32) for name, rows in columns.items()}
    if "is_kept" in ragged:
        ragged["is_kept"] = ragged["is_kept"].map_values(lambda values: values > 0)
    ids = Ragged.from_rows([[5, 6, 7, 8], [9, 10, 11, 12]], np.int64)
    is_response = ids.with_values(np.tile([False, True, True, True], 2))
    return TokenTable(("a", "b"), ("pool", "pool"), {"input_ids": ids, "is_response": is_response, **ragged}, metadata)


KEPT = labelled(is_kept=[[0, 1, 0, 1], [0, 0, 0, 0]])


def make_results(run: Path, number: int, strategies: tuple[str, ...] = ("full_tokens", "rho")) -> Path:
    """Results whose recipe cleans with rho."""

    def make(folder: Path) -> None:
        (folder / "recipe.yaml").write_text("cleaning: {strategy: rho}\n")
        for strategy in strategies:
            (folder / strategy).mkdir()
            write_cleaned(KEPT, folder / strategy / "cleaned.parquet")

    results = Store(run).stage("results", 1, {"number": number}, make, within="results").path
    name_latest(results)
    return results


def test_a_run_folder_stands_for_the_results_of_its_last_run_and_the_recipes_strategy(tmp_path):
    results = [make_results(tmp_path, number) for number in range(3)]
    name_latest(results[1])  # found again by the last run, though others were made later
    assert find_dataset(tmp_path) == results[1] / "rho" / "cleaned.parquet"
    assert find_dataset(tmp_path, "full_tokens") == results[1] / "full_tokens" / "cleaned.parquet"
    assert find_dataset(results[2]) == results[2] / "rho" / "cleaned.parquet"


def test_an_unknown_strategy_is_named_with_those_there_are(tmp_path):
    make_results(tmp_path, 0)
    with pytest.raises(RecipeError, match="has no strategy 'random'; it has full_tokens, rho"):
        find_dataset(tmp_path, "random")
    with pytest.raises(RecipeError, match=r"--strategy rho: .*t\.parquet is a file, which has no strategies"):
        find_dataset(tmp_path / "t.parquet", "rho")


def test_what_holds_no_results_or_no_selection_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no results; `tokenclean run` makes them"):
        find_dataset(tmp_path)
    make_results(tmp_path, 0, strategies=())
    with pytest.raises(RunFolderError, match="no strategy of this run selects tokens"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("name", ["rho/cleaned.parquet", "full_tokens/cleaned.parquet", "recipe.yaml", "manifest.json"])
def test_damaged_results_are_refused_whichever_file_is_harmed(tmp_path, name):
    results = make_results(tmp_path, 0)
    content = bytearray((results / name).read_bytes())
    content[len(content) // 2] ^= 1
    (results / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"{name}.*Run the recipe again, which recomputes it"):
        find_dataset(tmp_path)


def test_results_that_are_gone_are_told(tmp_path):
    name_latest(make_results(tmp_path, 0))
    (tmp_path / "latest").write_text("0123456789ab\n")
    with pytest.raises(RunFolderError, match=r"0123456789ab: failed its integrity check"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("to", [name for name, writer in WRITERS.items() if isinstance(writer, TokenWriter)])
def test_a_table_of_selected_tokens_is_exported_as_its_cleaned_dataset_is(tmp_path, to):
    write_table(KEPT, tmp_path / "kept.parquet")
    write_cleaned(KEPT, tmp_path / "cleaned.parquet")
    written = {}
    for name in ("kept", "cleaned"):
        folder = tmp_path / name
        assert export_dataset(tmp_path / f"{name}.parquet", to, folder).rows == 1
        files = (path for path in folder.rglob("*") if path.suffix in (".parquet", ".arrow", ".md", ".py", ".yaml"))
        written[name] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    assert written["kept"] == written["cleaned"]


def test_float_weights_go_to_forms_that_hold_them(tmp_path):
    path = tmp_path / "weighted.parquet"
    write_table(labelled(weight=[[0, 1, 0.25, 0], [0, 0, 0, 0.5]]), path)
    assert len(export_dataset(path, "trl", tmp_path / "trl").changes) == 1
    assert pq.read_table(tmp_path / "trl" / "train.parquet")["completion_mask"].to_pylist() == [
        [0, 1, 0, 0],
        [0, 0, 0, 1],
    ]
    export_dataset(path, "hf", tmp_path / "hf")
    (file,) = (tmp_path / "hf").rglob("*.parquet")
    assert pq.read_table(file)["token_weight"].to_pylist() == [[0, 1, 0.25, 0], [0, 0, 0, 0.5]]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (labelled(score=[[0, 1, 2, 3], [0, 1, 2, 3]]), "has neither is_kept nor weight"),
        (labelled(is_kept=[[0, 0, 0, 0], [0, 0, 0, 0]]), "no token of the 2 rows is kept"),
        (labelled(metadata={}, is_kept=[[0, 1, 0, 0], [0, 0, 0, 0]]), "does not say which base model"),
    ],
)
def test_a_table_that_cannot_be_exported_is_named_and_no_other_file(tmp_path, table, reason):
    path = tmp_path / "t.parquet"
    write_table(table, path)
    with pytest.raises(TableError, match=rf"^{path}: .*{reason}") as caught:
        export_dataset(path, "hf", tmp_path / "out")
    assert str(caught.value).count(".parquet") == 1


def test_the_card_tells_how_the_tokens_were_chosen(tmp_path):
    selection = {"proportion": 0.3, "level": "sample", "threshold": 0.125}
    write_table(KEPT.with_columns({"selection": selection}), tmp_path / "kept.parquet")
    export_dataset(tmp_path / "kept.parquet", "hf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in ("score, top tokens by level sample", "org/base", "| 0.3 |", "0.125 nats"):
        assert line in card
    assert json.dumps(str(tmp_path))[1:-1] not in card
