from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tokenclean.errors import RecipeError
from tokenclean.pool import Turn, load_sources
from tokenclean.pool.formats import FORMATS
from tokenclean.recipe import READY_SOURCES, load_recipe, recipe_from, source_from

# A row of each dataset as its card documents it, and the turns it gives.
ROWS = {
    "alpaca": (
        {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Below is an instruction … Add."},
        (Turn("user", "Add.\n1, 2"), Turn("assistant", "3")),
    ),
    "dolly": (
        {"instruction": "Who?", "context": "", "response": "Ada.", "category": "open_qa"},
        (Turn("user", "Who?"), Turn("assistant", "Ada.")),
    ),
    "flan_v2": (
        {
            "dataset": "flan_v2",
            "id": "flan_v2_0",
            "messages": [{"role": "user", "content": "Q: 1?"}, {"role": "assistant", "content": "One."}],
        },
        (Turn("user", "Q: 1?"), Turn("assistant", "One.")),
    ),
    "wizardlm": (
        {"idx": "a1", "conversations": [{"from": "human", "value": "Go?"}, {"from": "gpt", "value": "Gone."}]},
        (Turn("user", "Go?"), Turn("assistant", "Gone.")),
    ),
}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", READY_SOURCES)
def test_a_ready_source_is_a_dataset_of_the_hub(name):
    source = source_from({"ready": name})
    assert source.name == name
    assert source.hub is not None
    assert source.hub.count("/") == 1
    assert (source.path, source.split, source.place) == (None, "train", source.hub)
    assert source.license
    assert source.format in (*FORMATS, "oasst")


@pytest.mark.parametrize("name", ROWS)
def test_a_file_of_its_columns_is_read_in_its_place(name, tmp_path):
    row, turns = ROWS[name]
    source = source_from({"ready": name, "path": write(tmp_path / "rows.jsonl", row)})
    assert (source.hub, source.split) == (None, None)
    assert source.license == READY_SOURCES[name]["license"]
    [conversation] = load_sources([source])
    assert (conversation.source, conversation.turns) == (name, turns)


def test_every_ready_source_is_tested():
    assert sorted([*ROWS, "oasst1"]) == sorted(READY_SOURCES)


def test_message_trees_are_read_as_threads(tmp_path):
    tree = [
        {"message_id": "q", "parent_id": None, "text": "Why?", "role": "prompter", "lang": "en", "rank": None},
        {"message_id": "b", "parent_id": "q", "text": "Worse.", "role": "assistant", "lang": "en", "rank": 1},
        {"message_id": "a", "parent_id": "q", "text": "Better.", "role": "assistant", "lang": "en", "rank": 0},
    ]
    [row] = load_sources([source_from({"ready": "oasst1", "path": write(tmp_path / "t.jsonl", *tree)})])
    assert row.turns == (Turn("user", "Why?"), Turn("assistant", "Better."))
    assert (row.source, row.line, row.id.split(":")[:2]) == ("oasst1", 1, ["oasst1", "1"])


def test_what_stands_beside_the_name_goes_over_it(tmp_path):
    path = write(tmp_path / "cot.jsonl", {"instruction": "Q?", "input": "", "output": "A.", "task": "aqua"})
    source = source_from({"ready": "flan_v2", "path": path, "format": "alpaca", "name": "cot", "license": "mine"})
    assert (source.format, source.name, source.license, source.hub) == ("alpaca", "cot", "mine", None)
    assert [row.source for row in load_sources([source])] == ["cot"]
    mirror = source_from({"ready": "alpaca", "hub": "someone/alpaca", "count": 7})
    assert (mirror.hub, mirror.split, mirror.format, mirror.count) == ("someone/alpaca", None, "alpaca", 7)


def test_a_name_that_is_none_gets_a_hint():
    with pytest.raises(RecipeError, match=r"ready: expected one of alpaca, .*, found 'alpacca'; did you mean alpaca\?"):
        source_from({"ready": "alpacca"})
    with pytest.raises(RecipeError, match=r"found 3$"):
        source_from({"ready": 3})
    with pytest.raises(RecipeError, match="expected either path"):
        source_from({"ready": "alpaca", "path": "a.jsonl", "hub": "a/b"})


def test_a_written_recipe_has_the_values_in_place_of_the_name(tmp_path):
    values = {"pool": {"sources": [{"ready": "wizardlm", "count": 3}]}, "model": {"base": "m"}}
    recipe = recipe_from(values, ["pool.sources.1.ready=dolly", "pool.sources.1.path=d.jsonl"])
    [first, second] = yaml.safe_load(recipe.to_yaml())["pool"]["sources"]
    assert first == {**READY_SOURCES["wizardlm"], "name": "wizardlm", "count": 3}
    assert second == {"path": "d.jsonl", "name": "dolly", "format": "alpaca", "license": "CC BY-SA 3.0"}
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe


def test_the_recipe_of_the_five_sources_has_the_paper_s_sizes():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "five-sources.yaml")
    assert {source.name for source in recipe.pool.sources} == set(READY_SOURCES)
    assert sum(source.count or 0 for source in recipe.pool.sources) == 50_000
    assert recipe.pool.filters.duplicates == "near"
