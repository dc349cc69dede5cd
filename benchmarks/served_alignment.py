"""How far ``align: characters`` is off: losses of real models that went through another tokenizer's tokens.

Two measures. *Spread*: the base's own losses on our tokens are the truth; they are summed over the pieces between
boundaries that both tokenizers have, which is the most that a server with the other tokenizer could know of the same
model, and spread back by characters. *Round trip*: the other model's losses of its own tokens, brought onto ours and
back. Then the kept sets: the score base − reference with the reference's losses as they are and spread.

    python -m benchmarks.served_alignment --other MODEL [--base MODEL] [--reference MODEL] [--pool FILE] [--rows N]
                                          [--json FILE]

``--other``: a model, or GGUF file, with another tokenizer. ``--reference``: one with the base's tokenizer; without it
the kept sets are left out. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean import load_pool
from tokenclean.experiment.demo import pool_path
from tokenclean.models.loading.load import load_model, load_tokenizer, resolve_source
from tokenclean.ragged import Ragged
from tokenclean.scoring import token_losses
from tokenclean.scoring.served.alignment import place_tokens, spread, token_boundaries
from tokenclean.scoring.served.forms import ReturnedTokens
from tokenclean.selection import jaccard, select_tokens
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.encoding import exact_offset_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROPORTION = 0.6


def main() -> None:
    options = _parser().parse_args()
    base = resolve_source(options.base)
    tokenizer, other = load_tokenizer(base), resolve_source(options.other)
    ours, theirs = (exact_offset_backend(t) for t in (tokenizer, load_tokenizer(other)))
    tokens = tokenize_pool(load_pool(options.pool), tokenizer, max_length=512)
    tokens = tokens.take(np.flatnonzero(tokens.is_response.row_sums())[: options.rows])
    base_loss = token_losses(load_model(base), tokens)
    found = {"rows": len(tokens), "response_tokens": int(tokens.is_response.values.sum())}
    found |= spread_errors(tokens, base_loss, ours, theirs)
    found |= round_trip_errors(tokens, load_model(other), ours, theirs)
    if options.reference is not None:
        reference_loss = token_losses(load_model(resolve_source(options.reference)), tokens)
        found |= kept_sets(tokens, base_loss, reference_loss, ours, theirs)
    for name, value in found.items():
        print(f"{name:40} {value:,.4f}" if isinstance(value, float) else f"{name:40} {value:,}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def through_pieces(tokens: TokenizedPool, losses: Ragged, ours: Tokenizer, theirs: Tokenizer) -> tuple[Ragged, Ragged]:
    """Response losses summed over the pieces between common boundaries and spread back, and whether a token is such a
    piece by itself."""
    values, alone = losses.values.copy(), np.zeros(len(losses.values), dtype=bool)
    for row in range(len(tokens)):
        text, mine = token_boundaries(ours, tokens.input_ids[row].tolist())
        _, other = token_boundaries(theirs, theirs.encode(text, add_special_tokens=False).ids)
        # Prompt tokens have no loss here, so pieces start over at the first response token.
        labels = tokens.is_response[row]
        edges = mine[1:-1][labels[1:] != labels[:-1]]
        common = np.intersect1d(mine, np.union1d(other, np.concatenate([[0.0, mine[-1]], edges])))
        known = np.where(labels, losses[row], 0.0).astype(np.float64)
        total = np.concatenate([[0.0], np.cumsum(known)])
        pieces = np.diff(np.interp(common, mine, total))
        start = int(tokens.input_ids.offsets[row])
        spread_back = spread(common[1:], pieces, mine)
        values[start : start + len(labels)] = np.where(labels, spread_back, np.nan)
        alone[start : start + len(labels)] = np.isin(mine[:-1], common) & np.isin(mine[1:], common)
    return losses.with_values(values.astype(np.float32)), losses.with_values(alone)


def spread_errors(tokens: TokenizedPool, losses: Ragged, ours: Tokenizer, theirs: Tokenizer) -> dict[str, float]:
    """Errors of the base's own losses that went through the other tokenizer's pieces, nats."""
    back, alone = through_pieces(tokens, losses, ours, theirs)
    labels = tokens.is_response.values
    error = np.abs(back.values - losses.values)[labels].astype(np.float64)
    shared = ~alone.values[labels]
    return {
        "mean loss, nats": float(losses.values[labels].mean(dtype=np.float64)),
        "share of tokens in shared pieces": float(shared.mean()),
        "spread: mean |error|, nats": float(error.mean()),
        "spread: mean |error| in shared pieces": float(error[shared].mean()) if shared.any() else 0.0,
        "spread: correlation with the truth": float(np.corrcoef(back.values[labels], losses.values[labels])[0, 1]),
    }


def round_trip_errors(tokens: TokenizedPool, model, ours: Tokenizer, theirs: Tokenizer) -> dict[str, float]:
    """The other model's losses of its tokens against themselves after our tokens, nats."""
    import torch

    errors, means = [], []
    for row in range(len(tokens)):
        text, mine = token_boundaries(ours, tokens.input_ids[row].tolist())
        encoding = theirs.encode(text, add_special_tokens=True)
        ids = torch.tensor([encoding.ids], device=model.device)
        with torch.no_grad():
            found = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logprobs = np.concatenate([[np.nan], found.double().cpu().numpy()])
        texts = tuple(theirs.decode([id], skip_special_tokens=False) for id in encoding.ids)
        ends, losses = place_tokens(text, ReturnedTokens(np.array(encoding.ids), texts, logprobs))
        losses = np.nan_to_num(losses)
        on_ours = spread(ends, losses, mine)
        back = spread(mine[1:], on_ours, np.concatenate([[0.0], ends]))
        assert abs(on_ours.sum() - losses.sum()) < 1e-6 * max(1.0, losses.sum())
        errors.append(np.abs(back - losses))
        means.append(losses)
    return {
        "other model: mean loss, nats a token": float(np.concatenate(means).mean()),
        "round trip: mean |error|, nats": float(np.concatenate(errors).mean()),
    }


def kept_sets(
    tokens: TokenizedPool, base: Ragged, reference: Ragged, ours: Tokenizer, theirs: Tokenizer
) -> dict[str, float]:
    """What is kept by scores with a reference whose losses went through the other tokenizer's pieces."""
    spread_reference, _ = through_pieces(tokens, reference, ours, theirs)
    scores = [base - losses for losses in (reference, spread_reference)]
    kept = [
        select_tokens(s, tokens.is_response, proportion=PROPORTION, level="global", sources=tokens.sources, seed=0)
        for s in scores
    ]
    return {f"Jaccard of the kept sets at {PROPORTION:.0%}": float(jaccard(*kept))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="demo", help="a model; by default SmolLM2-135M-Instruct from its package")
    parser.add_argument("--other", required=True, help="a model with another tokenizer")
    parser.add_argument("--reference", help="a model, or adapter, with the base's tokenizer")
    parser.add_argument("--pool", type=Path, default=pool_path(), help="by default the demo's pool")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
