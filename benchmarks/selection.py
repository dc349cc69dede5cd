"""Exact selection: the streaming cut against numpy in RAM and the naive Python way, on the same scores in the same run.

Naive: a sorted list of (score, row, position) tuples and a list of labels for each row, the research code's way; timed
on the first ``--naive-scores`` scores and scaled by n log n unless those are all. In RAM: numpy's partition of scores
that are loaded already. Streaming: memory-mapped shards, warm in the page cache. The ways take turns,
``--repeats`` times over, each on one thread; the median counts. Peak memory is what a way allocates on top of the
scores (tracemalloc, in a run of its own); for the naive way it is scaled by n. The benchmark fails unless all ways keep
the same tokens.

    python -m benchmarks.selection [--scores 1e8] [--naive-scores 2e6] [--repeats 5] [--without-ram] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.selection import kept_count
from tokenclean.selection.streaming import find_cut, radix_cut, write_kept

PROPORTION = 0.6
SHARDS = 8
ROW_TOKENS = 250
WRITTEN_TOGETHER = 1 << 22
NAIVE, IN_RAM, CUT, MASKS, RADIX = (
    "naive tuples",
    "numpy partition in RAM",
    "streaming, the cut",
    "streaming, cut and mask files",
    "streaming, histograms only",
)


def save_scores(folder: Path, count: int) -> list[np.ndarray]:
    """``count`` normal scores as memory-mapped shards."""
    generator = np.random.default_rng(0)
    shards = []
    for number in range(SHARDS):
        length = count * (number + 1) // SHARDS - count * number // SHARDS
        path = folder / f"scores{number}.npy"
        shard = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(length,))
        for start in range(0, length, WRITTEN_TOGETHER):
            part = shard[start : start + WRITTEN_TOGETHER]
            part[:] = generator.standard_normal(len(part), dtype=np.float32)
        shard.flush()
        shards.append(np.load(path, mmap_mode="r"))
    return shards


def naive_labels(rows: list[list[float]]) -> list[list[int]]:
    """A label for each token of each row, 1 where it is kept, by a sorted list of tuples."""
    tokens = [(score, row, position) for row, scores in enumerate(rows) for position, score in enumerate(scores)]
    tokens.sort(key=lambda token: token[0], reverse=True)
    labels = [[0] * len(scores) for scores in rows]
    for _, row, position in tokens[: kept_count(len(tokens), PROPORTION)]:
        labels[row][position] = 1
    return labels


def partition_mask(scores: np.ndarray) -> np.ndarray:
    """The kept mask by numpy's partition, bool, shape (T,)."""
    kept = kept_count(len(scores), PROPORTION)
    threshold = np.partition(scores, len(scores) - kept)[len(scores) - kept]
    is_kept = scores > threshold
    tied = np.flatnonzero(scores == threshold)
    is_kept[tied[: kept - np.count_nonzero(is_kept)]] = True
    return is_kept


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that ``work`` holds allocated, Python's and numpy's."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def median_seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Each way timed in turn, ``repeats`` times over."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def check_agreement(shards: list[np.ndarray], masks: list[Path], rows: list[list[float]], scores: np.ndarray) -> None:
    """Stop unless all ways keep the same tokens; ``scores`` are all of them, or as many as memory holds."""
    cut = find_cut(shards, PROPORTION)
    written = [np.load(path, mmap_mode="r") for path in masks]
    kept = sum(int(np.count_nonzero(mask)) for mask in written)
    naive = np.concatenate([np.array(labels, dtype=bool) for labels in naive_labels(rows)])
    agree = {
        "histograms": radix_cut(shards, cut.kept) == cut,
        "number in mask files": kept == kept_count(cut.total, PROPORTION),
        "naive": np.array_equal(naive, partition_mask(scores[: len(naive)])),
        "in RAM": len(scores) < cut.total or np.array_equal(np.concatenate(written), partition_mask(scores)),
    }
    if not all(agree.values()):
        raise SystemExit(f"the ways disagree: {agree}")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, times as fast as the naive way, and peak memory of each way."""
    count, naive_count = arguments.scores, arguments.naive_scores
    shards = save_scores(folder, count)
    masks = [folder / f"kept{number}.npy" for number in range(SHARDS)]
    scores = shards[0][:naive_count] if arguments.without_ram else np.concatenate(shards)
    naive_scores = scores[:naive_count]
    naive_count = len(naive_scores)
    rows = [naive_scores[start : start + ROW_TOKENS].tolist() for start in range(0, naive_count, ROW_TOKENS)]

    ways: dict[str, Callable[[], object]] = {NAIVE: lambda: naive_labels(rows)}
    if not arguments.without_ram:
        ways[IN_RAM] = lambda: partition_mask(scores)
    ways[CUT] = lambda: find_cut(shards, PROPORTION)
    ways[MASKS] = lambda: write_kept(shards, find_cut(shards, PROPORTION), masks)
    ways[RADIX] = lambda: radix_cut(shards, kept_count(count, PROPORTION))

    load_before = os.getloadavg()[0]
    seconds = median_seconds(ways, arguments.repeats)
    load_after = os.getloadavg()[0]
    peak = {name: peak_bytes(work) for name, work in ways.items()}
    check_agreement(shards, masks, rows, scores)

    seconds[NAIVE] *= count * math.log(count) / (naive_count * math.log(naive_count))
    peak[NAIVE] = peak[NAIVE] * count // naive_count
    return {
        "scores": count,
        "naive_scores": naive_count,
        "repeats": arguments.repeats,
        "cores": os.cpu_count(),
        "load": [round(load_before, 2), round(load_after, 2)],
        "ways": {
            name: {
                "seconds": seconds[name],
                "times_naive": seconds[NAIVE] / seconds[name],
                "peak_gib": peak[name] / 1024**3,
            }
            for name in ways
        },
    }


def main() -> None:
    def count(text: str) -> int:
        return int(float(text))

    parser = argparse.ArgumentParser(description="Time exact selection: naive, in RAM and streaming.")
    parser.add_argument(
        "--scores", type=count, default=10**8, help="how many scores; 4 bytes of --folder each, 5 in all"
    )
    parser.add_argument("--naive-scores", type=count, default=2 * 10**6, help="how many of them the naive way sorts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where the shards are written for the time of the run")
    parser.add_argument("--without-ram", action="store_true", help="leave out numpy in RAM (9 bytes a score)")
    parser.add_argument("--busy", action="store_true", help="measure even if the machine is busy")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    load = os.getloadavg()[0]
    if load > 1.0 and not arguments.busy:
        raise SystemExit(f"the machine is busy (load {load:.1f}); timings would mean nothing")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    before, after = result["load"]
    print(f"{result['scores']:,} scores; 1 thread of {result['cores']}; load {before} before, {after} after; all agree")
    if result["naive_scores"] < result["scores"]:
        print(f"naive: measured on {result['naive_scores']:,} scores; seconds scaled by n log n, memory by n")
    print(f"{'way':30} {'seconds':>9} {'x naive':>8} {'peak GiB':>9}")
    for name, way in result["ways"].items():
        print(f"{name:30} {way['seconds']:9.3f} {way['times_naive']:8.0f} {way['peak_gib']:9.3f}")


if __name__ == "__main__":
    main()
