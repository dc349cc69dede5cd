"""A pool scored and selected by one process, by two of torchrun, and by a Ray cluster of which a node is killed.

The cluster's nodes are processes of this machine, of one CPU each, so nothing here says how a cluster scales: it says
that the kept tokens are the same bytes, what the detour costs, and how much memory the parts take. Peak memory is the
sum of resident memory over a command's processes, and apart from it over the cluster's, looked at ten times a second;
pages that processes share count in each of them. Exit status 1 where any table differs.

    OMP_NUM_THREADS=1 python -m benchmarks.ray_cluster [--data FILE.jsonl] [--rows N] [--nodes 3] [--kill]
        [--only-cluster] [--model tiny | --model MODEL --reference MODEL] [--folder FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.memory import save_tiny_model, write_pool

MIB = 1 << 20
POLL_SECONDS = 0.1
STORE_BYTES = 80 << 20
WAYS = ("one process", "torchrun, 2 processes")


@dataclass(frozen=True)
class Measured:
    """One way. ``command_bytes``, ``cluster_bytes``: peak resident memory of the processes of ``score``, and of those
    of the cluster. ``kept_hash``: of the table of kept tokens."""

    way: str
    seconds: float
    command_bytes: int
    cluster_bytes: int
    kept_hash: str


@dataclass(frozen=True)
class Scoring:
    """What is scored. ``shard_characters``: of a shard, the unit that a cluster shares."""

    pool: Path
    base: str
    reference: str
    shard_characters: int
    folder: Path

    def command(self, name: str, *more: str, launcher: Sequence[str] = ("-m",)) -> list[str]:
        """``tokenclean score`` into ``<name>.parquet``."""
        models = ["--base", self.base, "--reference", self.reference, "--precision", "exact"]
        sized = ["--shard-characters", str(self.shard_characters), "-o", str(self.table(name))]
        return [sys.executable, *launcher, "tokenclean", "score", str(self.pool), *models, *sized, *more]

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def shards(self, name: str) -> int:
        """Stages of losses that are finished."""
        return len(list((self.folder / f"{name}.shards").glob("stages/losses-*/manifest.json")))

    def kept_hash(self, name: str) -> str:
        """Select the tokens of a scored table; the hash of the table with labels."""
        from tokenclean.selection.select_table import select_table
        from tokenclean.store import file_hash

        kept = self.folder / f"{name}.kept.parquet"
        select_table(self.table(name), kept, proportion=0.6)
        return file_hash(kept)


def measure(
    scoring: Scoring,
    way: str,
    name: str,
    command: Sequence[str],
    environment: dict[str, str],
    meanwhile: Callable[[], None] | None = None,
) -> Measured:
    """Run a command to its end and select from its table; with a cluster ``meanwhile`` is called ten times a second.

    Raises SystemExit with what the command said where it fails."""
    print(f"{way} …", file=sys.stderr, flush=True)
    peaks = [0, 0]
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=said)
        while process.poll() is None:
            own, others = resident_bytes(process.pid)
            peaks[0] = max(peaks[0], own)
            if meanwhile is not None:
                peaks[1] = max(peaks[1], others)
                meanwhile()
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(f"{way} failed with {process.returncode}:\n{text}")
    return Measured(way, seconds, *peaks, scoring.kept_hash(name))


def resident_bytes(pid: int) -> tuple[int, int]:
    """Of a process with all below it, and of all others below this one."""
    import psutil

    def size(process: psutil.Process) -> int:
        with suppress(psutil.Error):
            return process.memory_info().rss
        return 0

    below = {process.pid: size(process) for process in psutil.Process().children(recursive=True)}
    of_command = {pid}
    with suppress(psutil.Error):
        of_command |= {process.pid for process in psutil.Process(pid).children(recursive=True)}
    own = sum(found for number, found in below.items() if number in of_command)
    return own, sum(below.values()) - own


def measure_all(scoring: Scoring, nodes: int, *, kill: bool, only_cluster: bool) -> list[Measured]:
    """Every way, the cluster last. ``kill``: end one of its nodes when a third of the losses are stored."""
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if only_cluster:
        return [measure_cluster(scoring, nodes, environment, kill=False)]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    measured = [
        measure(scoring, WAYS[0], "one", scoring.command("one"), environment),
        measure(scoring, WAYS[1], "two", scoring.command("two", launcher=launcher), environment),
    ]
    return [*measured, measure_cluster(scoring, nodes, environment, kill=kill)]


def measure_cluster(scoring: Scoring, nodes: int, environment: dict[str, str], *, kill: bool) -> Measured:
    """A head without CPUs, and ``nodes`` nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    # Nodes start as children of this process, with its environment.
    os.environ.update(environment)
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        added = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(nodes)]
        third = scoring.shards("one") / 3

        def kill_one() -> None:
            if kill and added[0] in cluster.worker_nodes and scoring.shards("cluster") >= third:
                cluster.remove_node(added[0], allow_graceful=False)

        way = f"Ray, {nodes} nodes" + (", one killed" if kill else "")
        at_cluster = {**environment, "RAY_ADDRESS": cluster.address}
        found = measure(scoring, way, "cluster", scoring.command("cluster", "--on", "ray"), at_cluster, kill_one)
        if kill and added[0] in cluster.worker_nodes:
            raise SystemExit("the pass ended before a node was killed; give more --rows or fewer --shard-characters")
        return found
    finally:
        cluster.shutdown()


def take_rows(data: Path | None, rows: int | None, pool: Path) -> int:
    """Write the first rows of a JSONL file, or rows of the shipped demo pool; how many there are."""
    if data is None:
        write_pool(pool, rows or 2000)
        return rows or 2000
    with data.open("rb") as given, pool.open("wb") as taken:
        lines = list(islice(given, rows))
        taken.writelines(lines)
    if rows is not None and len(lines) < rows:
        raise SystemExit(f"{data}: has {len(lines):,} rows, --rows asks for {rows:,}")
    return len(lines)


def table(measured: Sequence[Measured], *, markdown: bool) -> str:
    header = ("way", "seconds", "command, MiB", "cluster, MiB", "kept tokens")
    lines = [
        (
            m.way,
            f"{m.seconds:,.1f}",
            f"{m.command_bytes / MIB:,.0f}",
            f"{m.cluster_bytes / MIB:,.0f}" if m.cluster_bytes else "–",
            "the same bytes" if m.kept_hash == measured[0].kept_hash else "DIFFERENT",
        )
        for m in measured
    ]
    if len(measured) == 1:  # nothing to compare its tokens with
        header, lines = header[:-1], [line[:-1] for line in lines]
    return machine.table(header, lines, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ray_cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=None, metavar="FILE", help="JSONL; without it the demo pool's rows"
    )
    parser.add_argument("--rows", type=int, default=None, help="its first rows; of the demo pool 2,000")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the cluster")
    parser.add_argument("--kill", action="store_true", help="kill a node when a third of the losses are stored")
    parser.add_argument("--only-cluster", action="store_true", help="measure no other way, as for many rows' memory")
    parser.add_argument("--model", default="tiny", help="base; tiny: a random one, with a random reference")
    parser.add_argument("--reference", default=None, help="reference, where --model is not tiny")
    parser.add_argument("--shard-characters", type=int, default=1 << 18, help="characters of text in a shard")
    parser.add_argument("--folder", type=Path, default=None, help="where tables and shards are kept; else nowhere")
    machine.add_options(parser)
    options = parser.parse_args()
    if (options.model == "tiny") != (options.reference is None):
        parser.error("--reference: give it with a --model, and not without")
    if options.only_cluster and options.kill:
        parser.error("--kill: needs the other ways, whose stages say when; leave out --only-cluster")
    busy = machine.refuse_if_busy(allow=options.allow_busy)
    where = machine.in_fresh_process(machine.describe, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        base, reference = options.model, options.reference
        if reference is None:
            base, reference = str(folder / "base"), str(folder / "reference")
            for seed, model in enumerate((base, reference)):
                machine.in_fresh_process(save_tiny_model, Path(model), seed)
        rows = take_rows(options.data, options.rows, folder / "pool.jsonl")
        scoring = Scoring(folder / "pool.jsonl", base, reference, options.shard_characters, folder)
        measured = measure_all(scoring, options.nodes, kill=options.kill, only_cluster=options.only_cluster)
        shards = scoring.shards("cluster")
    shown = table(measured, markdown=options.markdown)
    text = f"{rows:,} rows, {shards} stages of losses under two models\n\n{shown}"
    figures = {"rows": rows, "shards": shards, "ways": [asdict(one) for one in measured]}
    machine.report("ray_cluster", where, [busy] if busy else [], figures, text, options)
    if len({one.kept_hash for one in measured}) > 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
