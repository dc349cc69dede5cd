"""One pass of one model over a pool: the loss of every response token."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged
from tokenclean.tokens.tokenize import TokenizedPool

if TYPE_CHECKING:
    import torch

    from tokenclean.models.causal_lm import CausalLM

logger = logging.getLogger(__name__)

PACK_TOKENS = 4096

Progress = Callable[[int, int], None]
"""Called after each pack with (tokens done, tokens in all)."""


def token_losses(
    model: torch.nn.Module,
    tokens: TokenizedPool,
    *,
    precision: str = "exact",
    pack_tokens: int = PACK_TOKENS,
    progress: Progress | None = None,
) -> Ragged:
    """ℓ(x_j | x_:j; θ) of each response token (§3.1), aligned with ``tokens.input_ids``.

    ``model``: a loaded float32 transformers causal LM, or the PEFT model around one; it is scored in eval mode and
    left as it was. ``precision``: ``exact``, ``safe`` or ``fast`` (see ``models.precision``). ``pack_tokens``: tokens
    in one forward pass.

    Returns float32 nats, finite exactly where ``is_response`` is True and NaN elsewhere; ``loss[t]`` belongs to
    ``input_ids[t]`` given the tokens before it. Raises NonFiniteError naming the row where the model gives NaN or inf,
    ValueError for an unknown precision or token ids outside the model's vocabulary.
    """
    import torch

    from tokenclean.models.causal_lm import CausalLM, evaluating
    from tokenclean.models.packing import plan_packs, useful_lengths

    labels = tokens.is_response
    lengths = useful_lengths(labels.values, labels.offsets)
    causal_lm = CausalLM(model, longest_row=int(lengths.max(initial=0)))
    _check_vocabulary(causal_lm, tokens)
    losses = np.full(len(labels.values), np.nan, dtype=np.float32)
    packs = plan_packs(lengths, pack_tokens)
    total, done = int(lengths.sum()), 0
    logger.info("scoring %d tokens in %d packs, %s, %s", total, len(packs), precision, causal_lm.kernel)

    with evaluating(model), torch.no_grad(), causal_lm.precision(precision):
        for rows in packs:
            ids, targets = flat_pack(tokens, rows, lengths[rows])
            positions = np.flatnonzero(labels.values[targets])
            found = causal_lm.losses(
                torch.from_numpy(ids).to(causal_lm.device),
                lengths[rows].tolist(),
                torch.from_numpy(positions).to(causal_lm.device),
            )
            losses[targets[positions]] = found.cpu().numpy()
            done += int(lengths[rows].sum())
            if progress is not None:
                progress(done, total)
    _check_finite(losses, labels, tokens)
    return Ragged(losses, labels.offsets)


def flat_pack(tokens: TokenizedPool, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first ``lengths`` tokens of ``rows``, flat: their ids (int64) and their places in the pool's flat columns."""
    starts = tokens.input_ids.offsets[rows]
    places = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    return tokens.input_ids.values[places], places


def _check_vocabulary(causal_lm: CausalLM, tokens: TokenizedPool) -> None:
    size = causal_lm.vocabulary_size
    largest = int(tokens.input_ids.values.max(initial=0))
    if largest >= size:
        raise ValueError(f"token id {largest} is outside the model's {size} embeddings: tokenizer and model do not fit")


def _check_finite(losses: np.ndarray, labels: Ragged, tokens: TokenizedPool) -> None:
    bad = labels.values & ~np.isfinite(losses)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(labels.offsets, first, side="right")) - 1
        raise NonFiniteError(
            f"the model gives a loss of {losses[first]} in row {row} ({tokens.ids[row]}), token "
            f"{first - labels.offsets[row]}, and {int(bad.sum())} such losses in all; are its weights damaged?"
        )
