"""CausalLM: the one way by which this project gets losses out of a transformer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.attention import segments
from tokenclean.models.head import Head, head_of
from tokenclean.models.precision import precision_policy

logger = logging.getLogger(__name__)

_TOLERANCE_NATS = 1e-3
_PROBE_LENGTHS: tuple[int, ...] = (24, 9, 40)


class CausalLM:
    """A transformers causal LM, or the PEFT model around one, taken apart into body and head.

    On construction a small probe compares the packed pass and the separate head with the model's own logits. What
    does not reproduce them to 1e-3 nats is not used, and the log says so: the model then runs one conversation at a
    time, or through its own output layer. Gradient checkpointing, too, runs one conversation at a time: its
    recomputation happens in the backward pass, where the packed attention no longer stands.

    ``longest_row``: tokens of the longest conversation to come; the probe reaches beyond a shorter sliding window.
    """

    def __init__(self, model: torch.nn.Module, *, longest_row: int = 0) -> None:
        self.model = model
        self.lm = _unwrapped(model)
        self.body: torch.nn.Module = _body_of(self.lm)
        self.device = next(self.lm.parameters()).device
        self._is_packed = False
        self._head: Head | None = None
        self._probe(longest_row)

    @property
    def is_packed(self) -> bool:
        """True when several conversations share one forward pass."""
        return self._is_packed

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix: ids from here on are unknown to the model."""
        return cast(torch.nn.Embedding, self.lm.get_input_embeddings()).weight.shape[0]

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
        if self._is_packed and not self._is_recomputing():
            return self._pass(input_ids, lengths, positions)
        parts, start = [], 0
        for length in lengths:
            inside = positions[(positions >= start) & (positions < start + length)] - start
            parts.append(self._pass(input_ids[start : start + length], None, inside))
            start += length
        return torch.cat(parts)

    def _is_recomputing(self) -> bool:
        if not (self.lm.training and torch.is_grad_enabled()):
            return False
        return any(getattr(module, "gradient_checkpointing", False) for module in self.lm.modules())

    def _pass(self, input_ids: torch.Tensor, lengths: Sequence[int] | None, positions: torch.Tensor) -> torch.Tensor:
        """Losses of one pack, or of one conversation by the plain forward (``lengths`` None)."""
        targets = input_ids[positions]
        if self._head is None:
            logits = self.lm(input_ids=input_ids[None], use_cache=False).logits[0]
            return cross_entropy(logits[positions - 1].float(), targets, reduction="none")
        return self._head.losses(self._hidden(input_ids, lengths)[positions - 1], targets)

    def _hidden(self, input_ids: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
        """Last hidden states, (T, H)."""
        if lengths is None:
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
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary_size, (sum(lengths),), generator=generator).to(self.device)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        positions = torch.cat([torch.arange(s + 1, s + n) for s, n in zip(starts, lengths, strict=True)]).to(
            self.device
        )
        with evaluating(self.model), torch.no_grad(), self.precision("exact"):
            expected = self.losses(ids, lengths, positions)
            try:
                self._head = head_of(self.lm)
            except ModelError as error:
                logger.warning("%s; its own output layer is used, which is slower", error)
                return
            if problem := self._problem(ids, lengths, positions, expected):
                logger.warning(
                    "%s changes its logits in a way not known (%s); its own output layer is used", self._name, problem
                )
                self._head = None
                return
            self._is_packed = True
            if problem := self._problem(ids, lengths, positions, expected):
                logger.warning("no packed path for %s (%s); one conversation a pass", self._name, problem)
                self._is_packed = False

    def _problem(
        self, ids: torch.Tensor, lengths: list[int], positions: torch.Tensor, expected: torch.Tensor
    ) -> str | None:
        """Why the way now set up does not reproduce the expected losses, or None."""
        try:
            losses = self.losses(ids, lengths, positions)
        except (NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            return " ".join(str(error).split())[:200]
        return None if _agree(losses, expected) else "its losses differ from the plain ones"

    @property
    def _name(self) -> str:
        return type(self.lm).__name__


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Run a block in eval mode; each module's own mode comes back after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    if isinstance(model, PreTrainedModel):
        return model
    from peft import PeftModel

    if isinstance(model, PeftModel) and isinstance(lm := model.get_base_model(), PreTrainedModel):
        return lm
    raise ModelError(f"expected a transformers causal LM or a PEFT model around one, found {type(model).__name__}")


def _body_of(lm: PreTrainedModel) -> torch.nn.Module:
    """The model below its output layer; Llama 4's text model names another prefix and is its own ``base_model``."""
    body = lm.base_model
    return dict(lm.named_children()).get("model", body) if body is lm else body


def _windows(lm: PreTrainedModel) -> list[int]:
    names = ("sliding_window", "attention_chunk_size")
    return [int(w) for w in (getattr(lm.config, name, None) for name in names) if w]


def _agree(losses: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((losses - expected).abs().max() < _TOLERANCE_NATS)
