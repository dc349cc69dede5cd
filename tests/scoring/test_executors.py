"""What executors refuse, and what an actor checks before it computes; without a Ray cluster."""

from __future__ import annotations

import sys

import pytest
from pool_passes import POLICY

from tokenclean.errors import MissingExtraError, ModelError, RecipeError
from tokenclean.models.loading.load import load_model, load_tokenizer, resolve_source, source_fingerprint
from tokenclean.pool import load_pool
from tokenclean.recipe import ExecutorSettings, recipe_from
from tokenclean.scoring.executors.ray_executor import RayExecutor
from tokenclean.scoring.executors.ray_worker import ShardWorker, installed_packages
from tokenclean.scoring.model_losses import ModelWork
from tokenclean.scoring.scorer import Scorer
from tokenclean.scoring.stored_losses import LossShard
from tokenclean.store import Store
from tokenclean.tokens import tokenize_pool

VALUES = {"pool": {"sources": [{"path": "pool.jsonl"}]}, "model": {"base": "base"}}


def test_ray_that_is_not_installed_is_an_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"--on ray needs the package 'ray': pip install 'tokenclean\[ray\]'"),
        RayExecutor(ExecutorSettings(kind="ray"), print),
    ):
        pass


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (0.5, "cuda"), (2, "cuda")])
def test_an_actors_gpus_say_its_device(num_gpus, device):
    executor = RayExecutor(ExecutorSettings(kind="ray", num_gpus=num_gpus), print)
    assert (executor.device("auto"), executor.device(device)) == (device, device)
    for other in ({"cpu", "cuda"} - {device}) | {"cuda:1"}:
        with pytest.raises(RecipeError, match=f"computes on {device}; give auto, or another --num-gpus"):
            executor.device(other)


def test_a_recipe_names_an_executor_by_itself_or_as_a_section():
    short = recipe_from({**VALUES, "executor": "ray"})
    assert short.executor == recipe_from({**VALUES, "executor": {"kind": "ray"}}).executor
    assert short.result_inputs() == recipe_from(VALUES).result_inputs()
    assert recipe_from({**VALUES, "executor": {"kind": "ray://head:10001", "actors": 8}}).executor.is_ray
    for wrong in ("raay", "ray://", "http://head"):
        with pytest.raises(RecipeError, match="expected local, ray, or ray:// and the address"):
            recipe_from({**VALUES, "executor": wrong})
    with pytest.raises(RecipeError, match=r"executor.num_gpus.*a share of one GPU or a whole number"):
        recipe_from({**VALUES, "executor": {"kind": "ray", "num_gpus": 1.5}})


def test_a_worker_computes_what_a_stage_holds_and_its_manifest_says_where(passes, tmp_path):
    tokens = tokenize_pool(load_pool(passes.pool), passes.tokenizer)
    source = resolve_source(str(passes.base))
    worker = ShardWorker("cpu", 1)
    worker.start(installed_packages())
    model = ModelWork(source, POLICY, 2048, 100), source_fingerprint(source)
    sent = worker.compute(model, tokens, "all rows")
    worker.unload()
    assert worker.compute(model, tokens, "all rows").files == sent.files
    kept = Store(tmp_path / "run").stage("losses", 2, {"tokens": "x"}, sent.write)
    assert [*sent.files] == ["losses.parquet"] == [*kept.manifest["files"]]
    assert kept.manifest["results"]["what"] == "all rows"
    assert {key: kept.manifest[key] for key in sent.origin} == sent.origin
    assert sent.origin.keys() == {"started", "finished", "seconds", "packages", "platform"}
    own = Scorer(load_model(str(passes.base)), pack_tokens=512).score(tokens)["loss"]
    assert LossShard(kept).column("loss").values.tobytes() == own.values.tobytes()


def test_a_worker_refuses_other_weights_and_other_software(passes):
    tokens = tokenize_pool(load_pool(passes.pool), load_tokenizer(str(passes.base)))
    worker, work = ShardWorker("cpu", 1), ModelWork(resolve_source(str(passes.base)), POLICY, 2048, 100)
    with pytest.raises(ModelError, match=r"has other software: torch .* \(here 1\.0\); install the same versions"):
        worker.start({**installed_packages(), "torch": "1.0"})
    worker.start(installed_packages())
    with pytest.raises(ModelError, match=r"Ray node .*its files are not those that the pass was begun with"):
        worker.compute((work, "0" * 64), tokens, "all rows")
    absent = resolve_source(str(passes.base)).absolute
    gone = ModelWork(type(absent)("/nowhere/base"), POLICY, 2048, 100)
    with pytest.raises(ModelError, match=r"Ray node .*/nowhere/base.*every node needs the model"):
        worker.compute((gone, "0" * 64), tokens, "all rows")
