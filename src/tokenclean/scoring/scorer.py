"""The loss of every response token of a pool under one model, and how it was computed: the policy of the losses."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from tokenclean.errors import NonFiniteError, PolicyMismatchError
from tokenclean.models.device import trim_heap
from tokenclean.models.packing import plan_packs, trimmed_lengths
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.recipe.settings import NEEDS_EXACT
from tokenclean.tokens.tokenize import TokenizedPool

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from tokenclean.models.causal_lm import CausalLM

logger = logging.getLogger(__name__)

PACK_TOKENS = 4096
_TRIMMED_PACKS = 16

SERVED_PRECISION = "served"
"""In place of a precision policy's name in the policy of losses that a server computed."""

FURTHER_COLUMNS = ("entropy", "is_top1", "probability", "collision")
"""Columns beside the loss: entropy of the model's next-token distribution (float32, nats), whether no other token is
likelier (bool), probability of the token, e^−loss (float32), and collision, the sum of the squared probabilities of all
tokens (float32, 0 < collision <= 1): how concentrated the model's distribution is."""

COMPILE = ("auto", "on", "off")


class Scorer:
    """Scores pools under one model, any number of times.

    ``model``: a loaded float32 transformers causal LM, or the PEFT model around one; its mode is restored after each
    pass. ``precision``: ``exact``, ``safe`` or ``fast`` (see ``models.precision``). ``pack_tokens``: tokens in one
    forward pass. ``columns``: names in FURTHER_COLUMNS. ``longest_row``: tokens of the longest row to come (see
    ``CausalLM``); a longer one is checked when it comes. ``compile``: ``on``, ``off``, or ``auto``, which compiles the
    layers if that saves time over ``expected_tokens``, those of the whole pass.

    Raises ValueError for an unknown precision, column or compile, or a ``pack_tokens`` below 1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        precision: str = "exact",
        pack_tokens: int = PACK_TOKENS,
        columns: Sequence[str] = (),
        longest_row: int = 0,
        compile: str = "auto",
        expected_tokens: int = 0,
    ) -> None:
        from tokenclean.models.causal_lm import CausalLM
        from tokenclean.models.compiled import compiling_pays
        from tokenclean.models.precision import check_precision

        check_precision(precision)
        if pack_tokens < 1:
            raise ValueError(f"pack_tokens must be at least 1, got {pack_tokens}")
        if unknown := sorted(set(columns) - set(FURTHER_COLUMNS)):
            raise ValueError(f"unknown columns {', '.join(unknown)}; known: {', '.join(FURTHER_COLUMNS)}")
        if compile not in COMPILE:
            raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {compile!r}")
        self.model, self.precision, self.pack_tokens, self.columns = model, precision, pack_tokens, tuple(columns)
        self._causal_lm = causal_lm = CausalLM(model, longest_row=longest_row)
        may_pay = compile == "auto" and causal_lm.is_packed
        pays = may_pay and compiling_pays(causal_lm.lm.config, causal_lm.device.type, expected_tokens)
        self._has_to_compile = compile == "on" or pays

    @property
    def policy(self) -> dict[str, object]:
        """What the losses depend on beside weights and text; recorded with them, since losses of two policies must not
        be subtracted from each other."""
        with self._causal_lm.precision(self.precision):
            kernel = self._causal_lm.kernel
        return {"precision": self.precision, "pack_tokens": self.pack_tokens, "kernel": kernel}

    def score(self, tokens: TokenizedPool, progress: Progress | None = None) -> dict[str, Ragged]:
        """ℓ(x_j | x_:j; θ) of each response token (§3.1), aligned with ``tokens.input_ids``, and the further columns.

        Returns ``loss``, float32 nats, finite exactly where ``is_response`` is True and NaN elsewhere (``loss[t]``
        is the loss of ``input_ids[t]`` given the tokens before it), then the ``columns``, NaN or False off the
        response. ``progress`` counts tokens, after each pack.

        Raises NonFiniteError naming the row where the model gives NaN or inf, ValueError for token ids
        outside the model's vocabulary.
        """
        [columns] = self._score(tokens, progress)
        return columns

    @property
    def pairs(self) -> bool:
        """Whether ``score_pair`` takes one pass: under ``safe``, for an adapter of plain LoRAs, where products round.
        (``fast`` rounds in attention too, for each model apart.)"""
        from tokenclean.models.precision import multiplies_bf16

        return self.precision == "safe" and self._causal_lm.can_pair and multiplies_bf16(self._causal_lm.body)

    @property
    def pair_policy(self) -> dict[str, object]:
        """``policy`` of the losses that ``score_pair`` gives, with the number of passes that it takes."""
        return {**self.policy, "passes_of_pair": 1 if self.pairs else 2}

    def score_pair(
        self, tokens: TokenizedPool, progress: Progress | None = None
    ) -> tuple[dict[str, Ragged], dict[str, Ragged]]:
        """As ``score``, of base and adapter on it: in one pass, in which rounding cancels (``models.pairs``).

        Where that is not possible (see ``pairs``) it takes two. ``model``: a PEFT model whose adapter leaves its base
        as it is. A pair is never compiled: it gains nothing from it.
        """
        if self.pairs:
            base, own = self._score(tokens, progress, in_pairs=True)
            return base, own
        logger.warning("base and adapter take a pass each: the model has parts that cannot be scored in pairs")
        with cast("PeftModel", self.model).disable_adapter():
            base = self.score(tokens)
        return base, self.score(tokens, progress)

    def _score(
        self, tokens: TokenizedPool, progress: Progress | None, *, in_pairs: bool = False
    ) -> list[dict[str, Ragged]]:
        import torch

        from tokenclean.models.model_parts import evaluating

        causal_lm, labels = self._causal_lm, tokens.is_response
        causal_lm.expect_rows_of(int(trimmed_lengths(labels.values, labels.offsets).max(initial=0)))
        self._check_vocabulary(tokens)
        names = ("loss", *(name for name in self.columns if name != "probability"))
        with evaluating(self.model), torch.no_grad(), causal_lm.precision(self.precision, in_pairs=in_pairs):
            causal_lm.make_copies()
            if self._has_to_compile and not in_pairs:
                causal_lm.compile_layers(self.pack_tokens)
                self._has_to_compile = False
            models = 2 if in_pairs else 1
            measured = measure_rows(causal_lm, tokens.input_ids, labels, names, self.pack_tokens, progress, models)
        return [self._columns(found, tokens) for found in measured]

    def _columns(self, found: Mapping[str, np.ndarray], tokens: TokenizedPool) -> dict[str, Ragged]:
        labels = tokens.is_response
        _check_finite(found["loss"], labels, tokens)
        columns = {"loss": found["loss"]}
        for name in self.columns:
            columns[name] = np.exp(-found["loss"]) if name == "probability" else found[name]
            if name == "is_top1":
                columns[name] = columns[name] == 1
        return {name: Ragged(values, labels.offsets) for name, values in columns.items()}

    def _check_vocabulary(self, tokens: TokenizedPool) -> None:
        size = self._causal_lm.vocabulary_size
        largest = int(tokens.input_ids.values.max(initial=0))
        if largest >= size:
            raise ValueError(
                f"token id {largest} is outside the model's {size} embeddings: tokenizer and model do not fit"
            )


def token_losses(
    model: torch.nn.Module,
    tokens: TokenizedPool,
    *,
    precision: str = "exact",
    pack_tokens: int = PACK_TOKENS,
    progress: Progress | None = None,
) -> Ragged:
    """The losses of one pass: ``Scorer(model, …).score(tokens)["loss"]``."""
    return Scorer(model, precision=precision, pack_tokens=pack_tokens).score(tokens, progress)["loss"]


def measure_rows(
    causal_lm: CausalLM,
    input_ids: Ragged,
    is_target: Ragged,
    names: Sequence[str],
    pack_tokens: int,
    progress: Progress | None,
    models: int = 1,
) -> list[dict[str, np.ndarray]]:
    """The measures ``names`` (of ``head.MEASURES``) of all target tokens, each float32 (T,), NaN elsewhere; for each of
    the ``models`` that the block's passes hold.

    To be called in the precision block wanted, without gradient. ``progress`` counts tokens, after each pack.
    """
    import torch

    lengths, device = trimmed_lengths(is_target.values, is_target.offsets), causal_lm.device
    shape = models, len(is_target.values)
    found = {name: np.full(shape, np.nan, dtype=np.float32) for name in names}
    packs, total, done = plan_packs(lengths, max(1, pack_tokens // models)), int(lengths.sum()), 0
    logger.info("scoring %d tokens in %d packs: %s", total, len(packs), causal_lm.kernel)
    for number, rows in enumerate(packs):
        ids, indices = flat_pack(input_ids, rows, lengths[rows])
        positions = np.flatnonzero(is_target.values[indices])
        ids_T, positions_P = (torch.from_numpy(array).to(device) for array in (ids, positions))
        for name, values in causal_lm.measures(ids_T, lengths[rows].tolist(), positions_P, names).items():
            found[name][:, indices[positions]] = values.cpu().numpy().reshape(models, -1)
        done += len(ids)
        if device.type == "cpu" and (number + 1) % _TRIMMED_PACKS == 0:
            trim_heap()
        if progress is not None:
            progress(done, total)
    return [{name: values[model] for name, values in found.items()} for model in range(models)]


def flat_pack(input_ids: Ragged, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first ``lengths`` tokens of ``rows``, flat: their ids (int64) and indices in the pool's flat columns."""
    starts = input_ids.offsets[rows]
    indices = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    return input_ids.values[indices], indices


def _check_finite(losses: np.ndarray, labels: Ragged, tokens: TokenizedPool) -> None:
    bad = labels.values & ~np.isfinite(losses)
    if bad.any():
        first = int(bad.argmax())
        row, position = labels.locate(first)
        raise NonFiniteError(
            f"the model gives a loss of {losses[first]} in row {row} ({tokens.ids[row]}), token {position}, and "
            f"{int(bad.sum())} such losses in all; are its weights damaged?"
        )


def check_same_policy(base: Mapping[str, object], reference: Mapping[str, object]) -> None:
    """Raise PolicyMismatchError unless base and reference losses were computed in the same way.

    ``base``, ``reference``: their ``Scorer.policy`` (precision, pack_tokens, kernel). Two policies change losses by as
    much as many scores are large. Nothing is known of how a served reference is computed, so it goes with a base in
    float32 and with no other.
    """
    if reference.get("precision") == SERVED_PRECISION:
        if base.get("precision") != "exact":
            raise PolicyMismatchError(
                f"the reference is served, the base was scored with precision {base.get('precision')}: {NEEDS_EXACT}; "
                "use precision exact"
            )
        return
    for key in sorted(base.keys() | reference.keys()):
        mine, theirs = (policy.get(key, "nothing recorded") for policy in (base, reference))
        if mine != theirs:
            raise PolicyMismatchError(
                f"base and reference losses differ in {key} (base: {mine}; reference: {theirs}), so their difference "
                "is not a score. Compute both again on one machine with one version of the program, under another "
                "output name; where the models themselves do not allow the same policy, use a reference of the base's "
                "architecture"
            )


def merge_policies(policies: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """One policy for the metadata: of each key the value that all shards share, else the list of values."""
    values: dict[str, list[object]] = {}
    for policy in policies:
        for key, value in policy.items():
            if value not in (met := values.setdefault(key, [])):
                met.append(value)
    return {key: met[0] if len(met) == 1 else met for key, met in values.items()}
