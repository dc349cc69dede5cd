"""Exact selection: the streaming cut against numpy in RAM and the naive Python way, on the same scores in the same run.

Naive: a sorted list of (score, row, position) tuples and a list of labels for each row, the research code's way; timed
on the first ``--naive-scores`` scores and scaled linearly unless those are all, which flatters it: sorting grows
faster. In RAM: numpy's partition of scores that are loaded already. Streaming: memory-mapped shards, warm in the
page cache. The ways take turns, ``--repeats`` times over, each on one thread; the median counts. Peak memory is what a
way allocates on top of the scores (tracemalloc, in a run of its own); for the naive way it is scaled linearly too. The
benchmark fails unless all ways keep the same tokens.

    python -m benchmarks.selection [--scores 1e8] [--naive-scores 2e6] [--repeats 5] [--folder FOLDER] [--without-ram]
                                   [--json FILE] [--markdown] [--allow-busy]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from tokenclean.selection import kept_count, order_keys
from tokenclean.selection.streamed_ranking import CHUNK_KEYS, Cut, find_cut, mask_of

PROPORTION = 0.6
SHARDS = 8
REPEATED_UP_TO_SCORES = 5 * 10**8
ROW_TOKENS = 250
WRITTEN_TOGETHER = 1 << 22
NAIVE, IN_RAM, CUT, MASKS = (
    "naive tuples",
    "numpy partition in RAM",
    "streaming, the cut",
    "streaming, cut and mask files",
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


def cut_of(shards: list[np.ndarray]) -> Cut:
    """The streaming cut of the scores, whose keys are computed chunk by chunk."""

    def keys() -> Iterator[np.ndarray]:
        for shard in shards:
            for start in range(0, len(shard), CHUNK_KEYS):
                yield order_keys(np.asarray(shard[start : start + CHUNK_KEYS]))

    return find_cut(keys, PROPORTION, bits=32)


def write_masks(shards: list[np.ndarray], paths: list[Path]) -> None:
    """The kept mask of each shard, as a bool .npy at the path beside it."""
    cut, ties_taken = cut_of(shards), 0
    for shard, path in zip(shards, paths, strict=True):
        written = np.lib.format.open_memmap(path, mode="w+", dtype=bool, shape=shard.shape)
        for start in range(0, len(shard), CHUNK_KEYS):
            part = slice(start, start + CHUNK_KEYS)
            written[part], ties_taken = mask_of(order_keys(np.asarray(shard[part])), cut, ties_taken)
        written.flush()


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that ``work`` holds allocated, Python's and numpy's."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_agreement(shards: list[np.ndarray], masks: list[Path], rows: list[list[float]], scores: np.ndarray) -> None:
    """Stop unless all ways keep the same tokens; ``scores`` are all of them, or as many as memory holds."""
    cut = cut_of(shards)
    written = [np.load(path, mmap_mode="r") for path in masks]
    kept = sum(int(np.count_nonzero(mask)) for mask in written)
    naive = np.concatenate([np.array(labels, dtype=bool) for labels in naive_labels(rows)])
    agree = {
        "number in mask files": kept == kept_count(cut.total, PROPORTION),
        "naive": np.array_equal(naive, partition_mask(scores[: len(naive)])),
        "in RAM": len(scores) < cut.total or np.array_equal(np.concatenate(written), partition_mask(scores)),
    }
    if not all(agree.values()):
        raise SystemExit(f"the ways disagree: {agree}")


def measure(
    folder: Path, count: int, naive_count: int, repeats: int, *, with_ram: bool
) -> tuple[dict[str, Any], machine.Timings]:
    """Seconds, times as fast as the naive way, and peak memory of each way."""
    shards = save_scores(folder, count)
    masks = [folder / f"kept{number}.npy" for number in range(SHARDS)]
    scores = np.concatenate(shards) if with_ram else shards[0][:naive_count]
    naive_scores = scores[:naive_count]
    naive_count = len(naive_scores)
    rows = [naive_scores[start : start + ROW_TOKENS].tolist() for start in range(0, naive_count, ROW_TOKENS)]

    ways: dict[str, Callable[[], object]] = {NAIVE: lambda: naive_labels(rows)}
    if with_ram:
        ways[IN_RAM] = lambda: partition_mask(scores)
    ways[CUT] = lambda: cut_of(shards)
    ways[MASKS] = lambda: write_masks(shards, masks)

    timings = machine.interleaved(ways, repeats, keep_results=False)
    peak = {name: peak_bytes(work) for name, work in ways.items()}
    check_agreement(shards, masks, rows, scores)

    scale = count / naive_count
    naive_seconds = [seconds * scale for seconds in timings.seconds[NAIVE]]
    peak[NAIVE] = round(peak[NAIVE] * scale)
    figures = {
        name: {
            "seconds": statistics.median(seconds) * (scale if name == NAIVE else 1.0),
            "measured_seconds": seconds,
            "times_naive": asdict(machine.times_as_fast(naive_seconds, naive_seconds if name == NAIVE else seconds)),
            "peak_bytes": peak[name],
        }
        for name, seconds in timings.seconds.items()
    }
    result = {"scores": count, "naive_scores": naive_count, "kept_share": PROPORTION, "repeats": repeats}
    return {**result, "others_cores": timings.others_cores, "ways": figures}, timings


def described(result: dict[str, Any], timings: machine.Timings) -> str:
    """What was compared, in a sentence."""
    scaled = ""
    if result["naive_scores"] < result["scores"]:
        scaled = f"; naive measured on {result['naive_scores']:,} scores, its seconds and memory scaled linearly"
    return (
        f"{result['scores']:,} scores in {SHARDS} memory-mapped shards, {PROPORTION:.0%} kept, the same by all ways; "
        f"medians of {result['repeats']}, {timings.others_text}; peak is a way's own memory beside the scores{scaled}"
    )


def table(result: dict[str, Any], *, markdown: bool) -> str:
    rows = []
    for name, way in result["ways"].items():
        ratio = way["times_naive"]
        times = f"{ratio['median']:,.0f} ({ratio['low']:,.0f}–{ratio['high']:,.0f})" if name != NAIVE else "1"
        rows.append([name, f"{way['seconds']:.3f}", times, f"{way['peak_bytes'] / 1024**3:.3f} GiB"])
    return machine.table(["way", "seconds", "× naive", "peak memory"], rows, markdown=markdown)


def main() -> None:
    def count(text: str) -> int:
        return int(float(text))

    parser = argparse.ArgumentParser(description="Time exact selection: naive, in RAM and streaming.")
    parser.add_argument(
        "--scores", type=count, default=10**8, help="how many scores; 4 bytes of --folder each, 5 in all"
    )
    parser.add_argument("--naive-scores", type=count, default=2 * 10**6, help="how many of them the naive way sorts")
    parser.add_argument("--repeats", type=int, default=None, help="default: 5, and 1 from 5e8 scores on")
    parser.add_argument("--folder", default=None, help="where the shards are written for the time of the run")
    parser.add_argument("--without-ram", action="store_true", help="leave out numpy in RAM (9 bytes a score)")
    machine.add_options(parser)
    arguments = parser.parse_args()
    if arguments.repeats is None:
        arguments.repeats = machine.REPEATS if arguments.scores < REPEATED_UP_TO_SCORES else 1
    if min(arguments.repeats, arguments.scores, arguments.naive_scores) < 1:
        raise SystemExit("--repeats, --scores and --naive-scores must be at least 1")

    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.describe(None)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result, timings = measure(
            Path(folder),
            arguments.scores,
            arguments.naive_scores,
            arguments.repeats,
            with_ram=not arguments.without_ram,
        )
    warnings = [*([busy] if busy else []), *timings.warnings(arguments.repeats)]
    text = f"{described(result, timings)}\n\n{table(result, markdown=arguments.markdown)}"
    machine.report("selection", where, warnings, result, text, arguments)


if __name__ == "__main__":
    main()
