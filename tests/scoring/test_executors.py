"""What executors refuse, and what an actor checks before it computes; without a Ray cluster."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pool_passes import POLICY

from tokenclean.asking.local_model import describe_local_model
from tokenclean.asking.settings import Sampling
from tokenclean.ds2.embedding import EmbeddingWork
from tokenclean.errors import MissingExtraError, ModelError, RecipeError
from tokenclean.executors import LOCAL, Item, TorchrunExecutor
from tokenclean.executors.ray_executor import RayExecutor
from tokenclean.executors.ray_worker import SendFiles, SentFiles, Worker, installed_packages
from tokenclean.models.device import device_for
from tokenclean.models.loading.load import load_model, load_tokenizer, resolve_source, source_fingerprint
from tokenclean.pool import load_pool
from tokenclean.pool.duplicates import SketchWork
from tokenclean.processes import Processes
from tokenclean.recipe import ExecutorSettings, TokensSettings, recipe_from
from tokenclean.scoring.model_losses import LossWork, ModelWork
from tokenclean.scoring.scorer import Scorer
from tokenclean.scoring.stored_losses import LossShard
from tokenclean.scoring.stored_tokens import TokenWork
from tokenclean.store import Store
from tokenclean.tokens import TokenizedPool, tokenize_pool

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
    assert (device_for(executor, "auto"), device_for(executor, device)) == (device, device)
    for other in ({"cpu", "cuda"} - {device}) | {"cuda:1"}:
        with pytest.raises(RecipeError, match=f"actors of Ray compute on {device}, .*give auto, or another"):
            device_for(executor, other)


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


def losses_of(passes, source=None, fingerprint=None) -> SendFiles[TokenizedPool]:
    source = source or resolve_source(str(passes.base))
    model = ModelWork(source, POLICY, 2048, 100)
    return SendFiles(LossWork(model, fingerprint or source_fingerprint(source), "cpu"))


def test_a_worker_computes_what_a_stage_holds_and_its_manifest_says_where(passes, tmp_path):
    tokens = tokenize_pool(load_pool(passes.pool), passes.tokenizer)
    worker = Worker(1)
    worker.start(installed_packages())
    sent, _ = worker.compute(1, losses_of(passes), (tokens, "all rows"))
    worker.close(1)
    worker.close(2)  # one that it never opened
    again, _ = worker.compute(1, losses_of(passes), (tokens, "all rows"))
    assert isinstance(sent, SentFiles)
    assert isinstance(again, SentFiles)
    assert again.files == sent.files
    kept = Store(tmp_path / "run").stage("losses", 2, {"tokens": "x"}, sent.write)
    assert [*sent.files] == ["losses.parquet"] == [*kept.manifest["files"]]
    assert kept.manifest["results"]["what"] == "all rows"
    assert {key: kept.manifest[key] for key in sent.origin} == sent.origin
    assert sent.origin.keys() == {"started", "finished", "seconds", "packages", "platform"}
    own = Scorer(load_model(str(passes.base)), pack_tokens=512).score(tokens)["loss"]
    assert LossShard(kept).column("loss").values.tobytes() == own.values.tobytes()


def test_a_worker_refuses_other_weights_and_other_software(passes):
    tokens = tokenize_pool(load_pool(passes.pool), load_tokenizer(str(passes.base)))
    worker = Worker(1)
    with pytest.raises(ModelError, match=r"has other software: torch .* \(here 1\.0\); install the same versions"):
        worker.start({**installed_packages(), "torch": "1.0"})
    worker.start(installed_packages())
    with pytest.raises(ModelError, match=r"Ray node .*its files are not those that the pass was begun with"):
        worker.compute(1, losses_of(passes, fingerprint="0" * 64), (tokens, "all rows"))
    absent = type(resolve_source(str(passes.base)))("/nowhere/base")
    with pytest.raises(ModelError, match=r"Ray node .*/nowhere/base.*every node needs the model"):
        worker.compute(2, losses_of(passes, absent, "0" * 64), (tokens, "all rows"))


def test_a_worker_refuses_another_tokenizer(passes):
    work = SendFiles(TokenWork(resolve_source(str(passes.base)), "0" * 64, TokensSettings()))
    with pytest.raises(ModelError, match=r"Ray node .*its tokenizer is not the one that the pass was begun with"):
        Worker(1).compute(1, work, (list(load_pool(passes.pool)), "all rows"))


def test_works_can_be_sent(passes):
    works = (
        losses_of(passes),
        TokenWork(resolve_source(str(passes.base)), "0" * 64, TokensSettings()),
        SketchWork(),
        EmbeddingWork("folder", "0" * 64, "cpu", None),
        describe_local_model(resolve_source(str(passes.base)), Sampling(max_tokens=4), "task"),
    )
    for work in works:
        assert pickle.loads(pickle.dumps(work)) == work


def test_one_process_opens_a_work_once_and_only_for_an_item():
    opened = []

    class Doubling:
        @contextmanager
        def opened(self) -> Iterator[Callable[[int], int]]:
            opened.append("opened")
            yield lambda number: 2 * number
            opened.append("closed")

    items = [Item(n, n, lambda n=n: n, f"item {n}") for n in range(3)]
    for executor in (LOCAL, TorchrunExecutor(Processes(1, 2))):
        with executor.open(Doubling()) as compute:
            assert list(compute([])) == []
            assert opened == []
            assert [made for _, made in compute(items)] == [0, 2, 4]
            assert [item.key for item, _ in compute(items[:1])] == [0]
            assert opened == ["opened"]
        assert opened == ["opened", "closed"]
        opened.clear()
