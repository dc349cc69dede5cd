"""Do packed float32 losses agree with the plain forward on real conversations, and does no row affect another?

Takes 50 seeded conversations: single rows and multi-turn ones made of several rows of one file, many over 1,024
tokens; unsorted, in mixed packs. Prints the largest differences in nats and fails above 1e-4.

    python -m benchmarks.agreement --pool FILE [FILE ...] [--model FOLDER]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from tokenclean import Pool, load_pool, token_losses, tokenize_pool
from tokenclean.experiment.demo import pool_path
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import load_model, load_tokenizer
from tokenclean.tokens import TokenizedPool

TOLERANCE_NATS = 1e-4


def conversations(files: list[str], count: int, seed: int) -> Pool:
    """A third single rows, a third of 2 to 4 rows as turns, a third of 10 to 16 rows as turns; in random order."""
    generator = np.random.Generator(np.random.PCG64(seed))
    pools = [load_pool(file) for file in files]
    made = []
    for number in range(count):
        pool = pools[number % len(pools)]
        rows = (1, int(generator.integers(2, 5)), int(generator.integers(10, 17)))[number % 3]
        parts = [pool[int(row)] for row in generator.choice(len(pool), rows, replace=False)]
        turns = tuple(t for part in parts for t in part.turns if t.role != "system")
        made.append(replace(parts[0], turns=turns))
    return Pool(tuple(made[int(i)] for i in generator.permutation(count)))


def plain_losses(model: torch.nn.Module, tokens: TokenizedPool) -> np.ndarray:
    """Each conversation alone through the model's own forward; NaN off the response."""
    rows = []
    for ids, is_response in zip(tokens.input_ids, tokens.is_response, strict=True):
        row = torch.from_numpy(ids)
        with torch.no_grad():
            logits = model(input_ids=row[None]).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none").numpy()
        rows.append(np.where(is_response, np.concatenate([[np.nan], losses]), np.nan))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", nargs="+", default=[str(pool_path())])
    parser.add_argument("--model", default=None)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    name = arguments.model or str(smollm2_folder())
    model, tokenizer = load_model(name), load_tokenizer(name)
    pool = conversations(arguments.pool, arguments.rows, arguments.seed)
    tokens = tokenize_pool(pool, tokenizer, max_length=2048)
    lengths = tokens.input_ids.lengths
    turns = [sum(t.role == "assistant" for t in c.turns) for c in pool]
    print(
        f"{len(tokens)} conversations, {lengths.sum():,} tokens, {tokens.is_response.values.sum():,} response; "
        f"{sum(n > 1 for n in turns)} multi-turn, {np.sum(lengths > 1024)} over 1,024 tokens, longest {lengths.max():,}"
    )
    packed = token_losses(model, tokens, precision="exact").values
    difference = np.nanmax(np.abs(packed - plain_losses(model, tokens)))
    print(f"packed against plain forward: largest difference {difference:.2e} nats")

    changed = tokens.input_ids.values.copy()
    row = int(np.argsort(lengths)[len(lengths) // 2])
    start, end = tokens.input_ids.offsets[row : row + 2]
    changed[start:end] = changed[start:end][::-1]
    after = token_losses(
        model, replace(tokens, input_ids=tokens.input_ids.with_values(changed)), precision="exact"
    ).values
    others = tokens.is_response.values.copy()
    others[start:end] = False
    neighbour = np.abs(packed - after)[others].max()
    own = np.nanmax(np.abs(packed - after)[start:end])
    print(f"one conversation of {end - start} tokens reversed: its own losses move by up to {own:.2f} nats,")
    print(f"those of all others by up to {neighbour:.2e}")
    if difference > TOLERANCE_NATS or neighbour > TOLERANCE_NATS:
        raise SystemExit(f"above {TOLERANCE_NATS:g} nats")


if __name__ == "__main__":
    main()
