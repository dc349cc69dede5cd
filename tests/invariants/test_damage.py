"""Every file of a finished run, cut, changed in one bit or deleted: found, named and made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokenclean.cleaning.open_run import open_run
from tokenclean.experiment.run import run
from tokenclean.observer import Observer
from tokenclean.recipe import load_recipe

pytestmark = pytest.mark.slow


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {"cut": cut, "flip": flip, "delete": Path.unlink}


def contents(folder: Path) -> dict[str, bytes | None]:
    """What every file says; of the documents that tell times, and who made what, only that they are there."""
    reported = ("manifest.json", "result.json", "journal.jsonl")
    return {
        str(path.relative_to(folder)): None if path.name in reported else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[len(folder.parts)] in ("stages", "results")
    }


@pytest.mark.usefixtures("one_thread")
def test_any_damage_is_found_named_and_made_good(demo_rows, small_recipe, tmp_path):
    pool = demo_rows(tmp_path / "pool.jsonl", 40)
    pool.write_text(pool.read_text() + "broken\n")  # so that rejected.jsonl has something to lose
    recipe_file = small_recipe(pool, tmp_path)
    recipe = load_recipe(recipe_file, ["cleaning.strategy=fixed_model", "evaluation.controls=[]", "cleaning.splits=2"])

    def run_again() -> tuple[list[str], object]:
        notes: list[str] = []
        result = run(open_run(recipe, Observer(note=notes.append)))
        return notes, (result.measured, json.loads((result.folder / "result.json").read_text())["measured"])

    _, measured = run_again()
    whole = contents(recipe.folder)
    assert run_again()[1] == measured
    files = [recipe.folder / name for name in whole]
    assert len(files) > 30
    for path in files:
        for name, damage in DAMAGES.items():
            # A hard link would let the damage through to the other name.
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            damage(path)
            notes, found = run_again()
            reported = [note for note in notes if path.name in note and "damaged" in note]
            assert reported, f"{name} of {path} was not reported: {notes}"
            assert found == measured
            assert contents(recipe.folder) == whole, f"{name} of {path}"
            kept_aside = recipe.folder / "damaged"
            assert len(list(kept_aside.iterdir())) == 1
            shutil.rmtree(kept_aside)
