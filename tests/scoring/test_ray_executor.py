"""A pass by the actors of a Ray cluster: the same bits as in one process, even when nodes die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from pool_passes import CHARACTERS, Passes

import tokenclean
from tokenclean.errors import RankError
from tokenclean.executors import LOCAL
from tokenclean.pool import Conversation, load_pool, shard_stream
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.scoring import stored_tokens
from tokenclean.store import file_hash
from tokenclean.token_table import read_table

ray = pytest.importorskip("ray", reason="needs the extra ray")

from ray._private import state  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RayActorError  # noqa: E402

from tokenclean.executors import ray_actors  # noqa: E402
from tokenclean.executors.ray_actors import TRIES, Actors, _reason  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

STORE_BYTES = 80 << 20  # of a node
LONGEST_SECONDS = 120
# Ends its process at a token that stands for the first byte of a skull.
DEADLY_CODE = """
import os

import torch
from transformers import LlamaForCausalLM


class Embedding(torch.nn.Embedding):
    def forward(self, ids):
        if (ids == DEADLY).any():
            os._exit(9)
        return super().forward(ids)


class DeadlyForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
"""


def stop_after(count: int) -> Callable[[int, int], None]:
    """Progress that presses Ctrl-C when it is called for the ``count``th time."""
    left = count

    def stop(done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    return stop


def test_a_pass_on_ray_stores_what_one_process_stores(passes, on_ray, ray_notes, capfd, monkeypatch):
    whole = passes.run("whole")
    passes.reported.clear()
    monkeypatch.delattr(stored_tokens, "tokenize_pool")  # of this process, which shall tokenize nothing
    outcome = passes.run(executor=on_ray)
    assert (outcome.made, outcome.found) == (whole.made, 0)
    assert passes.table() == passes.table("whole")
    for stage in (*passes.stages("tokens", "whole"), *passes.stages("losses", "whole")):
        here, there = (
            json.loads((folder / "manifest.json").read_text())
            for folder in (stage, passes.folder / "s.shards" / "stages" / stage.name)
        )
        assert here.keys() == there.keys()
        for key in ("files", "inputs", "key", "packages", "results", "version"):
            assert here[key] == there[key], key
    assert passes.reported[-1][0] == passes.reported[-1][1]
    assert {total for _, total in passes.reported} == {passes.reported[-1][1]}
    assert ray_notes == ["Ray: 3 nodes, 2 CPUs"]
    assert capfd.readouterr().out == ""


def test_a_pass_begun_here_is_finished_on_ray_and_the_other_way_round(passes, on_ray):
    whole = passes.run("whole")
    for name, first, second in (("here", LOCAL, on_ray), ("there", on_ray, LOCAL)):
        with pytest.raises(KeyboardInterrupt):
            passes.run(name, executor=first, progress=stop_after(3))
        kept = len(passes.stages("losses", name))
        assert 0 < kept < whole.made
        resumed = passes.run(name, executor=second)
        assert (resumed.made, resumed.found) == (whole.made - kept, kept)
        assert passes.table(name) == passes.table("whole")


def test_a_killed_node_costs_its_open_shards_only(passes, on_ray, ray_notes, cluster, capfd):
    """A node at work is killed, up to three times until a shard was lost with it."""
    whole = passes.run("whole")
    killed = []

    def kill_one_at_work(done: int, total: int) -> None:
        if len(killed) == 3 or any("its Ray actor ended" in text for text in ray_notes):
            return
        at_work = {actor["Address"]["NodeID"] for actor in state.actors().values() if actor["State"] == "ALIVE"}
        if at_work >= {node.node_id for node in cluster.worker_nodes}:
            killed.append(done)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    outcome = passes.run(executor=on_ray, progress=kill_one_at_work)
    assert outcome.made == whole.made
    assert killed
    assert any("its Ray actor ended" in text and "another one computes it" in text for text in ray_notes)
    assert passes.table() == passes.table("whole")
    assert "raylet" not in capfd.readouterr().out


@pytest.fixture
def deadly(passes: Passes, tmp_path: Path) -> Conversation:
    """Put a row into the pool that ends every process that computes it; the row."""
    from tokenclean.models.loading.load import load_model, load_tokenizer

    folder = tmp_path / "deadly"
    shutil.copytree(passes.base, folder)
    [token, *_] = load_tokenizer(str(folder)).encode("\N{SKULL}")
    (folder / "deadly.py").write_text(DEADLY_CODE.replace("DEADLY)", f"{token})"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["DeadlyForCausalLM"], "auto_map": {"AutoModelForCausalLM": "deadly.DeadlyForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    passes.base = folder
    assert load_model(str(passes.reference)) is not None

    lines = passes.pool.read_text().splitlines()
    words = [{"role": "user", "content": "Draw one."}, {"role": "assistant", "content": "Here: \N{SKULL}"}]
    lines.insert(len(lines) // 2, json.dumps({"messages": words}))
    passes.pool = tmp_path / "pool.jsonl"
    passes.pool.write_text("\n".join(lines) + "\n")
    return list(load_pool(passes.pool))[len(lines) // 2]


def test_a_poisoned_row_ends_the_pass_after_some_tries_and_is_named(passes, on_ray, ray_notes, deadly):
    with pytest.raises(RankError) as raised:
        passes.run(models=("base",), executor=on_ray, trusted=(str(passes.base),))
    shards = list(shard_stream(load_pool(passes.pool), CHARACTERS))
    [number] = [number for number, rows in enumerate(shards) if deadly in rows]
    said, rows = str(raised.value), shards[number]
    assert f"shard {number + 1} of {len(shards)} under base: {TRIES} Ray actors ended" in said
    assert f"rows {rows[0].id} to {rows[-1].id} ({len(rows)} rows)" in said
    assert sum("its Ray actor ended" in text for text in ray_notes) == TRIES - 1
    kept = len(passes.stages("losses"))
    assert 0 < kept < len(shards)


def test_a_head_that_dies_leaves_a_folder_that_one_process_finishes(small_pool, tiny_model_folder, tmp_path):
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(tokenclean.__file__).parents[1])

    def command(name: str, *more: str) -> list[str]:
        arguments = [str(small_pool), "--base", str(tiny_model_folder), "--precision", "exact", "--device", "cpu"]
        sized = ["--shard-characters", "300", "-o", str(tmp_path / f"{name}.parquet")]
        return [sys.executable, "-m", "tokenclean", "score", *arguments, *sized, *more]

    subprocess.run(command("whole"), env=environment, capture_output=True, check=True)
    shards = len(losses_in(tmp_path / "whole.shards"))
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        # By default a driver waits for a minute for the head to come back.
        on_ray = {**environment, "RAY_ADDRESS": cluster.address, "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command("s", "--on", "ray"), env=on_ray, text=True, **pipes)
        while len(losses_in(tmp_path / "s.shards")) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        said = process.communicate(timeout=LONGEST_SECONDS)
        assert process.returncode != 0
        assert said[0] == ""
    finally:
        cluster.shutdown()
    kept = len(losses_in(tmp_path / "s.shards"))
    assert 3 <= kept < shards
    assert not (tmp_path / "s.parquet").exists()
    resumed = subprocess.run(command("s"), env=environment, capture_output=True, text=True, check=True)
    assert f"{shards - kept} shards computed, {kept} found" in resumed.stdout
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def losses_in(folder: Path) -> list[Path]:
    """The finished stages of losses."""
    return list(folder.glob("stages/losses-*/manifest.json"))


def test_a_run_on_ray_makes_the_stages_and_results_of_a_run_here(
    on_ray, small_pool, tiny_model_folder, other_model_folder, tmp_path
):
    from tokenclean.cleaning.open_run import open_run
    from tokenclean.experiment.run import run

    def recipe(output: str, **executor: object) -> Recipe:
        return recipe_from(
            {
                "output": str(tmp_path / output),
                "pool": {"sources": [{"path": str(small_pool)}], "max_rows": 30, "heldout": {"rows": 5}},
                "model": {"base": str(tiny_model_folder), "reference": str(other_model_folder)},
                "scoring": {"precision": "exact"},
                "cleaning": {"strategy": "fixed_model", "allow_weak_reference": True},
                "training": {"batch_size": 8, "lora": {"rank": 2}},
                "executor": executor,
            }
        )

    here = recipe("here")
    first = run(open_run(recipe("ray", kind="ray"), executor=on_ray))
    second = run(open_run(recipe("ray")))
    assert (second.stages_made, second.folder) == (0, first.folder)
    alone = run(open_run(here))

    def losses(output: str) -> dict[str, str]:
        return {path.parent.name: file_hash(path) for path in (tmp_path / output).glob("run/stages/losses-*/*.parquet")}

    assert losses("ray") == losses("here")
    tables = [read_table(result.folder / "fixed_model" / "kept.parquet") for result in (first, alone)]
    assert tables[0].ids == tables[1].ids
    for name, column in tables[0].columns.items():
        assert column.values.tobytes() == tables[1][name].values.tobytes(), name


def test_starts_that_ray_cancels_are_tried_again(passes, on_ray, ray_notes, monkeypatch):
    """As on a cluster that other commands fill; more of them than actors may die."""
    whole, started = passes.run("whole"), Actors._started
    cancelled = []

    def cancel_some(self: Actors, reference: object) -> None:
        if len(cancelled) < 2 * TRIES:
            cancelled.append(reference)
            never = "The actor died.\nThe actor never ran - it was cancelled before it started running."
            with monkeypatch.context() as patch:
                patch.setattr(ray_actors, "_result", Mock(side_effect=RayActorError(error_msg=never)))
                return started(self, reference)
        return started(self, reference)

    monkeypatch.setattr(Actors, "_started", cancel_some)
    assert passes.run(executor=on_ray).made == whole.made
    assert len(cancelled) == 2 * TRIES
    assert sum(text.startswith("Ray cancelled the start of an actor") for text in ray_notes) == 1
    assert passes.table() == passes.table("whole")


def test_why_an_actor_ended_is_one_line_of_rays_many():
    died = "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tactor_id: 1\n"
    known = "The actor is dead because its node has died. Node Id: 2. Some common causes include: memory"
    assert _reason(RuntimeError(died + known)) == "its node has died"
    never = "Its creation was cancelled.\nThe actor never ran - it was cancelled before it started running."
    assert _reason(RuntimeError(died + never)) == never.replace("\n", " ")
    assert _reason(RuntimeError("gone")) == "gone"
