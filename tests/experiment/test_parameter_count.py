"""Parameters are counted without torch where the weights are here, and come out as the model has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tokenclean.errors import ModelError
from tokenclean.experiment.planning.parameter_count import parameter_count
from tokenclean.recipe import ModelSettings


@pytest.mark.parametrize("kind", ["one file", "shards", "no weights", "a damaged file", "a missing shard"])
def test_the_count_is_that_of_the_model(kind, tiny_model_folder: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    folder = tmp_path / "model"
    if kind in ("shards", "a missing shard"):
        model.save_pretrained(folder, max_shard_size="100KB")
        shards = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
        assert len(shards) > 1
        if kind == "a missing shard":
            (folder / min(shards)).unlink()
    else:
        shutil.copytree(tiny_model_folder, folder)
        if kind == "no weights":
            (folder / "model.safetensors").unlink()
        elif kind == "a damaged file":
            (folder / "model.safetensors").write_bytes(b"damaged")
    notes: list[str] = []
    assert parameter_count(ModelSettings(base=str(folder)), notes.append) == sum(p.numel() for p in model.parameters())
    assert bool(notes) == (kind not in ("one file", "shards"))


def test_an_unknown_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="no such model folder"):
        parameter_count(ModelSettings(base=str(tmp_path / "none")))
