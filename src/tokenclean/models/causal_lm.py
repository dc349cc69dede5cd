"""CausalLM: the one way by which this project gets losses out of a transformer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.attention.segments import attention_kernel, current_segments, segments
from tokenclean.models.attention.shared_prefixes import KeptPrefixes, prefix_pass
from tokenclean.models.bf16_matmul import gives_float32
from tokenclean.models.compiled import CompiledLayers, decoder_layers
from tokenclean.models.head import Head, Measures, head_of, measures_of_logits
from tokenclean.models.precision import CopyOfWeight, multiplies_bf16, packed_copy, precision_policy, uses_kernels
from tokenclean.models.prefix_tree import PrefixTree, plan_prefix_packs, plan_prefix_tree

logger = logging.getLogger(__name__)

_TOLERANCE_NATS = 1e-3
_COMPILED_TOLERANCE_NATS = 0.05  # on average: under bf16 products another order of sums moves single losses further
_PROBE_LENGTHS: tuple[int, ...] = (24, 9, 40)
_PROBE_BRANCHES = ((20, 0, 12), (20, 5, 9), (31, 3, 33), (31, 0, 1))
"""Sequences that leave the first one: tokens of it, then (from, to) of it again."""


class CausalLM:
    """A transformers causal LM, or the PEFT model around one, taken apart into body and head.

    On construction a small probe compares the packed pass and the separate head with the model's own logits. What
    does not reproduce them to 1e-3 nats is not used, and the log says so: the model then runs one conversation at a
    time, or through its own output layer. Gradient checkpointing that the caller has switched on runs one conversation
    at a time too: its recomputation happens in the backward pass, where the packed attention no longer stands.
    ``checkpoint_activations`` puts it up again there.

    ``longest_row``: tokens of the longest conversation to come; the probe reaches beyond a shorter sliding window.
    """

    def __init__(self, model: torch.nn.Module, *, longest_row: int = 0) -> None:
        self.model = model
        self.lm = lm_of(model)
        self.body: torch.nn.Module = _body_of(self.lm)
        self._is_packed = False
        self._has_head = False
        self._head_copy: CopyOfWeight | None = None
        self._refresh: Callable[[], None] = _nothing
        self._compiled: CompiledLayers | None = None
        self._policy, self._bf16_attention = "exact", False
        self._probed_window = 0
        self._checkpoints_packs = False
        self._probe(self._window_within(longest_row))

    @property
    def device(self) -> torch.device:
        """Where the model is now."""
        return next(self.lm.parameters()).device

    @property
    def is_packed(self) -> bool:
        """True when several conversations share one forward pass."""
        return self._is_packed

    @property
    def probed_window(self) -> int:
        """The sliding window whose far side was probed, in tokens; 0 for none."""
        return self._probed_window

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix: ids from here on are unknown to the model."""
        return cast(torch.nn.Embedding, self.lm.get_input_embeddings()).weight.shape[0]

    @property
    def kernel(self) -> str:
        """What computes the losses, in words, to be recorded with them."""
        attention = self._attention_kernel() if self._is_packed else "one conversation a pass"
        head = "chunked head" if self._has_head else "the model's own head"
        if self._has_head and self._policy == "fast" and gives_float32(self.device):
            head += " in bf16"
        products = "block products" if uses_kernels(self.body) else "torch's products"
        if self._policy != "exact" and not multiplies_bf16(self.body):
            products += " in float32"
        compiled = "" if self._compiled is None else f"; layers compiled at {self._compiled.tokens} tokens"
        return f"{attention}; {head}; {products}{compiled}"

    def _attention_kernel(self) -> str:
        config = self.lm.config
        heads = getattr(config, "num_attention_heads", 1)
        return "attention by " + attention_kernel(
            self.device,
            next(self.body.parameters()).dtype,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            has_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
            has_window=self._probed_window > 0,
            allow_bf16=self._policy == "fast" or self._bf16_attention,
        )

    def expect_rows_of(self, longest_row: int) -> None:
        """Probe again where a conversation of so many tokens reaches beyond a sliding window not yet probed."""
        if (window := self._window_within(longest_row)) != self._probed_window and window:
            compiled, self._compiled = self._compiled, None  # the probe is of the layers as they are
            self._probe(window)
            self._compiled = compiled if self._is_packed else None

    @contextmanager
    def precision(self, policy: str, *, with_kernels: bool = True, bf16_attention: bool = False) -> Iterator[None]:
        """Run a block under a precision policy (see ``models.precision``), with or without the CPU kernels.

        ``bf16_attention``: attention may round to bf16 as under ``fast``, whatever the policy.
        """
        copy = None
        if self._has_head and not torch.is_grad_enabled():
            if with_kernels and uses_kernels(self.body):
                copy = packed_copy(lambda: self._head().weight, policy)
            elif policy == "fast" and gives_float32(self.device):
                copy = CopyOfWeight(lambda: self._head().weight, lambda weight: weight.to(torch.bfloat16))
        before = self._head_copy, self._refresh, self._policy, self._bf16_attention
        try:
            with precision_policy(self.body, policy, with_kernels=with_kernels) as self._refresh:
                self._head_copy, self._policy, self._bf16_attention = copy, policy, bf16_attention
                yield
        finally:
            self._head_copy, self._refresh, self._policy, self._bf16_attention = before

    def make_copies(self) -> None:
        """Make the weights' copies of the ``precision`` block at hand now, and not one by one when a layer first runs.

        Among the activations of a first pack they would cut what the allocator has free into pieces, which the packs
        after it cannot use: a pass then took half as much memory again.
        """
        self._refresh()
        if self._head_copy is not None:
            self._head_copy.refresh()

    def compile_layers(self, tokens: int) -> None:
        """Compile the layers for packs of up to ``tokens`` tokens, which are then filled up to that number.

        To be called within the ``precision`` block that will be used, without gradient; compiling takes 20 seconds or
        more. Where it fails or its losses are not those of the layers as they are, these go on, and the log says so.
        """
        if not self._is_packed or not decoder_layers(self.body):
            logger.warning("%s runs as it is: there are no layers to compile", self._name)
            return
        ids, lengths, positions = self._sample([*_PROBE_LENGTHS, max(2, tokens - sum(_PROBE_LENGTHS))])
        expected = self.measures(ids, lengths, positions, ("loss",))["loss"]
        self._compiled = CompiledLayers(self.body, len(ids))
        try:
            found = self.measures(ids, lengths, positions, ("loss",))["loss"]
        except Exception as error:  # whatever a compiler of another's making raises
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            difference = float((found - expected).abs().mean())
            problem = "" if difference < _COMPILED_TOLERANCE_NATS else f"its losses differ by {difference:.3g} nats"
        if problem:
            logger.warning("the layers of %s run as they are; compiling them failed (%s)", self._name, problem)
            self._compiled = None

    def checkpoint_activations(self) -> None:
        """Keep only each layer's input for the backward pass, which computes the layer again, packed as it was.

        Raises ModelError for a model that transformers cannot checkpoint.
        """
        if not self.lm.supports_gradient_checkpointing:
            raise ModelError(f"{self._name} cannot checkpoint its activations; leave activation_checkpointing out")
        enable: Any = getattr(self.lm, "activation_checkpointing_enable", None)  # its name in newer transformers
        enable = enable or self.lm.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), current_segments(self.lm))})
        self._checkpoints_packs = True

    def losses(self, input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        """NLL in nats of the tokens at ``positions``, float32, shape (P,); differentiable.

        ``input_ids``: int64 (T,), conversations of the given ``lengths`` one after another; ``positions``: int64 (P,),
        rising indices into it, none at the start of a conversation.
        """
        if self._is_packed and not self._is_recomputing():
            return self._pass(input_ids, lengths, positions)
        return torch.cat([self._pass(ids, None, inside) for ids, inside in _each(input_ids, lengths, positions)])

    def measures(
        self, input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor, names: Sequence[str]
    ) -> Measures:
        """What ``names`` (of ``head.MEASURES``) ask for at ``positions``, each float32 (P,); without gradient.

        Arguments as of ``losses``.
        """
        if self._is_packed:
            return self._measure(input_ids, lengths, positions, names)
        parts = [self._measure(ids, None, inside, names) for ids, inside in _each(input_ids, lengths, positions)]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def measures_in_tree(
        self,
        tree: PrefixTree,
        places: np.ndarray,
        targets: np.ndarray,
        names: Sequence[str],
        *,
        budget: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Measures:
        """What ``names`` (of ``head.MEASURES``) ask for, of tokens after places of a prefix tree; without gradient.

        ``places``: int64 (P, 2), node and offset in it of the token before the one asked for; ``targets``: int64 (P,),
        the tokens asked for. ``budget``: tokens of a forward pass. Returns float32 tensors (P,) on the CPU.
        """
        found = {name: torch.zeros(len(targets)) for name in names}
        order = np.argsort(places[:, 0], kind="stable")
        prefixes, done = KeptPrefixes(), 0
        for pack in plan_prefix_packs(tree, budget):
            bounds = np.searchsorted(places[order, 0], [min(pack.starts), max(pack.starts) + 1])
            here = order[bounds[0] : bounds[1]]
            rows = np.array([pack.starts[node] for node in places[here, 0]], dtype=np.int64) + places[here, 1]
            ids, positions = (torch.from_numpy(t).to(self.device)[None] for t in (pack.ids, pack.positions))
            with prefix_pass(self.lm, pack, prefixes):
                output = self.body(input_ids=ids, position_ids=positions, use_cache=False)
            if len(here):
                hidden = output.last_hidden_state[0][torch.from_numpy(rows).to(self.device)]
                copy = None if self._head_copy is None else self._head_copy()
                wanted = torch.from_numpy(targets[here]).to(self.device)
                measured = self._head().measures(hidden, wanted, names, copy)
                for name, values in measured.items():
                    found[name][torch.from_numpy(here)] = values.cpu()
            done += len(pack.ids)
            if progress is not None:
                progress(done, tree.tokens)
        return found

    def shares_prefixes(self) -> bool:
        """Whether ``measures_in_tree`` gives the losses of whole sequences, tried now; where not, the log says so."""
        if not self._is_packed:
            return False
        ids, _, _ = self._sample([self._probed_window + sum(_PROBE_LENGTHS)])
        stem = ids.tolist()
        sequences = [stem, stem[:-9], *(stem[:cut] + stem[start:stop] for cut, start, stop in _PROBE_BRANCHES)]
        tree = plan_prefix_tree([sequence[:-1] for sequence in sequences])
        places = np.array([tree.place(end, len(s) - 2) for end, s in zip(tree.ends.tolist(), sequences, strict=True)])
        targets = np.array([sequence[-1] for sequence in sequences])
        with evaluating(self.model), torch.no_grad(), precision_policy(self.body, "exact", with_kernels=False):
            expected = [
                self._pass(torch.tensor(sequence, device=self.device), None, torch.tensor([len(sequence) - 1]))
                for sequence in sequences
            ]
            try:
                losses = self.measures_in_tree(tree, places, targets, ("loss",), budget=max(_PROBE_LENGTHS))["loss"]
            except (NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
                problem = " ".join(str(error).split())[:200]
            else:
                problem = "" if _agree(losses, torch.cat(expected).cpu()) else "its losses differ from the plain ones"
        if problem:
            logger.warning("no passes with shared beginnings for %s (%s); every sequence is whole", self._name, problem)
        return not problem

    def _is_recomputing(self) -> bool:
        if self._checkpoints_packs or not (self.lm.training and torch.is_grad_enabled()):
            return False
        return any(getattr(module, "gradient_checkpointing", False) for module in self.lm.modules())

    def _pass(self, input_ids: torch.Tensor, lengths: Sequence[int] | None, positions: torch.Tensor) -> torch.Tensor:
        """Losses of one pack, or of one conversation by the plain forward (``lengths`` None)."""
        targets = input_ids[positions]
        if not self._has_head:
            logits = self.lm(input_ids=input_ids[None], use_cache=False).logits[0]
            return cross_entropy(logits[positions - 1].float(), targets, reduction="none")
        return self._head().losses(self._hidden(input_ids, lengths)[positions - 1], targets)

    def _measure(
        self,
        input_ids: torch.Tensor,
        lengths: Sequence[int] | None,
        positions: torch.Tensor,
        names: Sequence[str],
    ) -> Measures:
        targets = input_ids[positions]
        if not self._has_head:
            logits = self.lm(input_ids=input_ids[None], use_cache=False).logits[0]
            return measures_of_logits(logits[positions - 1].float(), targets, names)
        copy = None if self._head_copy is None else self._head_copy()
        return self._head().measures(self._hidden(input_ids, lengths)[positions - 1], targets, names, copy)

    def _head(self) -> Head:
        """Of the output layer as it is now: sharding gives a layer other tensors for a time."""
        return head_of(self.lm)

    def _hidden(self, input_ids: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
        """Last hidden states, (T, H)."""
        if lengths is None:
            return self.body(input_ids=input_ids[None], use_cache=False).last_hidden_state[0]
        compiled, tokens = self._compiled, len(input_ids)
        if compiled is None or not compiled.tokens // 2 <= tokens <= compiled.tokens or torch.is_grad_enabled():
            return self._packed_hidden(input_ids, lengths)
        self._refresh()
        filling = compiled.tokens - tokens
        with compiled.running():
            filled = self._packed_hidden(pad(input_ids, (0, filling)), [*lengths, filling] if filling else lengths)
        return filled[:tokens]

    def _packed_hidden(self, input_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        position_ids = torch.cat([torch.arange(n) for n in lengths]).to(input_ids.device)  # one copy, not n kernels
        with segments(self.lm, lengths, allow_bf16=self._policy == "fast" or self._bf16_attention):
            output = self.body(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False)
        return output.last_hidden_state[0]

    def _window_within(self, longest_row: int) -> int:
        """The smallest sliding window that a row of so many tokens reaches beyond; 0 without one."""
        return min((w for w in _windows(self.lm) if w < longest_row), default=0)

    def _probe(self, window: int) -> None:
        self._is_packed, self._has_head, self._probed_window = False, False, window
        ids, lengths, positions = self._sample([*_PROBE_LENGTHS, window + 8] if window else list(_PROBE_LENGTHS))
        with evaluating(self.model), torch.no_grad(), precision_policy(self.body, "exact", with_kernels=False):
            expected = self.losses(ids, lengths, positions)
            try:
                head_of(self.lm)
            except ModelError as error:
                logger.warning("%s; its own output layer is used, which is slower", error)
                return
            self._has_head = True
            if problem := self._problem(ids, lengths, positions, expected):
                logger.warning(
                    "%s changes its logits in a way not known (%s); its own output layer is used", self._name, problem
                )
                self._has_head = False
                return
            self._is_packed = True
            if problem := self._problem(ids, lengths, positions, expected):
                logger.warning("no packed path for %s (%s); one conversation a pass", self._name, problem)
                self._is_packed = False

    def _sample(self, lengths: list[int]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """Random ids of conversations of these lengths, the lengths, and all positions with a loss."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary_size, (sum(lengths),), generator=generator)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        positions = torch.cat([torch.arange(s + 1, s + n) for s, n in zip(starts, lengths, strict=True)])
        return ids.to(self.device), lengths, positions.to(self.device)

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


def _each(
    input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each conversation alone: its ids, and its positions counted from its start."""
    start = 0
    for length in lengths:
        inside = positions[(positions >= start) & (positions < start + length)] - start
        yield input_ids[start : start + length], inside
        start += length


def body_of(model: torch.nn.Module) -> torch.nn.Module:
    """The part of a causal LM, or of the PEFT model around one, that lies below its output layer."""
    return _body_of(lm_of(model))


def lm_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers causal LM itself, which may be the one inside a PEFT model. Raises ModelError for another."""
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


def _nothing() -> None:
    pass


def _agree(losses: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((losses - expected).abs().max() < _TOLERANCE_NATS)
