"""What weights of tokens lose on their way to another tokenizer as spans of characters.

Tokens of the pool's answers are dropped at random, one by one or in runs, by one model's tokenizer. The weights become
spans, which the other model's tokenizer reads. Two shares say what is lost: the other's tokens whose characters have
two weights, of which they take the smaller, and the first's tokens that have another weight after the way there and
back.

    python -m benchmarks.spans POOL --model MODEL --other MODEL [--rows 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from tokenclean.models.loading.load import load_tokenizer
from tokenclean.pool import Pool, load_pool
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.weight_spans import spans_of_weights, weights_of_spans

PROPORTIONS = (0.6, 0.9)
RUNS = (1, 8)
MAX_LENGTH = 1 << 16  # nothing is cut, so both tokenizers see the same text


@dataclass(frozen=True)
class Loss:
    """``kept``: share of response tokens kept. ``run``: mean length of what is dropped together, in tokens.
    ``mixed``: share of the other's tokens with characters of two weights. ``changed``: share of the first's tokens
    whose weight is another one after the way there and back."""

    kept: float
    run: int
    mixed: float
    changed: float


def drop_tokens(tokens: TokenizedPool, kept: float, run: int, seed: int = 0) -> Ragged:
    """Weights 1 and 0, float32, of the response tokens, in runs of a mean length; 0 for other tokens."""
    random = np.random.default_rng(seed)
    borders = random.random(len(tokens.input_ids.values)) < 1 / run
    number = np.cumsum(borders)
    is_kept = (random.random(number[-1] + 1) < kept)[number]
    return tokens.is_response.map_values(lambda values: (values & is_kept).astype(np.float32))


def measure(first: TokenizedPool, other: TokenizedPool, kept: float, run: int) -> Loss:
    """The loss of one way of dropping tokens. Both hold the same rows."""
    weights = drop_tokens(first, kept, run)
    spans = spans_of_weights(first, weights)
    there = weights_of_spans(other, spans, _full(other))
    # Spans of weight 2 leave their mark on tokens that they cover whole; a mixed token takes the smaller weight, 1.
    doubled = [[replace(span, weight=2.0) for span in row] for row in spans]
    whole = weights_of_spans(other, doubled, _full(other))
    back = weights_of_spans(first, spans_of_weights(other, there), _full(first))
    mixed = (there.values == 0) & (whole.values == 1) & other.is_response.values
    changed = back.values != weights.values
    return Loss(
        kept,
        run,
        float(mixed.sum() / other.is_response.values.sum()),
        float(changed.sum() / first.is_response.values.sum()),
    )


def _full(tokens: TokenizedPool) -> Ragged:
    return tokens.is_response.map_values(lambda values: values.astype(np.float32))


def compare(pool: Pool, model: str, other: str) -> list[Loss]:
    """The loss for each proportion and each length of runs."""
    first, second = (tokenize_pool(pool, load_tokenizer(name), max_length=MAX_LENGTH) for name in (model, other))
    return [measure(first, second, kept, run) for kept in PROPORTIONS for run in RUNS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--model", required=True, help="model whose tokens have the weights")
    parser.add_argument("--other", required=True, help="model whose tokenizer reads the spans")
    parser.add_argument("--rows", type=int, default=1000, help="take the pool's first rows")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    pool = load_pool(options.pool)
    pool = pool.take(range(min(options.rows, len(pool))))
    losses = compare(pool, options.model, options.other)
    print(f"{len(pool):,} rows; tokens dropped under {options.model}, read under {options.other}")
    print("kept   run   mixed tokens   changed there and back")
    for loss in losses:
        print(f"{loss.kept:4.0%} {loss.run:5} {loss.mixed:14.2%} {loss.changed:24.2%}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(loss) for loss in losses], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
