"""Token cleaning through the Python API: which tokens of my pool are worth training on?

    python examples/choose_tokens.py POOL.jsonl BASE_MODEL REFERENCE_MODEL

Prints the kept share and writes ``cleaned.jsonl`` with ``input_ids`` and ``labels`` (−100 where a token is not to be
trained), a form that most trainers take.
"""

import json
import sys

import numpy as np

from tokenclean import load_pool, select_tokens, token_losses, tokenize_pool
from tokenclean.models.loading.load import load_model, load_tokenizer


def main(pool_path: str, base_name: str, reference_name: str) -> None:
    pool = load_pool(pool_path)
    tokens = tokenize_pool(pool, load_tokenizer(base_name), template="tulu", max_length=2048)
    base = token_losses(load_model(base_name), tokens, precision="safe")
    reference = token_losses(load_model(reference_name), tokens, precision="safe")
    kept = select_tokens(base - reference, tokens.is_response, proportion=0.6, level="global")

    print(f"{kept.values.sum():,} of {tokens.is_response.values.sum():,} response tokens kept")
    with open("cleaned.jsonl", "w", encoding="utf-8") as file:
        for ids, is_kept in zip(tokens.input_ids, kept, strict=True):
            if is_kept.any():
                labels = np.where(is_kept, ids, -100)
                file.write(json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()}) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
