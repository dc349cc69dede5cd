"""CausalLM: the one way by which this project gets losses out of a transformer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.attention import segments
from tokenclean.models.head import Head, head_of
from tokenclean.models.precision import precision_policy

logger = logging.getLogger(__name__)

_TOLERANCE_NATS = 1e-3
_PROBE_LENGTHS = (24, 9, 40)


class CausalLM:
    """A transformers causal LM, or the PEFT model around one, taken apart into body and head.

    On construction a small probe compares the packed pass and the separate head with the model's own logits. What
    does not reproduce them to 1e-3 nats is not used, and the log says so: the model then runs one conversation at a
    time, or through its own output layer.

    ``longest_row``: tokens of the longest conversation to come; the probe reaches beyond a shorter sliding window.
    """

    def __init__(self, model: torch.nn.Module, *, longest_row: int = 0) -> None:
        self.model = model
        self.lm = _unwrapped(model)
        self.body: torch.nn.Module = self.lm.base_model
        self.device = next(self.lm.parameters()).device
        self._is_packed = False
        self._head: Head | None = None
        self._probe(longest_row)

    @property
    def is_packed(self) -> bool:
        """True when several conversations share one forward pass."""
        return self._is_packed

    @property
    def kernel(self) -> str:
        """What computes the losses, in words, to be recorded with them."""
        attention = "per-segment SDPA" if self._is_packed else "one conversation a pass"
        return f"{attention}; " + ("chunked head" if self._head is not None else "the model's own head")

    @contextmanager
    def precision(self, policy: str) -> Iterator[None]:
        """Run a block under a precision policy (see ``models.precision``)."""
        with precision_policy(self.body, policy):
            yield

    def losses(self, input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        """NLL in nats of the tokens at ``positions``, float32, shape (P,); differentiable.

        ``input_ids``: int64 (T,), conversations of the given ``lengths`` one after another; ``positions``: int64 (P,),
        rising indices into it, none at the start of a conversation.
        """
        if self._is_packed or len(lengths) == 1:
            return self._pass(input_ids, lengths, positions)
        parts, start = [], 0
        for length in lengths:
            inside = positions[(positions >= start) & (positions < start + length)] - start
            parts.append(self._pass(input_ids[start : start + length], [length], inside))
            start += length
        return torch.cat(parts)

    def _pass(self, input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        targets = input_ids[positions]
        if self._head is None:
            logits = self.lm(input_ids=input_ids[None], use_cache=False).logits[0]
            return cross_entropy(logits[positions - 1].float(), targets, reduction="none")
        return self._head.losses(self._hidden(input_ids, lengths)[positions - 1], targets)

    def _hidden(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Last hidden states, (T, H)."""
        if not self._is_packed:
            return self.body(input_ids=input_ids[None], use_cache=False).last_hidden_state[0]
        position_ids = torch.cat([torch.arange(n, device=input_ids.device) for n in lengths])
        with segments(self.lm, lengths):
            output = self.body(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False)
        return output.last_hidden_state[0]

    def _probe(self, longest_row: int) -> None:
        lengths = list(_PROBE_LENGTHS)
        window = min((w for w in _windows(self.lm) if w < longest_row), default=None)
        if window is not None:
            lengths.append(window + 8)
        vocabulary = self.lm.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (sum(lengths),), generator=generator).to(self.device)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        positions = torch.cat([torch.arange(s + 1, s + n) for s, n in zip(starts, lengths, strict=True)]).to(self.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.precision("exact"):
            expected = self.losses(ids, lengths, positions)
            try:
                self._head = head_of(self.lm)
            except ModelError as error:
                logger.warning("%s; its own output layer is used, which is slower", error)
            if self._head is not None and not _agree(self.losses(ids, lengths, positions), expected):
                logger.warning("%s changes its logits in a way not known; its own output layer is used", self._name)
                self._head = None
            if self._head is not None:
                self._is_packed = self._packed_pass_agrees(ids, lengths, positions, expected)
        self.model.train(was_training)

    def _packed_pass_agrees(
        self, ids: torch.Tensor, lengths: list[int], positions: torch.Tensor, expected: torch.Tensor
    ) -> bool:
        self._is_packed = True
        try:
            if _agree(self.losses(ids, lengths, positions), expected):
                return True
            reason = "its packed losses differ from the plain ones"
        except (NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
        logger.warning("no packed path for %s (%s); one conversation a pass", self._name, reason)
        return False

    @property
    def _name(self) -> str:
        return type(self.lm).__name__


def _unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    if isinstance(model, PreTrainedModel):
        return model
    from peft import PeftModel

    if isinstance(model, PeftModel) and isinstance(lm := model.get_base_model(), PreTrainedModel):
        return lm
    raise ModelError(f"expected a transformers causal LM or a PEFT model around one, found {type(model).__name__}")


def _windows(lm: PreTrainedModel) -> list[int]:
    names = ("sliding_window", "attention_chunk_size")
    return [int(w) for w in (getattr(lm.config, name, None) for name in names) if w]


def _agree(losses: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((losses - expected).abs().max() < _TOLERANCE_NATS)
