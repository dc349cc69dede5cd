from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_passes import ROWS, Passes, save_reference

import tokenclean

STORE_BYTES = 80 << 20


@pytest.fixture(scope="module", autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test of this room."""


@pytest.fixture(scope="session")
def tiny_reference(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reference(tiny_model_folder, tmp_path_factory.mktemp("models") / "reference", init_lora_weights=False)


@pytest.fixture(scope="session")
def short_pool(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest rows of the small pool."""
    lines = sorted(small_pool.read_text(encoding="utf-8").splitlines(), key=len)[:ROWS]
    path = tmp_path_factory.mktemp("pools") / "short.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def passes(short_pool: Path, tmp_path: Path, tiny_model_folder: Path, tiny_reference: Path) -> Passes:
    return Passes(short_pool, tmp_path, tiny_model_folder, tiny_reference)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster with a head without CPUs; ``nodes`` adds those that compute. Its processes import the package under
    test."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(tokenclean.__file__).parents[1])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    started = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield started
    finally:
        started.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def ray_notes() -> list[str]:
    """What the executor of ``ray_actors`` said since the test began, and in the first test when it connected."""
    return []


@pytest.fixture(scope="module")
def ray_actors(cluster: Any, ray_notes: list[str]) -> Iterator[Any]:
    """An executor on the cluster for all tests of a file: an actor takes seconds to start, as torch does to load."""
    from tokenclean.executors.ray_executor import RayExecutor
    from tokenclean.recipe import ExecutorSettings

    _add_nodes(cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        with RayExecutor(ExecutorSettings(kind="ray"), ray_notes.append) as executor:
            yield executor


@pytest.fixture
def on_ray(ray_actors: Any, cluster: Any, ray_notes: list[str]) -> Iterator[Any]:
    """``ray_actors``, with two nodes of one CPU each."""
    _add_nodes(cluster)
    yield ray_actors
    ray_notes.clear()


def _add_nodes(cluster: Any) -> None:
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
