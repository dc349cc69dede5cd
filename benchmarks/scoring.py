"""Scoring speed and error of each precision policy against the naive way, on the same rows in the same run.

Naive: float32, file order, batches of 6 padded to the longest, full float32 logits and a second cross-entropy — the
research code's way. Each variant is timed in turn, ``--repeats`` times over, and the ratio is taken pair by pair.

    python -m benchmarks.scoring [--pool FILE] [--model FOLDER] [--rows N] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from tokenclean import load_pool, token_losses, tokenize_pool
from tokenclean.experiment.demo import pool_path
from tokenclean.models.convert import smollm2_folder
from tokenclean.models.load import load_model, load_tokenizer

NAIVE_BATCH = 6


def naive_losses(model: torch.nn.Module, rows: list[np.ndarray]) -> np.ndarray:
    """Losses of every token but the first of each row, flat, by padded batches and full logits."""
    losses = []
    for first in range(0, len(rows), NAIVE_BATCH):
        batch = rows[first : first + NAIVE_BATCH]
        longest = max(len(row) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), 1
        with torch.no_grad():
            labels = ids.masked_fill(mask == 0, -100)
            logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits.float()
            flat = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
        per_row = flat.view(len(batch), longest - 1).numpy()
        losses += [per_row[i, : len(row) - 1] for i, row in enumerate(batch)]
    return np.concatenate(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", default=str(pool_path()), help="JSON-lines pool (default: the shipped one)")
    parser.add_argument("--model", default=None, help="model folder or Hub id (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    name = arguments.model or str(smollm2_folder())
    load = os.getloadavg()[0]
    if load > 1.0:
        raise SystemExit(f"the machine is busy (load {load:.1f}); timings would mean nothing")
    model, tokenizer = load_model(name), load_tokenizer(name)
    pool = load_pool(arguments.pool)
    tokens = tokenize_pool(pool.take(range(min(arguments.rows, len(pool)))), tokenizer)
    count = len(tokens.input_ids.values)
    print(f"{count:,} tokens of {len(tokens)} rows; {torch.get_num_threads()} threads; load {load:.2f}; {name}")

    variants: dict[str, Callable[[], np.ndarray]] = {
        "naive": lambda: naive_losses(model, list(tokens.input_ids)),
        "exact": lambda: token_losses(model, tokens, precision="exact").values,
        "safe": lambda: token_losses(model, tokens, precision="safe").values,
        "fast": lambda: token_losses(model, tokens, precision="fast").values,
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    losses: dict[str, np.ndarray] = {}
    for _ in range(arguments.repeats):
        for variant, score in variants.items():
            started = time.perf_counter()
            losses[variant] = score()
            times[variant].append(time.perf_counter() - started)
    print(f"{'variant':8} {'tokens/s':>9} {'x naive':>8} {'mean error':>11} {'max error':>10}")
    for variant in variants:
        ratio = statistics.median(a / b for a, b in zip(times["naive"], times[variant], strict=True))
        error = ""
        if variant != "naive":
            difference = np.abs(losses[variant] - losses["exact"])
            error = f"{np.nanmean(difference):11.2e} {np.nanmax(difference):10.2e}"
        print(f"{variant:8} {count / statistics.median(times[variant]):9,.0f} {ratio:8.2f} {error}")


if __name__ == "__main__":
    main()
