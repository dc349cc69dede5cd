"""Pruning: the stages go, what users read stays, and an adapter takes its space once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import RunFolderError
from tokenclean.experiment.finished.finished_run import find_run, find_table
from tokenclean.experiment.finished.prune import prune
from tokenclean.experiment.run import run
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.store import Store, check_stage


@pytest.fixture
def recipe(small_pool: Path, tiny_model_folder: Path, tmp_path: Path) -> Recipe:
    values = {
        "output": str(tmp_path),
        "pool": {"sources": [{"path": str(small_pool)}], "heldout": {"rows": 6}, "max_rows": 40},
        "model": {"base": str(tiny_model_folder)},
        "cleaning": {"strategy": "fixed_model", "splits": 2, "allow_weak_reference": True},
        "scoring": {"precision": "exact"},
        "training": {"batch_size": 8, "lora": {"rank": 2}},
    }
    return recipe_from(values)


def test_results_stay_whole_and_the_space_of_the_stages_is_free(recipe, tmp_path):
    result = run(open_run(recipe))
    model = result.folder / "fixed_model" / "model" / "adapter_model.safetensors"
    assert model.stat().st_nlink == 2  # its training's own file
    stages = [path for path in (recipe.folder / "stages").rglob("*") if path.is_file()]
    unshared = sum(path.stat().st_size for path in stages if path.stat().st_nlink == 1)
    (recipe.folder / "checkpoints" / "abc").mkdir(parents=True)
    (recipe.folder / "stages" / "comparison-0123456789ab").mkdir()

    said = prune(recipe.folder, only_say=True)
    assert all(folder.is_dir() for folder in said.folders)
    pruned = prune(recipe.folder)
    assert pruned == said
    assert pruned.freed_bytes == unshared
    assert [path.name for path in (recipe.folder / "stages").iterdir()] == ["comparison-0123456789ab"]
    assert not (recipe.folder / "checkpoints").exists()

    assert check_stage(result.folder) == []
    (recipe.folder / "stages" / "comparison-0123456789ab").rmdir()
    assert find_run(recipe.folder).results == result.folder
    assert find_table(recipe.folder).is_file()
    load_model(resolve_source(str(model.parent)))
    again = run(open_run(recipe))
    assert (again.folder, again.stages_made) == (result.folder, result.stages_made - 1)  # the results are found


def test_a_folder_without_results_or_in_use_is_left_alone(recipe, tmp_path):
    with pytest.raises(RunFolderError, match="no results"):
        prune(tmp_path)
    result = run(open_run(recipe))
    with Store(recipe.folder).lock(), pytest.raises(RunFolderError, match="in use"):
        prune(recipe.folder)
    assert check_stage(result.folder) == []
